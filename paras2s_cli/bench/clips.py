"""What a report plays: a small, even choice of answers, and their sound as MP3, each distinct clip once."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr

from paras2s_cli.bench.stats import Scored

LONGEST = 20.0  # seconds of a clip that are kept
# MP3 because every browser plays it (Safari: no Ogg Vorbis); these rates share one ladder, 8..160 kbit/s.
_RATES = (16000, 22050, 24000)
_COMPRESSION = (160 - 24) / (160 - 8)  # libsndfile's 0..1 over that ladder: 24 kbit/s, plenty for one voice


@dataclass(frozen=True, slots=True)
class Side:
    """One style of a sentence: the query that was spoken so, and every system's answer to it."""

    style: str
    query: Scored  # any row of the query: its audio and what was heard of its tone
    answers: dict[str, Scored]


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence in its two contrasting styles."""

    dimension: str
    text: str
    sides: tuple[Side, Side]


@dataclass(slots=True)
class Clips:
    """Encoded clips by content: `base64` maps a short hash to MP3 as text; `size` is their sum in bytes."""

    base64: dict[str, str] = field(default_factory=dict)
    _known: dict[Path, str | None] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(map(len, self.base64.values()))

    def add(self, path: Path | None) -> str | None:
        """The clip's key, or None where there is no sound to play (no file, not audio, nothing in it)."""
        if path is None:
            return None
        if path not in self._known:
            data = encode_mp3(path)
            key = None if data is None else hashlib.sha256(data).hexdigest()[:16]
            if key is not None and data is not None:
                self.base64[key] = base64.b64encode(data).decode("ascii")
            self._known[path] = key
        return self._known[path]


def encode_mp3(path: Path) -> bytes | None:
    """A sound file as mono MP3 of 24 kbit/s, its first 20 s; None if it cannot be read or holds no samples.

    A report is made after the scoring: a clip that went missing since costs its player, not the page.
    """
    try:
        with soundfile.SoundFile(path) as source:
            rate = source.samplerate
            samples = source.read(int(LONGEST * rate), dtype="float32", always_2d=True).mean(axis=1)
    except (OSError, soundfile.LibsndfileError):
        return None
    if not samples.size or not np.isfinite(samples).all():
        return None
    if rate not in _RATES:
        target = 24000 if rate > 16000 else 16000
        samples, rate = soxr.resample(samples, rate, target), target
    out = io.BytesIO()
    soundfile.write(
        out,
        np.clip(samples, -1.0, 1.0),
        rate,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=_COMPRESSION,
    )
    return out.getvalue()


def choose_pairs(rows: Iterable[Scored], most: int, *, seed: int = 0) -> list[Pair]:
    """At most `most` sentences in two styles, covering every dimension and style as evenly as they allow.

    Dimensions take turns; within one, the sentence whose styles have been heard least comes next, ties broken
    by a hash of `seed` and the sentence. So any prefix of the result is even too. Of several seeds the lowest
    is heard.
    """
    waiting: dict[str, list[Pair]] = {}
    for (dimension, text), group in _by_sentence(rows).items():
        sides = _sides(group)
        waiting.setdefault(dimension, []).extend(Pair(dimension, text, (a, b)) for a, b in zip(sides[::2], sides[1::2], strict=False))
    for pairs in waiting.values():
        pairs.sort(key=lambda pair: hashlib.sha256(f"{seed}:{pair.dimension}:{pair.text}".encode()).digest())
    heard: Counter[tuple[str, str]] = Counter()
    chosen: list[Pair] = []
    while len(chosen) < most and any(waiting.values()):
        for pairs in waiting.values():
            if pairs and len(chosen) < most:
                best = min(pairs, key=lambda pair: _times_heard(pair, heard))
                pairs.remove(best)
                heard.update((best.dimension, side.style) for side in best.sides)
                chosen.append(best)
    return chosen


def _times_heard(pair: Pair, heard: Counter[tuple[str, str]]) -> tuple[int, int]:
    times = [heard[pair.dimension, side.style] for side in pair.sides]
    return min(times), sum(times)


def _by_sentence(rows: Iterable[Scored]) -> dict[tuple[str, str], list[Scored]]:
    groups: dict[tuple[str, str], list[Scored]] = {}
    for row in rows:
        groups.setdefault((row.dimension, row.text), []).append(row)
    return groups


def _sides(rows: list[Scored]) -> list[Side]:
    """One side a style: of its queries (voices) the one most systems answered, of its seeds the lowest."""
    queries: dict[str, dict[str, dict[str, Scored]]] = {}
    for row in sorted(rows, key=lambda row: row.seed):
        queries.setdefault(row.style, {}).setdefault(row.query, {}).setdefault(row.system, row)
    sides = []
    for style, answers in queries.items():
        best = min(answers, key=lambda query: (-len(answers[query]), query))
        sides.append(Side(style, next(iter(answers[best].values())), answers[best]))
    return sides
