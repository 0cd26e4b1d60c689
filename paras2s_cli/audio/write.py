"""Waveform to file."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np

from paras2s_cli.data.atomic import write_bytes


def wav_bytes(samples: np.ndarray, rate: int = 16000) -> bytes:
    """A PCM16 WAV of mono `samples` `[T]` float (clipped to [-1, 1]) or int16; the same samples give the same
    bytes.

    The scale is 32768, as in reading, so that what was read from PCM16 is written back exactly. Raises
    ValueError if `samples` is not `[T]`, or holds NaN or infinite values.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise ValueError(f"samples must be [T], not {samples.shape}")
    if samples.dtype != np.int16:
        if not np.isfinite(samples).all():
            raise ValueError("samples hold NaN or infinite values")
        scaled = np.rint(np.clip(samples.astype(np.float32), -1.0, 1.0) * 32768.0)
        samples = np.minimum(scaled, 32767.0).astype(np.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def write_wav(path: Path | str, samples: np.ndarray, rate: int = 16000) -> None:
    """Writes `wav_bytes(samples, rate)` to `path`, whole or not at all (UsageError: full disk, read-only
    folder).
    """
    write_bytes(path, wav_bytes(samples, rate))
