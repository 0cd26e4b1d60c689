"""What Whisper-like encoders hear: log-mel bands, 100 times a second, of chunks of an utterance."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

RATE = 16000
HOP = 160
"""Samples a frame."""


@cache
def _extractor(bands: int) -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=bands, hop_length=HOP)


def log_mel(wave: np.ndarray, bands: int, samples: int) -> np.ndarray:
    """Whisper's log-mel bands of [T] float32 at 16 kHz, filled with silence to `samples`: [bands, samples / HOP] float32."""
    filled = np.pad(wave, (0, samples - len(wave)))
    extractor = _extractor(bands)
    table = extractor(filled, sampling_rate=RATE, padding="do_not_pad", truncation=False, return_tensors="np")
    return np.asarray(table["input_features"][0])


def chunks_of(
    waves: Sequence[np.ndarray], samples: int, batch: int, encode: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """Cuts waves into chunks of `samples`, encodes those `batch` at a time, the like long together, and joins what comes of each wave.

    A trainer's autocast does not reach in here: frozen encoders keep their own dtype.
    """
    pieces = [(i, wave[start : start + samples]) for i, wave in enumerate(waves) for start in range(0, len(wave), samples)]
    order = sorted(range(len(pieces)), key=lambda n: len(pieces[n][1]))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        with torch.autocast("cuda" if torch.cuda.is_available() else "cpu", enabled=False):
            found |= zip(some, encode([pieces[n][1] for n in some]), strict=True)
    joined: list[list[np.ndarray]] = [[] for _ in waves]
    for n, (i, _) in enumerate(pieces):
        joined[i].append(found[n])
    return [np.concatenate(parts) for parts in joined]
