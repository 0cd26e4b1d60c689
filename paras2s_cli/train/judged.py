"""GRPO of a model with a voice of its own: the judge itself is its reward, and listens to every answer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paras2s_cli.audio.write import write_wav
from paras2s_cli.data.cache import is_complete, publish_folder
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.backends import assemble_judge, load_scorer
from paras2s_cli.judge.endpoint.asking import Asking
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.folder import load_model
from paras2s_cli.models.lora import Adapter
from paras2s_cli.recipe.schema import CheckpointBase, OmniBase
from paras2s_cli.train.adapters import make_adapter, publish_trained
from paras2s_cli.train.align import Run, lay_in_parts
from paras2s_cli.train.distill import hear_queries
from paras2s_cli.train.grpo import Experience, grpo_stage
from paras2s_cli.train.loop import train
from paras2s_cli.train.omni import load_omni, warm_omni
from paras2s_cli.train.policy import KimiPolicy, NativePolicy, OmniPolicy, Policy, Speaker
from paras2s_cli.train.supervised import warm_up


class JudgedSound:
    """The full judge on the sound of answers, as GRPO's reward (`train.grpo.RewardFunction`)."""

    def __init__(self, speaker: Speaker, judge: Judge) -> None:
        self.speaker, self.judge = speaker, judge

    def __call__(self, queries: Sequence[Spoken], codes: Sequence[np.ndarray], texts: Tensor, group: int) -> Tensor:
        """Scores 1..5, NaN where the judge gives none."""
        said = self.judge.hear(self.speaker.speak(codes, 0), "answer")
        asked = [u for u in hear_queries(self.judge, queries) for _ in range(group)]
        wanted = [q.row.get("requirement") for q in queries for _ in range(group)]
        verdicts = self.judge.scorer.score(list(zip(asked, said, strict=True)), closed=False, requirements=wanted)
        return torch.tensor([float("nan") if v.score is None else float(v.score) for v in verdicts])


def align_judged(run: Run, speaker: Speaker, warm: Policy, adapter: Adapter | None = None) -> None:
    """GRPO of `speaker` in the run's folder; every `judge_every` steps an answer is kept to be heard.

    Args:
        warm: the model before alignment. adapter: see `grpo_stage`.
    """
    recipe, out = run.recipe, run.out / "grpo"
    out.mkdir(parents=True, exist_ok=True)

    def after(number: int, metrics: dict, experience: Experience) -> None:
        codes = experience.codes[0]
        if run.ranks.first and (number + 1) % recipe.grpo.judge_every == 0 and len(codes):
            (out / "samples").mkdir(exist_ok=True)
            name = f"step-{number + 1:06d}.{experience.queries[0].id}.wav"
            write_wav(out / "samples" / name, speaker.speak([codes], 0)[0])

    judge = run.judge
    if recipe.judged_by is not None:
        with run.ranks.in_turn():
            judge = assemble_judge(recipe.judged_by, run.say, load_scorer(recipe.judged_by, run.say, Asking()))
    reward = JudgedSound(speaker, judge)
    stage = grpo_stage(out, recipe.grpo, recipe.seed, speaker, warm, run.world.queries("train"), reward, after, adapter, run.ranks)
    train(stage, run.watch("grpo"), run.say)


def has_voice(base: object) -> bool:
    """Whether a recipe's base is a checkpoint with a voice of its own, and not one that speaks a world's codec."""
    config = Path(base.folder) / "config.json" if isinstance(base, CheckpointBase) else None
    return config is not None and config.is_file() and not SpeechLMConfig.load(config).encoder_features


def align_kimi(run: Run) -> None:
    """SFT and GRPO of a checkpoint of Kimi-Audio, into `out/grpo/model`."""
    recipe, settings, ranks, folder = run.recipe, run.recipe.grpo, run.ranks, run.out / "grpo" / "model"
    if is_complete(folder):
        return
    warmed = recipe.sft.model_copy(update={"seed": recipe.seed})
    warm, tokenizer = warm_up(warmed, run.world, run.out / "sft", run.say, run.watch, ranks)
    run.say(f"aligning by GRPO for {settings.train.steps} steps: {folder} is not there")
    warm.eval().requires_grad_(False)
    model = warm if settings.lora is not None else load_model(run.out / "sft" / "model")[0]
    model.checkpoint_blocks(settings.checkpointing)
    adapter = make_adapter(model, settings.lora, recipe.seed)
    mirror, shards = lay_in_parts(model, warm, settings.train, ranks)
    align_judged(run, KimiPolicy(model, tokenizer, mirror), NativePolicy(warm), adapter)
    if shards:
        shards.gather()
    with ranks.in_turn():
        if ranks.first:
            publish_trained(folder, model, tokenizer, adapter, settings.lora)


def align_omni(run: Run, base: OmniBase) -> None:
    """SFT where there is something to teach, then GRPO of the part that is to learn, into `out/grpo/model`.

    Raises:
        UsageError: several processes are to share it.
    """
    recipe, folder = run.recipe, run.out / "grpo" / "model"
    if run.ranks.size > 1:
        raise UsageError("Qwen2.5-Omni is aligned in one process: start it without torchrun")
    if is_complete(folder):
        return
    warm, _ = warm_omni(recipe.sft.model_copy(update={"seed": recipe.seed}), base, run.world, run.out / "sft", run.say, run.watch)
    run.say(f"aligning the {_PARTS[base.part]} by GRPO for {recipe.grpo.train.steps} steps: {folder} is not there")
    omni = load_omni(base, warm)
    speaker, reference = OmniPolicy(omni, base.part), OmniPolicy(load_omni(base, warm), None)
    align_judged(run, speaker, reference)
    with publish_folder(folder) as temporary:
        omni.save(temporary)


_PARTS = {"talker": "talker", "thinker": "thinker", "both": "talker and the thinker"}
