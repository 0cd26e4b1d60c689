"""Worlds by name: where training speech, its texts, its codec and its rubric come from.

A world is asked for by the name that a recipe gives it; nothing imports one.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Spoken:
    """One recorded utterance. row: its manifest line. features: [F, SIZE] of audio.features. codes: [N] int64 where it is an answer."""

    row: dict[str, Any]
    path: Path
    features: np.ndarray
    codes: np.ndarray | None = None

    @property
    def id(self) -> str:
        return str(self.row["id"])


class Codec(Protocol):
    """Audio codes to sound."""

    @property
    def size(self) -> int: ...

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int64 [N] -> float32 [T] at 16 kHz."""
        ...


class World(Protocol):
    """What a world offers. Rows have: id, text, style, dimension (queries), sentence, tone, age, sex, speaker, split."""

    name: str
    key: str
    """Changes whenever the world's content does."""
    workers: int
    codec: Codec
    query_tones: list[str]
    answer_tones: list[str]

    def queries(self, split: str) -> list[Spoken]:
        """The queries of `train`, `validation` or `test`."""
        ...

    def polytone(self) -> list[Spoken]:
        """Training sentences, each in every tone of its role."""
        ...

    def carriers(self) -> list[Spoken]:
        """Training speech on the queries' topics that is no query itself; a base answers and transcribes it too."""
        ...

    def answers(self) -> list[Spoken]:
        """Every answer in every tone."""
        ...

    def known_texts(self, role: str) -> list[str]:
        """The texts that the rubric knows as `query` or `answer`."""
        ...

    def scorer(self) -> Any:
        """The rubric: a `judge.stages.Scorer`."""
        ...

    def best_answers(self, query: Spoken) -> list[Spoken]:
        """The answers of the highest grade, by the truth about the query."""
        ...

    def blind_answer(self, text: str) -> Spoken:
        """What a good answerer who has only read the query would say, in a neutral voice; for a system that hears no style."""
        ...

    def random_answer(self, query: Spoken, rng: np.random.Generator, *, same_topic: bool = True) -> Spoken:
        """An answer of a random kind in a random tone; on the query's topic or on any."""
        ...

    def truth(self, query: Spoken, answer: Spoken | None) -> float:
        """The grade by what is known of both sides; an answer of None is garbled."""
        ...

    def recognise(self, codes: np.ndarray) -> Spoken | None:
        """The answer that codes are a rendering of, by the codes alone; None when they are close to none."""
        ...

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Many code sequences to sound, on all workers."""
        ...


MAKERS = {"pocket": "paras2s_cli.pocket.embedded:load"}

Progress = Callable[[int, int], None]


def load_world(name: str, workers: int, say: Callable[[str], None], progress: Progress | None = None) -> World:
    """A world by name, made if the cache lacks it; `say` is told what has to be made.

    Raises:
        UsageError: a package is missing, or the cache folder cannot be written.
    """
    module, function = MAKERS[name].split(":")
    world: World = getattr(importlib.import_module(module), function)(workers, say, progress)
    return world


def lazy_world(name: str, workers: int, say: Callable[[str], None], progress: Progress | None = None) -> World:
    """The same, made when something of it is first asked for: a run on data of one's own may never do."""
    return _Lazy(lambda: load_world(name, workers, say, progress))


class _Lazy:
    def __init__(self, make: Callable[[], World]) -> None:
        self._make = make

    @cached_property
    def _world(self) -> World:
        return self._make()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)
