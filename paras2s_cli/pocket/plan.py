"""Which utterances the pocket world consists of, before any is rendered."""

import hashlib
from dataclasses import dataclass

import numpy as np

from paras2s_cli.pocket.world import Sentence, Split, Style, Voice, World

TAKES: dict[Split, int] = {"train": 6, "validation": 3, "test": 3}
"""Speakers that say each (sentence, style) of a split."""

CARRIER_TAKES = 3
"""Speakers that say each carrier sentence."""


@dataclass(frozen=True)
class Utterance:
    """One file to render. `style` is what it is graded by, `tone` the way of speaking, `child` the speaker's age."""

    id: str
    text: str
    voice: Voice
    speaker: str
    style: str
    tone: str
    child: bool
    varies: bool
    split: Split
    purpose: str
    sentence: str
    contrast: str | None = None

    @property
    def seed(self) -> int:
        """A seed that depends on the name only, so that one utterance can be rendered again alone."""
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:8], "little")


def spoken_style(world: World, tone: str, child: bool) -> Style:
    """What the renderer does: the tone, and a child's pitch and vocal tract on top of it where asked."""
    style = world.styles[tone]
    if not child:
        return style
    young = world.styles["child"]
    return style.model_copy(
        update={
            "pitch": style.pitch + young.pitch,
            "rate": style.rate * young.rate,
            "range": style.range * young.range,
            "formants": young.formants,
        }
    )


def queries(world: World) -> list[Utterance]:
    """The queries of all splits: every sentence in its two styles by several speakers, twins by the same one where sex allows."""
    found = []
    for sentence in world.sentences():
        rng = np.random.default_rng(_seed(sentence.name))
        speakers = sorted(world.voices[sentence.split].items())
        order = rng.permutation(len(speakers))
        for take in range(TAKES[sentence.split]):
            for side, style in enumerate(sentence.contrast):
                name, voice = _speaker(speakers, order, take, style)
                found.append(_query(world, sentence, style, take, name, voice, sentence.contrast[1 - side]))
    return found


def polytone(world: World) -> list[Utterance]:
    """What the describer is trained on: every training sentence in every tone of a query and every answer text in every tone of an
    answer, by many speakers, so that neither the words nor the voice say anything about the tone."""
    texts = [(s.name, s.text, world.query_tones()) for s in world.sentences() if s.split == "train"]
    texts += [(a.name, a.text, world.tones) for a in world.answer_texts()]
    found = []
    for sentence, text, tones in texts:
        rng = np.random.default_rng(_seed(sentence))
        speakers = sorted(world.voices["train"].items())
        order = rng.permutation(len(speakers))  # as in `queries`: the recordings are shared
        for tone in tones:
            name, voice = speakers[order[rng.integers(4)]]
            child = bool(tones is not world.tones and rng.random() < 0.2)
            found.append(
                Utterance(
                    id=f"polytone.{sentence}.{tone}",
                    text=text,
                    voice=voice,
                    speaker=name,
                    style=tone,
                    tone=tone,
                    child=child,
                    varies=True,
                    split="train",
                    purpose="polytone",
                    sentence=sentence,
                )
            )
    return found


def carriers(world: World) -> list[Utterance]:
    """Every carrier sentence by several training speakers, each in a tone of its own."""
    tones = ["neutral", *world.query_tones()]
    speakers = sorted(world.voices["train"].items())
    found = []
    for carrier in world.carrier_texts():
        rng = np.random.default_rng(_seed(carrier.name))
        for take, place in enumerate(rng.choice(len(speakers), min(CARRIER_TAKES, len(speakers)), replace=False)):
            name, voice = speakers[place]
            tone = tones[rng.integers(len(tones))]
            found.append(
                Utterance(
                    id=f"{carrier.name}.{take}",
                    text=carrier.text,
                    voice=voice,
                    speaker=name,
                    style=tone,
                    tone=tone,
                    child=bool(rng.random() < 0.2),
                    varies=True,
                    split="train",
                    purpose="carrier",
                    sentence=carrier.name,
                )
            )
    return found


def answers(world: World) -> list[Utterance]:
    """Every answer text in every tone of the assistant, which never strays: the topline's voice and the codec's."""
    return [
        Utterance(
            id=f"answer.{answer.name}.{tone}",
            text=answer.text,
            voice=world.assistant,
            speaker="assistant",
            style=tone,
            tone=tone,
            child=False,
            varies=False,
            split="train",
            purpose="answer",
            sentence=answer.name,
        )
        for answer in world.answer_texts()
        for tone in world.tones
    ]


def _query(world: World, sentence: Sentence, style: str, take: int, speaker: str, voice: Voice, twin: str) -> Utterance:
    tone = style if style in world.query_tones() else "neutral"
    return Utterance(
        id=f"{sentence.name}.{style}.{take}",
        text=sentence.text,
        voice=voice,
        speaker=speaker,
        style=style,
        tone=tone,
        child=style == "child",
        varies=True,
        split=sentence.split,
        purpose="query",
        sentence=sentence.name,
        contrast=f"{sentence.name}.{twin}.{take}",
    )


def _speaker(speakers: list[tuple[str, Voice]], order: np.ndarray, take: int, style: str) -> tuple[str, Voice]:
    able = [speakers[i] for i in order if style not in ("male", "female") or speakers[i][1].sex == style]
    return able[take % len(able)]


def _seed(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:8], "little")
