"""Distils the judge into the reward model."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paras2s_cli.audio.read import read_audio
from paras2s_cli.data.rows import Failure
from paras2s_cli.data.worlds import Spoken, World
from paras2s_cli.judge.ears import spell
from paras2s_cli.judge.listener import SmallListener
from paras2s_cli.judge.pair_digits import Side
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.judge.reward import RewardModel
from paras2s_cli.judge.stages import Utterance
from paras2s_cli.judge.vocabulary import Vocabulary
from paras2s_cli.models.prompt import codes_of
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.recipe.aligning import DistillRecipe
from paras2s_cli.recipe.training import Train
from paras2s_cli.rollout.engine import Rollouts, rollout
from paras2s_cli.rollout.sampling import Sampling
from paras2s_cli.train.loop import Stage, precision
from paras2s_cli.train.prompts import prompts_of
from paras2s_cli.train.slots import slot_words

HEARD = 128
"""Queries or answers that the reward model hears at a time."""
LIMIT = 56


@dataclass(frozen=True)
class Judged:
    """An answer to a query, and what the judge heard on both sides. score: 1..5, or None with the failure; reason: the judge's."""

    query: Spoken
    codes: np.ndarray
    asked: Utterance
    said: Utterance
    score: float | None
    failure: Failure | None = None
    reason: str = ""


def answer_queries(
    model: SpeechLM, queries: Sequence[Spoken], *, sampling: Sampling, seed: int, group: int = 1, limit: int = LIMIT, first: int = 0
) -> list[Rollouts]:
    """Answers to many queries; row ids count through from `first`."""
    prompts = prompts_of(model, queries)
    ids = torch.arange(first, first + len(queries) * group)
    return [rollout(model, prompts, group=group, sampling=sampling, seed=seed, row_ids=ids, limit=limit)]


def codes_of_all(model: SpeechLM, rollouts: Sequence[Rollouts]) -> list[np.ndarray]:
    """The audio codes of every answer; an answer that did not end has none, for it cannot be an answer."""
    return [
        codes if ended else np.zeros(0, dtype=np.int64)
        for r in rollouts
        for codes, ended in zip(codes_of(r.answers, model.config), r.ended.tolist(), strict=True)
    ]


def hear_codes(judge: Judge, world: World, codes: Sequence[np.ndarray]) -> list[Utterance]:
    """What the judge hears in answers, as sound. Equal codes are decoded once."""
    distinct = {row.tobytes(): row for row in codes}
    waves = dict(zip(distinct, world.decode(list(distinct.values())), strict=True))
    return judge.hear([waves[row.tobytes()] for row in codes], "answer")


def hear_queries(judge: Judge, queries: Sequence[Spoken]) -> list[Utterance]:
    """What the judge hears in recorded queries."""
    distinct = {q.id: q for q in queries}
    waves = [read_audio(q.path) for q in distinct.values()]
    heard = dict(zip(distinct, judge.hear(waves, "query"), strict=True))
    return [heard[q.id] for q in queries]


def judge_answers(judge: Judge, world: World, queries: Sequence[Spoken], codes: Sequence[np.ndarray]) -> list[Judged]:
    """The full judge on answers of a model of this world."""
    asked, said = hear_queries(judge, queries), hear_codes(judge, world, codes)
    return judge_heard(judge, queries, codes, asked, said, closed=True)


def judge_heard(
    judge: Judge,
    queries: Sequence[Spoken],
    codes: Sequence[np.ndarray],
    asked: Sequence[Utterance],
    said: Sequence[Utterance],
    *,
    closed: bool,
    requirements: Sequence[str | None] | None = None,
) -> list[Judged]:
    """What the judge's last stage says of what was heard on both sides; `closed` and `requirements` as for a scorer."""
    verdicts = judge.scorer.score(list(zip(asked, said, strict=True)), closed=closed, requirements=requirements)
    rows = zip(queries, codes, asked, said, strict=True)
    return [Judged(*row, v.score, v.failure, v.reason) for row, v in zip(rows, verdicts, strict=True)]


class Lessons:
    """What the judge teaches: digits of pairs, and what it heard.

    Args:
        tones: those of answers. slots: words of queries and answers that may be renamed on both sides without a change of digit.
    """

    def __init__(self, judge: Judge, vocabulary: Vocabulary, tones: Sequence[str], slots: Collection[str] = ()) -> None:
        self.scorer, self.vocabulary, self.tones = judge.scorer, vocabulary, list(tones)
        self.slots = torch.tensor(sorted(vocabulary.columns[w] for w in slots if w in vocabulary.columns), dtype=torch.long)

    def heard_words(self, utterances: Sequence[Utterance]) -> Tensor:
        """[B, words] float, 1 where a word was heard."""
        return self.vocabulary.words_in([u.heard.text for u in utterances])

    def heard_tones(self, utterances: Sequence[Utterance]) -> Tensor:
        """[B, tones] float, the describer's probabilities."""
        return torch.tensor([[u.toned.style(name) for name in self.tones] for u in utterances])

    def digits(self, asked: Sequence[Utterance], said: Sequence[Utterance]) -> Tensor:
        """[Q, A] int64: digits of all pairs less one, -100 where there is no score."""
        verdicts = self.scorer.score([(q, a) for q in asked for a in said], closed=True)
        flat = [-100 if v.score is None else v.score - 1 for v in verdicts]
        return torch.tensor(flat).view(len(asked), len(said))

    def renaming(self, generator: torch.Generator) -> Tensor:
        """A random permutation [words] of the slots' words among themselves.

        Few topics meet each kind of query; by heart, "this kind and the market" is as good a rule as "both speak of the same".
        """
        order = torch.arange(len(self.vocabulary))
        order[self.slots] = self.slots[torch.randperm(len(self.slots), generator=generator)]
        return order


def vocabulary_of(world: World) -> list[str]:
    """Every word that can be heard, in order."""
    return sorted({w for role in ("query", "answer") for text in world.known_texts(role) for w in spell(text).split()})


def make_reward_model(model: SpeechLM, listener: SmallListener, world: World, seed: int) -> RewardModel:
    """An untrained reward model on the trunk of `model`, with the judge's ears."""
    torch.manual_seed(seed)
    counts = {"query_tones": len(world.query_tones), "answer_tones": len(world.answer_tones)}
    return RewardModel(model, listener.transcriber, listener.describer, words=vocabulary_of(world), **counts)


def make_lessons(judge: Judge, world: World, vocabulary: Vocabulary) -> Lessons:
    """The lessons of a world's judge."""
    return Lessons(judge, vocabulary, world.answer_tones, slot_words([q.row["text"] for q in world.queries("train")]))


def reading_loss(reward: RewardModel, lessons: Lessons, rows: Sequence[Judged]) -> Tensor:
    """Cross-entropy of the words and tones that are read off the codes of answers, on what the judge heard in their sound.

    The words' is summed over the vocabulary. An answer without codes teaches nothing; without any other, the loss is 0.
    """
    rows = [r for r in rows if len(r.codes)]
    if not rows:
        return torch.zeros((), requires_grad=True)
    words, tones = reward.read([r.codes for r in rows])
    said = [r.said for r in rows]
    spotted = F.binary_cross_entropy_with_logits(words, lessons.heard_words(said))
    return len(lessons.vocabulary) * spotted + F.cross_entropy(tones, lessons.heard_tones(said))


def digits_loss(reward: RewardModel, lessons: Lessons, queries: Side, answers: Side, target: Tensor, generator: torch.Generator) -> Tensor:
    """Cross-entropy of the digits of all pairs of Q queries and A answers, under a renaming. target: [Q, A], as `Lessons.digits`."""
    order = lessons.renaming(generator)
    logits = reward.digits(queries.renamed(order), answers.renamed(order))
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def reading_stage(folder: Path, settings: Train, seed: int, reward: RewardModel, lessons: Lessons, rows: Sequence[Judged]) -> Stage:
    """The stage in which the tower learns to read codes."""

    def step(number: int) -> dict:
        rng = np.random.default_rng([seed, 31, number])
        picked = [rows[i] for i in rng.choice(len(rows), min(settings.batch, len(rows)), replace=False)]
        with precision(settings):
            loss = reading_loss(reward, lessons, picked)
        loss.backward()
        return {"loss": float(loss.detach())}

    return Stage(folder, {"tower": reward.answer}, settings, step)


def grading_stage(
    folder: Path,
    settings: Train,
    seed: int,
    reward: RewardModel,
    lessons: Lessons,
    asked: Sequence[tuple[Spoken, Utterance]],
    rows: Sequence[Judged],
) -> Stage:
    """The stage in which the digits are learnt, of every query with every answer; what was heard in them stays as it is.

    Args:
        asked: queries and what the judge heard in them. settings.batch of them meet as many answers each step.
    """
    queries = heard_in(reward.queries, [q.features for q, _ in asked])
    answers = heard_in(reward.answers, [r.codes for r in rows])

    def step(number: int) -> dict:
        rng = np.random.default_rng([seed, 37, number])
        q = rng.choice(len(asked), min(settings.batch, len(asked)), replace=False)
        a = rng.choice(len(rows), min(settings.batch, len(rows)), replace=False)
        target = lessons.digits([asked[i][1] for i in q], [rows[i].said for i in a])
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        torch.manual_seed(seed * 1_000_003 + number)  # dropout draws from the global generator
        loss = digits_loss(reward, lessons, queries[q], answers[a], target, generator)
        loss.backward()
        return {"loss": float(loss.detach())}

    return Stage(folder, {"digits": reward.digits}, settings, step)


@torch.no_grad()
def heard_in(side: Callable[[list], Side], items: Sequence) -> Side:
    """A side of many items, in batches."""
    parts = [side(list(items[i : i + HEARD])) for i in range(0, len(items), HEARD)]
    return Side(torch.cat([p.words for p in parts]), torch.cat([p.manner for p in parts]))


def sampled_answers(
    recipe: DistillRecipe, model: SpeechLM, judge: Judge, world: World, queries: Sequence[Spoken], first: int
) -> list[Judged]:
    """An answer to each query sampled from the warm model, and judged in full; row ids count through from `first`."""
    rolled = answer_queries(model, queries, sampling=Sampling(temperature=recipe.temperature), seed=recipe.seed, first=first)
    return judge_answers(judge, world, queries, codes_of_all(model, rolled))


def overheard_queries(judge: Judge, world: World) -> list[tuple[Spoken, Utterance]]:
    """Training sentences in every tone of a query and carrier sentences, and what the judge hears in them."""
    spoken = [*(u for u in world.polytone() if u.row["tone"] in world.query_tones), *world.carriers()]
    return list(zip(spoken, hear_queries(judge, spoken), strict=True))


def agreement(rewards: Callable[[Sequence[Spoken], Sequence[np.ndarray]], Tensor], rows: Sequence[Judged]) -> float:
    """Pearson correlation of rewards of sound and judge on own pairs; NaN when either does not vary."""
    scored = [r for r in rows if r.score is not None]
    given = rewards([r.query for r in scored], [r.codes for r in scored]).numpy()
    judged = np.array([r.score for r in scored], dtype=np.float64)
    if len(scored) < 2 or given.std() == 0 or judged.std() == 0:
        return float("nan")
    return float(np.corrcoef(given, judged)[0, 1])
