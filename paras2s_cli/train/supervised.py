"""Supervised runs of their own: the warm-up, the base, the judge's ears."""

from collections.abc import Sequence
from pathlib import Path

import torch

from paras2s_cli.audio.workers import threads_of
from paras2s_cli.data.cache import is_complete, publish_folder
from paras2s_cli.data.worlds import World, lazy_world
from paras2s_cli.errors import UsageError
from paras2s_cli.models.folder import load_model, save_model
from paras2s_cli.models.lora import check_peft
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.recipe.judging import PolytoneRecipe
from paras2s_cli.recipe.speaking import BaseRecipe, OmniBase, SftRecipe
from paras2s_cli.recipe.training import Train
from paras2s_cli.train.adapters import make_adapter, publish_trained
from paras2s_cli.train.base import load_base
from paras2s_cli.train.demonstrations import Demonstration, best_demonstrations
from paras2s_cli.train.hearing import hearing
from paras2s_cli.train.loop import Say, WatchOf, bf16, train
from paras2s_cli.train.omni import warm_omni
from paras2s_cli.train.own_data import demonstrations_of
from paras2s_cli.train.policy import NativePolicy
from paras2s_cli.train.polytone import load_listener
from paras2s_cli.train.ranks import ALONE, Ranks, threads_here
from paras2s_cli.train.sft import held_out_loss, lay_out, sft_stage
from paras2s_cli.train.shards import Shards


def run_supervised(
    recipe: SftRecipe | BaseRecipe | PolytoneRecipe, out: Path, say: Say, watch: WatchOf, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Trains what the recipe describes into `out/model`, and returns its figures on the validation split; none but on rank 0.

    Raises:
        UsageError: the recipe cannot be trained by several ranks.
    """
    if ranks.size > 1:
        if not isinstance(recipe, SftRecipe):
            raise UsageError(f"{recipe.kind} is trained in one process: start it without torchrun")
        check_together(recipe.train, "train")
    if isinstance(recipe, SftRecipe) and recipe.lora is not None:
        check_peft()
    torch.set_num_threads(threads_here(threads_of(recipe.threads)))
    count = watch("render")
    world = lazy_world(recipe.world, recipe.threads, say, lambda done, all_: count(done, {"of": all_}))
    if not (isinstance(recipe, SftRecipe) and recipe.data):
        with ranks.in_turn():
            world.queries("train")
    if isinstance(recipe, PolytoneRecipe):
        listener = load_listener(recipe, world, say, watch)
        if not is_complete(out / "model"):
            with publish_folder(out / "model") as folder:
                listener.save(folder)
        return hearing(listener, world, "validation")
    if isinstance(recipe, SftRecipe) and isinstance(recipe.base, OmniBase):
        return warm_omni(recipe, recipe.base, world, out, say, watch)[1]
    if isinstance(recipe, BaseRecipe):
        model, tokenizer = load_base(recipe, world, say, watch)
        if not is_complete(out / "model"):
            with publish_folder(out / "model") as folder:
                save_model(folder, model, tokenizer)
    else:
        model, tokenizer = warm_up(recipe, world, out, say, watch, ranks)
    if not ranks.first:
        return {}
    if isinstance(recipe, SftRecipe):
        return losses(model, tokenizer, demonstrations_of(recipe, world)[1], recipe.at_once)
    return losses(model, tokenizer, best_demonstrations(world, world.queries("validation"), recipe.seed))


def check_together(settings: Train, key: str) -> None:
    """Raises UsageError for a stage that several ranks cannot train."""
    if settings.optimizer == "muon":
        raise UsageError(
            f"{key}.optimizer: muon turns whole matrices, of which torchrun's processes hold parts: take adamw, or one process"
        )


def warm_up(recipe: SftRecipe, world: World, out: Path, say: Say, watch: WatchOf, ranks: Ranks = ALONE) -> tuple[SpeechLM, TextTokenizer]:
    """The model after SFT, in `out/model`; trained there if it is missing."""
    folder = out / "model"
    assert not isinstance(recipe.base, OmniBase), "`warm_omni` does that"
    if not is_complete(folder):
        with ranks.in_turn():
            model, tokenizer = load_base(recipe.base, world, say, watch)
        rows, held = demonstrations_of(recipe, world)
        deaf = "" if recipe.data else f", {recipe.demonstrations.tone_deaf:.0%} of them tone-deaf"
        say(f"warming up on {len(rows)} demonstrations{deaf}: {folder} is not there")
        out.mkdir(parents=True, exist_ok=True)
        adapter = make_adapter(model, recipe.lora, recipe.seed)
        shards = Shards(model, ranks, bf16=bf16(recipe.train))
        stage, best = sft_stage(out, recipe, world, model, tokenizer, rows, adapter, ranks, held)
        train(stage, watch("sft"), say)
        best.restore(adapter or model)
        shards.gather()
        with ranks.in_turn():
            if ranks.first:
                publish_trained(folder, model, tokenizer, adapter, recipe.lora)
    return load_model(folder)


def losses(model: SpeechLM, tokenizer: TextTokenizer, held: Sequence[Demonstration], at_once: int = 0) -> dict[str, float]:
    """Held-out losses on demonstrations, nats a token."""
    text, audio = held_out_loss(NativePolicy(model), lay_out(held, model, tokenizer, at_once=at_once))
    return {"held_out_text": text, "held_out_audio": audio}
