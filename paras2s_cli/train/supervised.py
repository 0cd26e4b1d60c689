"""Supervised runs of their own: the warm-up, the base, the judge's ears."""

from pathlib import Path

import torch

from paras2s_cli.audio.workers import threads_of
from paras2s_cli.data.cache import is_complete, publish_folder
from paras2s_cli.data.worlds import World, load_world
from paras2s_cli.models.folder import load_model, save_model
from paras2s_cli.models.lora import check_peft
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.recipe.schema import BaseRecipe, OmniBase, PolytoneRecipe, SftRecipe
from paras2s_cli.train.adapters import make_adapter, publish_trained
from paras2s_cli.train.base import load_base
from paras2s_cli.train.hearing import hearing
from paras2s_cli.train.loop import Say, WatchOf, train
from paras2s_cli.train.omni import warm_omni
from paras2s_cli.train.policy import NativePolicy
from paras2s_cli.train.polytone import load_listener
from paras2s_cli.train.sft import best_demonstrations, held_out_loss, lay_out, sft_stage


def run_supervised(recipe: SftRecipe | BaseRecipe | PolytoneRecipe, out: Path, say: Say, watch: WatchOf) -> dict[str, float]:
    """Trains what the recipe describes into `out/model`, and returns its figures on the validation split."""
    if isinstance(recipe, SftRecipe) and recipe.lora is not None:
        check_peft()
    torch.set_num_threads(threads_of(recipe.threads))
    count = watch("render")
    world = load_world(recipe.world, recipe.threads, say, lambda done, all_: count(done, {"of": all_}))
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
        model, tokenizer = warm_up(recipe, world, out, say, watch)
    return losses(model, tokenizer, world, recipe.seed)


def warm_up(recipe: SftRecipe, world: World, out: Path, say: Say, watch: WatchOf) -> tuple[SpeechLM, TextTokenizer]:
    """The model after SFT, in `out/model`; trained there if it is missing."""
    folder = out / "model"
    assert not isinstance(recipe.base, OmniBase), "`warm_omni` does that"
    if not is_complete(folder):
        model, tokenizer = load_base(recipe.base, world, say, watch)
        settings = recipe.demonstrations
        say(f"warming up on {settings.count} demonstrations, {settings.tone_deaf:.0%} of them tone-deaf: {folder} is not there")
        out.mkdir(parents=True, exist_ok=True)
        adapter = make_adapter(model, recipe.lora, recipe.seed)
        stage, best = sft_stage(out, recipe, world, model, tokenizer, adapter=adapter)
        train(stage, watch("sft"), say)
        best.restore(adapter or model)
        publish_trained(folder, model, tokenizer, adapter, recipe.lora)
    return load_model(folder)


def losses(model: SpeechLM, tokenizer: TextTokenizer, world: World, seed: int) -> dict[str, float]:
    """Held-out losses against good answers to the validation queries, nats a token."""
    held = lay_out(best_demonstrations(world, world.queries("validation"), seed), model, tokenizer)
    text, audio = held_out_loss(NativePolicy(model), held)
    return {"held_out_text": text, "held_out_audio": audio}
