"""The pocket world as data: its sentences, answers, voices and styles, read from world.yaml."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Frame(_Part):
    """A sentence with a gap for the topic, and the two styles it is spoken in."""

    dimension: Literal["emotion", "sarcasm", "age", "gender"]
    contrast: tuple[str, str]
    text: str


class Fit(_Part):
    """What suits one style: grade and reason of each kind of answer and of each tone."""

    requirement: str
    content: dict[str, tuple[int, str]]
    tone: dict[str, tuple[int, str]]


class Overall(_Part):
    """How the grades of content and tone make the score."""

    content: float
    tone: float
    slack: int
    other_topic: int


class Voice(_Part):
    """A speaker: espeak-ng variant, sex heard, formant scale, pitch in semitones."""

    variant: str
    sex: Literal["male", "female"]
    formants: float = 1.0
    pitch: float = 0.0
    rate: float = 1.0


class Style(_Part):
    """What a style does to a neutral recording; units as commented in world.yaml."""

    rate: float = 1.0
    pitch: float = 0.0
    range: float = 1.0
    gain: float = 0.0
    tilt: float = 0.0
    breath: float = 0.0
    final: float = 0.0
    jitter: float = 0.0
    tremor: float = 0.0
    formants: float = 1.0


class Variation(_Part):
    """Standard deviations of what differs between utterances; noise is a range of dB SNR."""

    rate: float
    pitch: float
    range: float
    gain: float
    tilt: float
    formants: float
    noise: tuple[float, float]


class Held(_Part):
    """Which topics, counted from a frame's own offset, are kept for validation and test."""

    test: list[int]
    validation: list[int]


@dataclass(frozen=True)
class Sentence:
    """One neutral query text of the world."""

    name: str
    text: str
    frame: str
    topic: str
    dimension: str
    contrast: tuple[str, str]
    split: Split


@dataclass(frozen=True)
class AnswerText:
    """One answer text: what it does (`kind`) and about which topic."""

    name: str
    text: str
    kind: str
    topic: str


@dataclass(frozen=True)
class CarrierText:
    """One text about a topic that is neither a query nor an answer."""

    name: str
    text: str
    topic: str


class World(_Part):
    """world.yaml, checked."""

    topics: list[str]
    frames: dict[str, Frame]
    splits: Held
    carriers: list[str]
    answers: dict[str, str]
    tones: list[str]
    fits: dict[str, Fit]
    overall: Overall
    voices: dict[Split, dict[str, Voice]]
    assistant: Voice
    styles: dict[str, Style]
    variation: Variation

    def model_post_init(self, _context: Any) -> None:
        for name, frame in self.frames.items():
            for style in frame.contrast:
                if style not in self.fits or style not in self.styles:
                    raise ValueError(f"frames.{name}: no fits or styles for {style!r}")
        for style, fit in self.fits.items():
            if set(fit.tone) != set(self.tones) or "otherwise" not in fit.content:
                raise ValueError(f"fits.{style}: every tone and `otherwise` must be graded")
            if unknown := set(fit.content) - set(self.answers) - {"otherwise"}:
                raise ValueError(f"fits.{style}: unknown answers {sorted(unknown)}")

    def sentences(self) -> list[Sentence]:
        """Every query text, with the split that it belongs to."""
        found = []
        for number, (name, frame) in enumerate(self.frames.items()):
            for place, topic in enumerate(self.topics):
                turn = (place - number) % len(self.topics)
                split: Split = "test" if turn in self.splits.test else "validation" if turn in self.splits.validation else "train"
                text = frame.text.format(topic=topic)
                found.append(Sentence(f"{name}-{topic}", text, name, topic, frame.dimension, frame.contrast, split))
        return found

    def carrier_texts(self) -> list[CarrierText]:
        """Every carrier sentence."""
        return [
            CarrierText(f"carrier{number}-{topic}", text.format(topic=topic), topic)
            for number, text in enumerate(self.carriers)
            for topic in self.topics
        ]

    def answer_texts(self) -> list[AnswerText]:
        """Every answer text."""
        return [
            AnswerText(f"{kind}-{topic}", text.format(topic=topic), kind, topic)
            for kind, text in self.answers.items()
            for topic in self.topics
        ]

    def query_tones(self) -> list[str]:
        """The styles that are a way of speaking (not an age or a sex), in the order of the frames."""
        return list(dict.fromkeys(s for f in self.frames.values() if f.dimension in ("emotion", "sarcasm") for s in f.contrast))


@cache
def load_world() -> World:
    """The world that is installed with the package."""
    return World.model_validate(yaml.safe_load(files(__package__).joinpath("world.yaml").read_text(encoding="utf-8")))
