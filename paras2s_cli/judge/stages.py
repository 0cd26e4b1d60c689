"""What the judge's three stages say to one another, and what a backend of each has to offer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from paras2s_cli.data.rows import Failure

RATE = 16000
"""Every stage hears mono float32 at this rate, Hz."""

_SILENT_RMS = 10 ** (-60 / 20)


def is_silent(wave: np.ndarray) -> bool:
    """Whether there is nothing above -60 dB of full scale in the mean."""
    return len(wave) == 0 or float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) < _SILENT_RMS


class Span(NamedTuple):
    """A word, or a run of them, and the seconds from which and to which it is said."""

    text: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Heard:
    """The first stage: the words. `known`: the text is one that the backend was given to choose from. `speech` is False for silence
    and noise, and `nothing` says which."""

    text: str
    known: bool
    speech: bool = True
    nothing: str = ""
    fit: float = 0.0
    """Mean log-likelihood ratio a letter between the text and whatever fits best; 0 is a perfect fit."""
    spans: tuple[Span, ...] = ()
    """When the words are said, where the backend tells."""
    failure: Failure | None = None
    """Why the words are not known; such an utterance is in no cache."""
    reason: str = ""
    """The failure in a sentence."""
    cost: float = 0.0
    """Of its words, in the currency of the recipe's prices; 0 where they were known."""


@dataclass(frozen=True, slots=True)
class Toned:
    """The second stage: the manner. Probabilities by name of tones, of `adult` and `child`, of `male` and `female`."""

    tones: dict[str, float]
    age: dict[str, float]
    sex: dict[str, float]

    def best(self, among: Sequence[str]) -> str:
        """The likeliest of some tones."""
        return max(among, key=lambda tone: self.tones.get(tone, 0.0))

    def style(self, name: str) -> float:
        """The probability of a style, whichever kind it is."""
        return {**self.tones, **self.age, **self.sex}.get(name, 0.0)

    def in_words(self, role: str) -> str:
        """As a listener would put it: the likeliest tone, and the next where it is close; for queries who speaks, too."""
        order = sorted(self.tones, key=lambda name: -self.tones[name])
        words = order[0]
        if self.tones[order[1]] > 0.3:
            words += f", somewhat {order[1]}"
        if role == "query":
            age = max(self.age, key=self.age.__getitem__)
            words += ", a child's voice" if age == "child" else f", a {'man' if self.sex['male'] > 0.5 else 'woman'}'s voice"
        return words


@dataclass(frozen=True, slots=True)
class Verdict:
    """The third stage: grades of content, style and both together, 1..5; all None when the pair cannot be graded, with the failure.

    A scorer that grades both together only has no `content` and no `style`.
    """

    content: int | None
    style: int | None
    score: float | None
    reason: str
    failure: Failure | None = None
    cost: float = 0.0
    """In the currency of the recipe's prices."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the judgement's row."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """All that is known of one side of a pair."""

    heard: Heard
    toned: Toned
    words: str
    """The tone in words, as a listener would put it."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording(Utterance):
    """One side of a pair that nobody has put into words: all that is known is whether there is anything to hear."""

    wave: np.ndarray
    """Mono float32 [T] at RATE."""


class Transcriber(Protocol):
    """The first stage, batched."""

    name: str

    def transcribe(self, waves: Sequence[np.ndarray]) -> list[Heard]:
        """Mono float32 at RATE, each of any length -> the words."""
        ...


class Describer(Protocol):
    """The second stage, batched. `role` is what the waves are: `query` or `answer`."""

    name: str

    def describe(self, waves: Sequence[np.ndarray], role: str) -> list[Toned]:
        """Mono float32 at RATE, each of any length -> the manner."""
        ...


class Listener(Protocol):
    """The first two stages, batched. `role` is what the waves are: `query` or `answer`."""

    name: str

    def listen(self, waves: Sequence[np.ndarray], role: str) -> list[Utterance]:
        """Mono float32 at RATE, each of any length -> what was said and how."""
        ...


class Scorer(Protocol):
    """The third stage, batched."""

    name: str

    def score(
        self, pairs: Sequence[tuple[Utterance, Utterance]], *, closed: bool, requirements: Sequence[str | None] | None = None
    ) -> list[Verdict]:
        """(query, answer) pairs -> verdicts. `requirements`: what a good answer does, by pair, where that is known."""
        ...
