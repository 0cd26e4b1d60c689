"""What small models hear: log-mel bands, melody and loudness, 50 times a second."""

from functools import cache

import numpy as np
import pyworld

RATE = 16000
HOP = 320
"""Samples a frame: 50 frames a second."""
BANDS = 40
SIZE = BANDS + 4
"""Features a frame: log-mel bands, log F0, its change, voicing, loudness."""
_WINDOW = 800
_LEVEL, _SILENCE = 0.06, 1e-4
_FFT = 1024


@cache
def _filters() -> np.ndarray:
    """Triangular mel filters [513, BANDS] (O'Shaughnessy's mel scale), 60 Hz to 7600 Hz."""
    edges = 700 * (10 ** (np.linspace(_mel(60.0), _mel(7600.0), BANDS + 2) / 2595) - 1)
    hertz = np.linspace(0, RATE / 2, _FFT // 2 + 1)[:, None]
    rise = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rise, fall), 0, None).astype(np.float32)


def _mel(hertz: float) -> float:
    return float(2595 * np.log10(1 + hertz / 700))


def features(wave: np.ndarray) -> np.ndarray:
    """Features of one utterance.

    Args:
        wave: [T] float in -1..1 at 16 kHz. Its level does not matter: a recording's gain says nothing about a speaker.

    Returns:
        [ceil(T / HOP), SIZE] float32, each column of the order of 1. Columns: BANDS log-mel bands; log2 F0 relative to 160 Hz (the
        last voiced value held through unvoiced frames); its change a frame; 1 where voiced; log loudness.
    """
    wave = np.asarray(wave, dtype=np.float64)
    level = float(np.sqrt(np.mean(wave**2))) if len(wave) else 0.0
    if level > _SILENCE:
        wave = wave * (_LEVEL / level)
    frames = max(1, -(-len(wave) // HOP))
    padded = np.zeros(frames * HOP + _WINDOW)
    padded[_WINDOW // 2 : _WINDOW // 2 + len(wave)] = wave
    slices = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[: frames * HOP : HOP]
    power = np.abs(np.fft.rfft(slices * np.hanning(_WINDOW), _FFT).astype(np.complex64)) ** 2
    mel = np.log(power @ _filters() + 1e-4)
    loudness = np.log(power.sum(1) + 1e-4)
    f0 = np.zeros(frames)
    if len(wave) > 4 * HOP:
        track, _ = pyworld.dio(wave, RATE, f0_floor=60.0, f0_ceil=600.0, frame_period=1000 * HOP / RATE, speed=4)
        f0[: len(track)] = track[:frames]
    voiced = f0 > 0
    pitch = np.log2(np.where(voiced, f0, 160.0) / 160)
    held = np.maximum.accumulate(np.where(voiced, np.arange(frames), 0))
    pitch = np.where(np.cumsum(voiced) > 0, pitch[held], pitch[voiced][0] if voiced.any() else 0.0)
    change = np.diff(pitch, prepend=pitch[:1]) * voiced
    columns = [mel / 4, pitch[:, None] * 2, change[:, None] * 8, voiced[:, None], loudness[:, None] / 4]
    return np.concatenate(columns, axis=1).astype(np.float32)
