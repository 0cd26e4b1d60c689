"""The pocket world as the rest of the package sees it (`data.worlds.World`)."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np

from paras2s_cli.audio.workers import map_in_workers
from paras2s_cli.data.worlds import Progress, Spoken
from paras2s_cli.judge.ears import spell
from paras2s_cli.pocket.build import Rendering, is_rendered, load_rendering, world_key
from paras2s_cli.pocket.codec import decode_from
from paras2s_cli.pocket.rubric import RubricScorer, fit, index
from paras2s_cli.pocket.world import Sentence, load_world


def load(workers: int, say: Callable[[str], None], progress: Progress | None = None) -> "PocketWorld":
    """The pocket world, rendered first if the cache lacks it."""
    if not is_rendered():
        say("rendering the pocket world's speech: it is not in the cache")
    return PocketWorld(load_rendering(workers, progress), workers)


GARBLED = 0.5
"""Codes that differ from every rendering in more than this share of places are no rendering of anything."""


class PocketWorld:
    """See `data.worlds.World`."""

    name = "pocket"

    def __init__(self, rendering: Rendering, workers: int) -> None:
        self.rendering, self.workers = rendering, workers
        self.key = world_key()
        self.codec = rendering.codec
        self.rules = load_world()
        self.query_tones = self.rules.query_tones()
        self.answer_tones = self.rules.tones

    def queries(self, split: str) -> list[Spoken]:
        return self.rendering.queries(split)

    def polytone(self) -> list[Spoken]:
        return self.rendering.polytone()

    def carriers(self) -> list[Spoken]:
        return self.rendering.carriers()

    def answers(self) -> list[Spoken]:
        return list(self._answers.values())

    def known_texts(self, role: str) -> list[str]:
        return list(index().sentences if role == "query" else index().answers)

    def scorer(self) -> RubricScorer:
        return RubricScorer()

    def best_answers(self, query: Spoken) -> list[Spoken]:
        return self._best[query.row["sentence"], query.row["style"]]

    def blind_answer(self, text: str) -> Spoken:
        asked = index().sentences.get(spell(text))
        if asked is None:
            return self._answers["note", self.rules.topics[0], "calm"]
        kinds = list(self.rules.answers)
        # Both styles are as likely to a reader: the answer with the best mean grade over the two.
        mean = [
            np.mean([self._grade(style, asked.topic, self._answers[k, asked.topic, "calm"]) for style in asked.contrast]) for k in kinds
        ]
        return self._answers[kinds[int(np.argmax(mean))], asked.topic, "calm"]

    def random_answer(self, query: Spoken, rng: np.random.Generator, *, same_topic: bool = True) -> Spoken:
        topics, kinds, tones = self.rules.topics, list(self.rules.answers), self.rules.tones
        topic = self._topic(query) if same_topic else topics[rng.integers(len(topics))]
        return self._answers[kinds[rng.integers(len(kinds))], topic, tones[rng.integers(len(tones))]]

    def truth(self, query: Spoken, answer: Spoken | None) -> float:
        return 1.0 if answer is None else self._grade(query.row["style"], self._sentence(query).topic, answer)

    def recognise(self, codes: np.ndarray) -> Spoken | None:
        candidates = self.answers()
        distances = edit_distances(codes, [a.codes for a in candidates if a.codes is not None])
        longest = [max(len(codes), len(a.codes)) for a in candidates if a.codes is not None]
        shares = distances / np.array(longest)
        best = int(np.argmin(shares))
        return candidates[best] if shares[best] <= GARBLED else None

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return map_in_workers(partial(decode_from, str(self.rendering.folder / "codec.safetensors")), codes, self.workers)

    @cached_property
    def _answers(self) -> dict[tuple[str, str, str], Spoken]:
        texts = {a.name: a for a in self.rules.answer_texts()}
        return {(texts[u.row["sentence"]].kind, texts[u.row["sentence"]].topic, u.row["tone"]): u for u in self.rendering.answers()}

    @cached_property
    def _best(self) -> dict[tuple[str, str], list[Spoken]]:
        found = {}
        for sentence in self.rules.sentences():
            for style in sentence.contrast:
                grades = {key: self._fit(style, sentence.topic, a) for key, a in self._answers.items()}
                top = max(grades.values())
                found[sentence.name, style] = [self._answers[key] for key, grade in grades.items() if grade == top]
        return found

    def _topic(self, spoken: Spoken) -> str:
        return self._carried[spoken.row["sentence"]] if spoken.row["purpose"] == "carrier" else self._sentence(spoken).topic

    @cached_property
    def _carried(self) -> dict[str, str]:
        return {c.name: c.topic for c in self.rules.carrier_texts()}

    def _sentence(self, query: Spoken) -> Sentence:
        return index().sentences[spell(query.row["text"])]

    def _fit(self, style: str, topic: str, answer: Spoken) -> tuple[float, int, int]:
        verdict = fit(self.rules, style, topic, index().answers[spell(answer.row["text"])], answer.row["tone"])
        assert verdict.score is not None and verdict.content is not None and verdict.style is not None
        return verdict.score, verdict.content, verdict.style

    def _grade(self, style: str, topic: str, answer: Spoken) -> float:
        return float(self._fit(style, topic, answer)[0])


def edit_distances(codes: np.ndarray, candidates: Sequence[np.ndarray]) -> np.ndarray:
    """Levenshtein distances of one sequence to many, [len(candidates)] int64, in one sweep over all of them."""
    width = max(len(c) for c in candidates)
    table = np.full((len(candidates), width), -1)
    for i, candidate in enumerate(candidates):
        table[i, : len(candidate)] = candidate
    row = np.tile(np.arange(width + 1), (len(candidates), 1))
    steps = np.arange(width + 1)
    for place, code in enumerate(codes.tolist(), 1):
        change = np.minimum(row[:, 1:] + 1, row[:, :-1] + (table != code))
        fresh = np.concatenate([np.full((len(candidates), 1), place), change], 1)
        row = np.minimum.accumulate(fresh - steps, axis=1) + steps  # insertions
    lengths = np.array([len(c) for c in candidates])
    return np.asarray(row[np.arange(len(candidates)), lengths])
