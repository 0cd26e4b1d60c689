"""Qwen2.5-Omni through SFT."""

from collections.abc import Sequence
from pathlib import Path

import torch

from paras2s_cli.audio.read import read_audio
from paras2s_cli.data.cache import is_complete, publish_folder
from paras2s_cli.data.worlds import World
from paras2s_cli.errors import UsageError
from paras2s_cli.models.omni import OmniPrompts, QwenOmni
from paras2s_cli.models.prompt import Answers
from paras2s_cli.recipe.speaking import OmniBase, SftRecipe
from paras2s_cli.recipe.training import Lora
from paras2s_cli.train.at_once import pieces
from paras2s_cli.train.demonstrations import Demonstration
from paras2s_cli.train.loop import Say, Stage, WatchOf, precision, train
from paras2s_cli.train.own_data import demonstrations_of
from paras2s_cli.train.policy import OmniPolicy
from paras2s_cli.train.sft import Best, descend, epochs, held_out_loss


def load_omni(base: OmniBase, folder: str | Path | None = None) -> QwenOmni:
    """The base of a recipe, or what became of it in a folder, where the recipe wants it."""
    return QwenOmni.load(folder or base.folder, dtype=torch.float32 if base.dtype == "fp32" else None, speaker=base.speaker)


def refuse_lora(lora: Lora | None, key: str) -> None:
    """Raises UsageError where a recipe asks for an adapter."""
    if lora is not None:
        raise UsageError(f"{key}: Qwen2.5-Omni learns by all weights of base.part, without an adapter: write {key}=null")


def warm_omni(recipe: SftRecipe, base: OmniBase, world: World, out: Path, say: Say, watch: WatchOf) -> tuple[Path | None, dict[str, float]]:
    """Teaches the thinker the demonstrations' texts: its folder, None where there was nothing to teach, and its held-out loss.

    The codes of recorded answers would take the codec's encoder, which is not public: SFT leaves the talker alone.
    """
    folder = out / "model"
    refuse_lora(recipe.lora, "lora")
    if base.part == "talker" or not (recipe.data or recipe.demonstrations.count):
        say("no SFT: the library has no encoder for the talker's codec, so demonstrations teach the thinker alone (base.part)")
        return None, {}
    omni = load_omni(base, folder if is_complete(folder) else None)
    omni.checkpointing = recipe.checkpointing
    rows, measured = demonstrations_of(recipe, world)
    held = lay_out_omni(omni, measured, recipe.at_once)
    policy = OmniPolicy(omni, "thinker")
    if not is_complete(folder):
        say(f"warming the thinker up on the texts of {len(rows)} demonstrations: {folder} is not there")
        out.mkdir(parents=True, exist_ok=True)
        stage, best = _sft_stage(out, recipe, rows, omni, policy, held)
        train(stage, watch("sft"), say)
        best.restore(policy.module)
        with publish_folder(folder) as temporary:
            omni.save(temporary)
    return folder, {"held_out_text": held_out_loss(policy, held)[0]}


def lay_out_omni(omni: QwenOmni, demonstrations: Sequence[Demonstration], at_once: int = 0) -> list[tuple[OmniPrompts, Answers]]:
    """Demonstrations in batches of `at_once`, 0 for all: the recorded query, and the text of its answer."""
    batches = []
    for some in pieces(len(demonstrations), at_once):
        rows = demonstrations[some]
        prompts = omni.prompt([read_audio(d.query.path) for d in rows])
        batches.append((prompts, omni.answers([d.text for d in rows], [None] * len(rows))))
    return batches


def _sft_stage(
    out: Path, recipe: SftRecipe, rows: Sequence[Demonstration], omni: QwenOmni, policy: OmniPolicy, held: list[tuple[OmniPrompts, Answers]]
) -> tuple[Stage, Best]:
    settings, best = recipe.train, Best(out)

    def step(number: int) -> dict:
        batch = epochs(rows, settings.batch, recipe.seed, number)
        batches = lay_out_omni(omni, batch, recipe.at_once)  # not under autocast: the library's features break
        with precision(settings):
            return descend(policy, batches)

    def after(number: int, metrics: dict) -> None:
        if (number + 1) % recipe.evaluate_every == 0 or number + 1 == settings.steps:
            with precision(settings):
                metrics["held_out_text"] = held_out_loss(policy, held)[0]
            best.offer(number + 1, metrics["held_out_text"], policy.module)

    return Stage(out, {"model": policy.module}, settings, step, after), best
