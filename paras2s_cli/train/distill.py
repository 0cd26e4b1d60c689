"""Distils the judge into the reward model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paras2s_cli.data.worlds import Spoken, World
from paras2s_cli.judge.ears import augment, pad, spell
from paras2s_cli.judge.listener import SmallListener
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.judge.reward import RewardModel
from paras2s_cli.judge.stages import Utterance
from paras2s_cli.models.prompt import codes_of, spoken_queries
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.recipe.schema import DistillRecipe, Train
from paras2s_cli.rollout.engine import Rollouts, rollout
from paras2s_cli.rollout.sampling import Sampling
from paras2s_cli.train.loop import Stage, precision

ROWS = 128
"""Answers decoded at a time."""
LIMIT = 56
OVERHEARD = 16
"""Queries of a step that nobody has answered."""


@dataclass(frozen=True)
class Judged:
    """An answer to a query, and what the judge heard on both sides. score: 1..5 or None."""

    query: Spoken
    codes: np.ndarray
    asked: Utterance
    said: Utterance
    score: float | None


def answer_queries(
    model: SpeechLM, queries: Sequence[Spoken], *, sampling: Sampling, seed: int, group: int = 1, limit: int = LIMIT
) -> list[Rollouts]:
    """Answers to many queries, in batches; row ids count through."""
    found = []
    size = max(1, ROWS // group)
    for start in range(0, len(queries), size):
        part = queries[start : start + size]
        prompts = spoken_queries([q.features for q in part], model.config, model.specials)
        ids = torch.arange(start * group, (start + len(part)) * group)
        found.append(rollout(model, prompts, group=group, sampling=sampling, seed=seed, row_ids=ids, limit=limit))
    return found


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
    import soundfile

    distinct = {q.id: q for q in queries}
    waves = [soundfile.read(q.path, dtype="float32")[0] for q in distinct.values()]
    heard = dict(zip(distinct, judge.hear(waves, "query"), strict=True))
    return [heard[q.id] for q in queries]


def judge_answers(judge: Judge, world: World, queries: Sequence[Spoken], codes: Sequence[np.ndarray]) -> list[Judged]:
    """The full judge on answers of a model of this world."""
    asked, said = hear_queries(judge, queries), hear_codes(judge, world, codes)
    verdicts = judge.scorer.score(list(zip(asked, said, strict=True)), closed=True)
    return [Judged(*row, v.score) for row, v in zip(zip(queries, codes, asked, said, strict=True), verdicts, strict=True)]


class Lessons:
    """What a batch of judged answers teaches: digits of all pairs in it, and what was heard. tones: those of answers."""

    def __init__(self, judge: Judge, vocabulary: Sequence[str], tones: Sequence[str]) -> None:
        self.scorer = judge.scorer
        self.words = {word: i for i, word in enumerate(vocabulary)}
        self.tones = list(tones)

    def words_in(self, texts: Sequence[str]) -> Tensor:
        """[B, words] float, 1 where a word is in the text."""
        table = torch.zeros(len(texts), len(self.words))
        for i, text in enumerate(texts):
            for word in spell(text).split():
                if word in self.words:
                    table[i, self.words[word]] = 1.0
        return table

    def heard_words(self, utterances: Sequence[Utterance]) -> Tensor:
        """[B, words] float, 1 where a word was heard."""
        return self.words_in([u.heard.text if u.heard.known else "" for u in utterances])

    def heard_tones(self, utterances: Sequence[Utterance]) -> Tensor:
        """[B, tones] float, the describer's probabilities."""
        return torch.tensor([[u.toned.style(name) for name in self.tones] for u in utterances])

    def digits(self, asked: Sequence[Utterance], said: Sequence[Utterance]) -> Tensor:
        """[Q, A] int64: digits of all pairs less one, -100 where there is no score."""
        verdicts = self.scorer.score([(q, a) for q in asked for a in said], closed=True)
        flat = [-100 if v.score is None else v.score - 1 for v in verdicts]
        return torch.tensor(flat).view(len(asked), len(said))


def vocabulary_of(world: World) -> list[str]:
    """Every word that can be heard, in order."""
    return sorted({w for role in ("query", "answer") for text in world.known_texts(role) for w in spell(text).split()})


def make_reward_model(model: SpeechLM, listener: SmallListener, world: World, seed: int) -> RewardModel:
    """An untrained reward model on the trunk of `model`, with the judge's ear for tones."""
    torch.manual_seed(seed)
    counts = {"query_tones": len(world.query_tones), "answer_tones": len(world.answer_tones)}
    return RewardModel(model, listener.describer, words=len(vocabulary_of(world)), **counts)


def reward_loss(
    reward: RewardModel,
    lessons: Lessons,
    rows: Sequence[Judged],
    generator: torch.Generator,
    overheard: Sequence[tuple[Spoken, Utterance]] = (),
) -> tuple[Tensor, dict]:
    """Cross-entropy on the judge's digits, half of it on own pairs and half on all pairs of the batch, and on what was heard.

    Args:
        overheard: more queries, and what the judge heard in them; they are paired with the answers of the rows.
    """
    asked, said = [*(r.asked for r in rows), *(u for _, u in overheard)], [r.said for r in rows]
    clean = [*(r.query.features for r in rows), *(q.features for q, _ in overheard)]
    x, lengths = pad(clean)
    augmented = [t[:n].numpy() for t, n in zip(augment(x, generator), lengths, strict=True)]
    spoken = [r.codes if len(r.codes) else np.zeros(1, dtype=np.int64) for r in rows]
    queries, answers = reward.queries(clean, augmented), reward.answers(spoken)
    target = lessons.digits(asked, said)
    logits = reward.digits(queries.vector[:, None], answers.vector[None, :])
    everyone = F.cross_entropy(logits.flatten(0, 1), target.flatten())
    own = F.cross_entropy(logits.diagonal().T, target.diagonal())
    heard = torch.zeros(())
    for side, utterances in ((queries, asked), (answers, said)):
        heard = heard + 20 * F.binary_cross_entropy_with_logits(side.words, lessons.heard_words(utterances))
    heard = heard + 4 * F.binary_cross_entropy_with_logits(reward.tones(answers.vector).float(), lessons.heard_tones(said))
    return own + everyone + heard, {"own": float(own.detach()), "pairs": float(everyone.detach()), "heard": float(heard.detach())}


def distill_stage(
    folder: Path,
    settings: Train,
    seed: int,
    reward: RewardModel,
    lessons: Lessons,
    rows: Sequence[Judged],
    overheard: Sequence[tuple[Spoken, Utterance]] = (),
) -> Stage:
    """The stage that trains a reward model on judged answers. overheard: as in `reward_loss`, OVERHEARD of them a step."""

    def step(number: int) -> dict:
        rng = np.random.default_rng([seed, 31, number])
        picked = [rows[i] for i in rng.choice(len(rows), min(settings.batch, len(rows)), replace=False)]
        more = [overheard[i] for i in rng.choice(len(overheard), min(OVERHEARD, len(overheard)), replace=False)]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        torch.manual_seed(seed * 1_000_003 + number)  # dropout draws from the global generator
        with precision(settings):
            loss, metrics = reward_loss(reward, lessons, picked, generator, more)
        loss.backward()
        return {"loss": float(loss.detach()), **metrics}

    return Stage(folder, {"reward": reward}, settings, step)


def sampled_answers(
    recipe: DistillRecipe, model: SpeechLM, judge: Judge, world: World, split: str, count: int, say: Callable[[str], None]
) -> list[Judged]:
    """`count` answers sampled from the warm model to the queries of a split in turn, judged in full."""
    pool = world.queries(split)
    order = np.random.default_rng([recipe.seed, 37]).permutation(len(pool))
    queries = [pool[order[i % len(pool)]] for i in range(count)]
    say(f"judging {count} answers to {split} queries")
    sampling = Sampling(temperature=recipe.temperature)
    codes = codes_of_all(model, answer_queries(model, queries, sampling=sampling, seed=recipe.seed))
    return judge_answers(judge, world, queries, codes)


def overheard_queries(judge: Judge, world: World) -> list[tuple[Spoken, Utterance]]:
    """Training sentences in every tone of a query, and what the judge hears in them."""
    spoken = [u for u in world.polytone() if u.row["tone"] in world.query_tones]
    return list(zip(spoken, hear_queries(judge, spoken), strict=True))


def agreement(reward: RewardModel, rows: Sequence[Judged]) -> float:
    """Pearson correlation of reward and judge on own pairs; NaN when either does not vary."""
    scored = [r for r in rows if r.score is not None]
    given = reward.reward([r.query.features for r in scored], [r.codes for r in scored]).numpy()
    judged = np.array([r.score for r in scored], dtype=np.float64)
    if len(scored) < 2 or given.std() == 0 or judged.std() == 0:
        return float("nan")
    return float(np.corrcoef(given, judged)[0, 1])
