"""GRPO of a model with a voice of its own: its reward is a judge that listens to every answer, or what that judge was distilled into."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from paras2s_cli.audio.write import write_wav
from paras2s_cli.data.cache import is_complete, publish_folder
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.backends import assemble_judge, load_scorer
from paras2s_cli.judge.endpoint.asking import Asking
from paras2s_cli.judge.hearing.pair_lm import PairLM
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.folder import load_model
from paras2s_cli.models.hub import local_folder
from paras2s_cli.models.lora import Adapter
from paras2s_cli.recipe.aligning import DistillRecipe, Grpo
from paras2s_cli.recipe.speaking import CheckpointBase, OmniBase
from paras2s_cli.rollout.sampling import Sampling
from paras2s_cli.train.adapters import make_adapter, publish_trained
from paras2s_cli.train.align import Run, distilled, lay_in_parts
from paras2s_cli.train.distill import Judged, hear_queries, judge_heard
from paras2s_cli.train.grpo import Experience, RewardFunction, grpo_stage
from paras2s_cli.train.loop import train
from paras2s_cli.train.omni import load_omni, refuse_lora, warm_omni
from paras2s_cli.train.own_data import read_queries
from paras2s_cli.train.policy import KimiPolicy, OmniPolicy, Policy, Speaker
from paras2s_cli.train.sound_reward import SoundReward
from paras2s_cli.train.supervised import warm_up


class JudgedSound:
    """The full judge on the sound of answers, as GRPO's reward (`train.grpo.RewardFunction`)."""

    def __init__(self, speaker: Speaker, judge: Judge) -> None:
        self.speaker, self.judge = speaker, judge

    def __call__(self, queries: Sequence[Spoken], codes: Sequence[np.ndarray], texts: Tensor | None = None, group: int = 1) -> Tensor:
        """Scores 1..5, NaN where the judge gives none."""
        rows = self.hear([query for query in queries for _ in range(group)], codes)
        return torch.tensor([float("nan") if row.score is None else float(row.score) for row in rows])

    def hear(self, queries: Sequence[Spoken], codes: Sequence[np.ndarray]) -> list[Judged]:
        """One answer to each query, judged in full."""
        asked, said = hear_queries(self.judge, queries), self.judge.hear(self.speaker.speak(codes, 0), "answer")
        wanted = [query.row.get("requirement") for query in queries]
        return judge_heard(self.judge, queries, codes, asked, said, closed=False, requirements=wanted)


def sampled_sound(heard: JudgedSound, settings: DistillRecipe, grpo: Grpo, queries: Sequence[Spoken], first: int) -> list[Judged]:
    """An answer to each query, as long and of as many codes as those of GRPO, and judged in full; row ids count through from `first`."""
    speaker, ids = heard.speaker, torch.arange(first, first + len(queries))
    sampling = Sampling(settings.temperature, grpo.audio_top_k)
    rolled = speaker.rollout(speaker.prompt(queries), group=1, sampling=sampling, seed=settings.seed, row_ids=ids, limit=grpo.limit)
    return heard.hear(queries, speaker.codes(rolled.answers))


def judge_of(run: Run) -> Judge:
    """The judge that a run's recipe names for answers as sound, else its world's."""
    chosen = run.recipe.judged_by
    if chosen is None:
        return run.judge
    with run.ranks.in_turn():
        asking = Asking()
        return assemble_judge(chosen, run.say, load_scorer(chosen, run.say, asking), asking)


def reward_of(run: Run, warm: Speaker, heard: JudgedSound) -> RewardFunction:
    """What GRPO is rewarded by: the judge, or the audio language model that it is distilled into if the recipe names one.

    Raises:
        UsageError, Paras2sError: see `train.align.distilled`.
    """
    settings = run.recipe.reward.model_copy(update={"seed": run.recipe.seed})
    if settings.audio_lm is None:
        return heard
    model = PairLM(settings.audio_lm, "reward.audio_lm", settings.seed)
    reward = SoundReward(model, lambda codes: warm.speak(codes, 0), settings.train)
    train_pool, held_pool = _pools(run, settings.held_out)
    pools = {"train": train_pool, "validation": held_pool}
    sampled = partial(sampled_sound, heard, settings, run.recipe.grpo)
    with run.ranks.in_turn():
        return distilled(run, settings, reward, heard.judge, pools.__getitem__, sampled).rewards


def _pools(run: Run, held_out: int) -> tuple[list[Spoken], list[Spoken]]:
    """Queries that the reward model is taught on, and others that it is measured on."""
    if run.recipe.queries is None:
        return run.world.queries("train"), run.world.queries("validation")
    queries = read_queries(run.recipe.queries)
    kept = min(held_out, max(1, len(queries) // 10))
    if len(queries) < 2:
        raise UsageError(f"queries: {run.recipe.queries} holds one query; a reward model takes one to learn from and one to be measured on")
    return queries[kept:], queries[:kept]


def align_by_sound(
    run: Run, speaker: Speaker, warm: Policy, reward: RewardFunction, heard: JudgedSound, adapter: Adapter | None = None
) -> None:
    """GRPO of `speaker` in the run's folder. Every `judge_every` steps an answer is kept to be heard, and where the judge is not the reward
    it judges some in full: the gap between the two is how reward hacking shows.

    Args:
        warm: the model before alignment. adapter: see `grpo_stage`.
    """
    recipe, out = run.recipe, run.out / "grpo"
    out.mkdir(parents=True, exist_ok=True)
    queries = read_queries(recipe.queries) if recipe.queries else run.world.queries("train")

    def after(number: int, metrics: dict, experience: Experience) -> None:
        if not run.ranks.first or (number + 1) % recipe.grpo.judge_every:
            return
        codes = experience.codes[0]
        if len(codes):
            (out / "samples").mkdir(exist_ok=True)
            name = f"step-{number + 1:06d}.{experience.queries[0].id}.wav"
            write_wav(out / "samples" / name, speaker.speak([codes], 0)[0])
        if reward is not heard:
            metrics |= _gap(experience, recipe.grpo.judge_answers, recipe.grpo.group, recipe.seed + number, heard)

    stage = grpo_stage(out, recipe.grpo, recipe.seed, speaker, warm, queries, reward, after, adapter, run.ranks)
    train(stage, run.watch("grpo"), run.say)


def _gap(experience: Experience, count: int, group: int, seed: int, heard: JudgedSound) -> dict[str, float]:
    """The judge's mean score of some answers, and by how much the reward says more."""
    some = np.random.default_rng([seed, 43]).permutation(len(experience.codes))[:count]
    rows = heard.hear([experience.queries[i // group] for i in some], [experience.codes[i] for i in some])
    pairs = [(row.score, float(experience.rewards[i])) for row, i in zip(rows, some, strict=True) if row.score is not None]
    if not pairs:
        return {}
    judged, rewarded = np.mean(pairs, axis=0)
    return {"judge_score": float(judged), "judge_gap": float(rewarded - judged)}


def has_voice(base: object) -> bool:
    """Whether a recipe's base is a checkpoint with a voice of its own, and not one that speaks a world's codec."""
    config = local_folder(base.folder, download=False) / "config.json" if isinstance(base, CheckpointBase) else None
    return config is not None and config.is_file() and not SpeechLMConfig.load(config).encoder_features


def align_kimi(run: Run) -> None:
    """SFT and GRPO of a checkpoint of Kimi-Audio, into `out/grpo/model`."""
    recipe, settings, ranks, folder = run.recipe, run.recipe.grpo, run.ranks, run.out / "grpo" / "model"
    if is_complete(folder):
        return
    judge = judge_of(run)
    warmed = recipe.sft.model_copy(update={"seed": recipe.seed})
    warm, tokenizer = warm_up(warmed, run.world, run.out / "sft", run.say, run.watch, ranks)
    warm.eval().requires_grad_(False)
    reference = KimiPolicy(warm, tokenizer)
    heard = JudgedSound(reference, judge)
    reward = reward_of(run, reference, heard)
    run.say(f"aligning by GRPO for {settings.train.steps} steps: {folder} is not there")
    model = warm if settings.lora is not None else load_model(run.out / "sft" / "model")[0]
    model.checkpoint_blocks(settings.checkpointing)
    adapter = make_adapter(model, settings.lora, recipe.seed)
    mirror, shards = lay_in_parts(model, warm, settings.train, ranks)
    align_by_sound(run, KimiPolicy(model, tokenizer, mirror), reference, reward, heard, adapter)
    shards.gather()
    with ranks.in_turn():
        if ranks.first:
            publish_trained(folder, model, tokenizer, adapter, settings.lora)


def align_omni(run: Run, base: OmniBase) -> None:
    """SFT where there is something to teach, then GRPO of the part that is to learn, into `out/grpo/model`.

    Raises:
        UsageError: several processes are to share it, or the recipe asks for an adapter.
    """
    recipe, folder = run.recipe, run.out / "grpo" / "model"
    if run.ranks.size > 1:
        raise UsageError("Qwen2.5-Omni is aligned in one process: start it without torchrun")
    refuse_lora(recipe.sft.lora, "sft.lora")
    refuse_lora(recipe.grpo.lora, "grpo.lora")
    if is_complete(folder):
        return
    judge = judge_of(run)
    warm, _ = warm_omni(recipe.sft.model_copy(update={"seed": recipe.seed}), base, run.world, run.out / "sft", run.say, run.watch)
    reference = OmniPolicy(load_omni(base, warm), None)
    heard = JudgedSound(reference, judge)
    reward = reward_of(run, reference, heard)
    run.say(f"aligning the {_PARTS[base.part]} by GRPO for {recipe.grpo.train.steps} steps: {folder} is not there")
    omni = load_omni(base, warm)
    omni.checkpointing = recipe.grpo.checkpointing
    align_by_sound(run, OmniPolicy(omni, base.part), reference, reward, heard)
    with publish_folder(folder) as temporary:
        omni.save(temporary)


_PARTS = {"talker": "talker", "thinker": "thinker", "both": "talker and the thinker"}
