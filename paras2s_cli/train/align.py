"""ParaS2SAlign from end to end: judge, base, SFT, reward model, GRPO. What is there already is taken; what is missing is made first."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from paras2s_cli.audio.workers import threads_of
from paras2s_cli.data.cache import is_complete, publish_folder
from paras2s_cli.data.worlds import Spoken, World, lazy_world
from paras2s_cli.errors import Paras2sError, UsageError
from paras2s_cli.judge.hearing.pair_lm import PairLM
from paras2s_cli.judge.listener import SmallListener
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.models.folder import load_model
from paras2s_cli.models.lora import check_peft
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.recipe.aligning import AlignRecipe, DistillRecipe
from paras2s_cli.recipe.training import Train
from paras2s_cli.train.adapters import make_adapter, publish_trained
from paras2s_cli.train.distill import (
    Judged,
    agreement,
    grading_stage,
    make_lessons,
    make_reward_model,
    overheard_queries,
    reading_stage,
    sampled_answers,
)
from paras2s_cli.train.grpo import Experience, grpo_stage
from paras2s_cli.train.loop import Say, Stage, WatchOf, bf16, train
from paras2s_cli.train.monitor import Monitor
from paras2s_cli.train.pieces import Answered, Pieces, weights_key
from paras2s_cli.train.policy import NativePolicy
from paras2s_cli.train.polytone import load_listener
from paras2s_cli.train.ranks import ALONE, Ranks, threads_here
from paras2s_cli.train.reward import CodeReward, Reward
from paras2s_cli.train.shards import Mirror, Shards
from paras2s_cli.train.sound_reward import SoundReward, hearing_stage
from paras2s_cli.train.supervised import check_together, warm_up


@dataclass
class Run:
    """What the stages of one `align` share."""

    recipe: AlignRecipe
    out: Path
    say: Say
    watch: WatchOf
    world: World
    ranks: Ranks = ALONE

    @cached_property
    def listener(self) -> SmallListener:
        """The pocket judge's ears, made if the cache lacks them."""
        with self.ranks.in_turn():
            return load_listener(self.recipe.judge, self.world, self.say, self.watch)

    @cached_property
    def judge(self) -> Judge:
        """The judge of the world."""
        return Judge(self.listener, self.world.scorer())


def prepare(recipe: AlignRecipe, out: Path, say: Say, watch: WatchOf, ranks: Ranks = ALONE) -> Run:
    """A run whose world and judge are made when they are first needed, where the cache lacks them.

    Raises:
        UsageError: the recipe cannot be trained by several ranks.
    """
    if ranks.size > 1:
        check_together(recipe.sft.train, "sft.train")
        check_together(recipe.grpo.train, "grpo.train")
        if recipe.grpo.prompts < ranks.size:
            raise UsageError(f"grpo.prompts: {recipe.grpo.prompts} a step are too few for {ranks.size} processes, which take whole groups")
    if recipe.sft.lora is not None or recipe.grpo.lora is not None or recipe.reward.audio_lm is not None:
        check_peft()
    torch.set_num_threads(threads_here(threads_of(recipe.threads)))
    count = watch("render")
    world = lazy_world(recipe.world, recipe.threads, say, lambda done, all_: count(done, {"of": all_}))
    return Run(recipe, out, say, watch, world, ranks)


def warm_model(run: Run) -> tuple[SpeechLM, TextTokenizer]:
    """The model after SFT. Raises UsageError when its codes are not those of the world's codec, so that nobody could hear them."""
    settings = run.recipe.sft.model_copy(update={"seed": run.recipe.seed})
    model, tokenizer = warm_up(settings, run.world, run.out / "sft", run.say, run.watch, run.ranks)
    if model.config.codes != run.world.codec.size:
        raise UsageError(
            f"{run.out / 'sft' / 'model'} speaks {model.config.codes} codes and the codec of {run.world.name} has {run.world.codec.size}: "
            "`paras2s sft` can train it, and align cannot hear it"
        )
    return model, tokenizer


def reward_model(run: Run, warm: SpeechLM, tokenizer: TextTokenizer) -> Reward:
    """The reward model, distilled from the judge on the warm model's answers.

    Raises:
        UsageError: the audio language model that the recipe names cannot be loaded.
        Paras2sError: it agrees with the judge less than the recipe's floor.
    """
    settings = run.recipe.reward.model_copy(update={"seed": run.recipe.seed})
    reward: CodeReward | SoundReward
    if settings.audio_lm is not None:
        reward = SoundReward(PairLM(settings.audio_lm, "reward.audio_lm", settings.seed), run.world.decode, settings.train)
    else:
        model = make_reward_model(warm, run.listener, run.world, settings.seed)
        lessons = make_lessons(run.judge, run.world, model.vocabulary)
        reward = CodeReward(model, lessons, tokenizer.decode, run.recipe.grpo.agreement, run.recipe.grpo.train)
    return distilled(run, settings, reward, run.judge, run.world.queries, partial(sampled_answers, settings, warm, run.judge, run.world))


def distilled(
    run: Run,
    settings: DistillRecipe,
    reward: CodeReward | SoundReward,
    judge: Judge,
    pool: Callable[[str], Sequence[Spoken]],
    answered: Answered,
) -> CodeReward | SoundReward:
    """A reward model as it is in the run's folder; taught there first if it is missing.

    Args:
        pool: the queries of the split `train` or `validation`. answered: the warm model's answers, by `judge`.

    Raises:
        UsageError: see `Pieces.of`.
        Paras2sError: it agrees with the judge less than the recipe's floor.
    """
    folder = run.out / "reward" / "model"
    if not is_complete(folder):
        run.say(f"distilling the judge into a reward model: {folder} is not there")
        warm = weights_key(run.out / "sft" / "model")
        pieces = Pieces(run.out / "reward" / "answers", settings.seed, warm, judge, answered, run.say, run.watch)
        rows = pieces.of("train", pool("train"), settings.answers)
        for stage, part in _stages_of(run, settings, reward, rows):
            part.train()
            train(stage, run.watch(stage.folder.name), run.say)
            reward.module.eval()
        held = pieces.of("validation", pool("validation"), settings.held_out)
        pearson = agreement(reward.rewards, held)
        run.say(f"the reward model agrees with the judge on {len(held)} held-out pairs: Pearson {pearson:.3f}")
        if settings.floor > -1 and not pearson >= settings.floor:
            raise Paras2sError(
                f"the reward model's agreement with the judge, {pearson:.3f}, is below reward.floor={settings.floor}: raise reward.answers "
                "or reward.train.steps, or lower the floor"
            )
        with publish_folder(folder) as temporary:
            reward.save(temporary)
            told = {"pearson": None if math.isnan(pearson) else round(pearson, 6), "pairs": len(held)}
            (temporary / "agreement.json").write_text(json.dumps(told) + "\n")
    reward.load(folder)
    reward.module.eval()
    return reward


def _stages_of(
    run: Run, settings: DistillRecipe, reward: CodeReward | SoundReward, rows: Sequence[Judged]
) -> Iterator[tuple[Stage, nn.Module]]:
    """The stages in which a reward model is made, one after the other, and what of it is in training mode meanwhile."""

    def folder(name: str) -> Path:
        made = run.out / "reward" / name
        made.mkdir(parents=True, exist_ok=True)
        return made

    if isinstance(reward, SoundReward):
        yield hearing_stage(folder("hearing"), settings.train, settings.seed, reward, rows), reward.module
        return
    assert settings.digits is not None, "the recipe was checked"
    model, lessons = reward.module, reward.lessons
    yield reading_stage(folder("reading"), settings.train, settings.seed, model, lessons, rows), model
    asked = [*{r.query.id: (r.query, r.asked) for r in rows}.values(), *overheard_queries(run.judge, run.world)]
    yield grading_stage(folder("grading"), settings.digits, settings.seed, model, lessons, asked, rows), model.digits


def lay_in_parts(policy: SpeechLM, warm: SpeechLM, settings: Train, ranks: Ranks) -> tuple[Mirror | None, Shards]:
    """Lays both models' weights in parts among the ranks, and keeps a whole copy of `policy` for rollouts, which one process has no need
    of."""
    if ranks.size == 1:
        return None, Shards(policy, ranks, bf16=bf16(settings))
    mirror, shards = Mirror(policy), Shards(policy, ranks, bf16=bf16(settings))
    if warm is not policy:
        Shards(warm, ranks, bf16=bf16(settings))
    return mirror, shards


def aligned_model(run: Run) -> SpeechLM:
    """The model after GRPO."""
    folder = run.out / "grpo" / "model"
    if is_complete(folder):
        return load_model(folder)[0]
    run.judge  # noqa: B018 (first, as it takes longest: what comes then is the run's own)
    warm, tokenizer = warm_model(run)
    ranks = run.ranks
    with ranks.in_turn():
        reward = reward_model(run, warm, tokenizer)
    run.say(f"aligning by GRPO for {run.recipe.grpo.train.steps} steps: {folder} is not there")
    for model in (warm, reward.module):
        model.eval().requires_grad_(False)
    settings = run.recipe.grpo
    policy = warm if settings.lora is not None else load_model(run.out / "sft" / "model")[0]
    policy.checkpoint_blocks(settings.checkpointing)
    adapter = make_adapter(policy, settings.lora, run.recipe.seed)
    (run.out / "grpo").mkdir(parents=True, exist_ok=True)
    mirror, shards = lay_in_parts(policy, warm, settings.train, ranks)
    monitor = None
    if ranks.first:
        monitor = Monitor(run.out / "grpo", settings, run.recipe.seed, run.judge, run.world, reward, tokenizer)

    def after(number: int, metrics: dict, experience: Experience) -> None:
        if monitor:
            monitor.after(number, metrics, experience)
        if ranks.total(metrics.get("refitted", 0))[0]:
            ranks.spread(reward.module)

    stage = grpo_stage(
        run.out / "grpo",
        settings,
        run.recipe.seed,
        NativePolicy(policy, mirror),
        NativePolicy(warm),
        run.world.queries("train"),
        reward.rewards,
        after,
        adapter,
        ranks,
    )
    stage.modules = {**stage.modules, "reward": reward.module}
    train(stage, run.watch("grpo"), run.say)
    shards.gather()
    with ranks.in_turn():
        if ranks.first:
            publish_trained(folder, policy, tokenizer, adapter, settings.lora)
    return policy
