"""Speech in a style: a neutral recording is taken apart by WORLD, edited, and put together again.

WORLD: Morise et al., "WORLD: a vocoder-based high-quality speech synthesis system" (2016), through pyworld. The
aperiodicity is not analysed (it is two thirds of the cost) but set by rule: voiced frames are periodic at the bottom and
noisy at the top, the more so the breathier the style.
"""

from dataclasses import dataclass

import numpy as np
import pyworld
import soxr

from paras2s_cli.pocket.world import Style, Variation, Voice

RATE = 16000
FRAME_MS = 10.0
FLOOR_HZ, CEILING_HZ = 60.0, 600.0
BINS = 257
"""Bins of the spectra that are synthesised. Cheaptrick smooths an envelope over F0, so that every second of its bins says it all, and
WORLD's synthesis takes half the time."""
_RMS = 0.06


@dataclass(frozen=True)
class Recording:
    """A neutral utterance, analysed. f0 [T] Hz (0 where unvoiced), envelope [T, BINS] log power, RATE / 1000 * FRAME_MS a frame."""

    f0: np.ndarray
    envelope: np.ndarray


def analyse(samples: np.ndarray, rate: int) -> Recording:
    """Take int16 samples apart, brought to a fixed level."""
    wave = soxr.resample(samples.astype(np.float64) / 32768, rate, RATE)
    wave *= _RMS / max(float(np.sqrt(np.mean(wave**2))), 1e-6)
    f0, times = pyworld.dio(wave, RATE, f0_floor=FLOOR_HZ, f0_ceil=CEILING_HZ, frame_period=FRAME_MS)
    f0 = pyworld.stonemask(wave, f0, times, RATE)
    envelope = pyworld.cheaptrick(wave, f0, times, RATE, f0_floor=FLOOR_HZ)
    return Recording(f0, np.log(envelope[:, :: envelope.shape[1] // (BINS - 1)] + 1e-12).astype(np.float32))


def aperiodicity(f0: np.ndarray, bins: int, breath: float = 0.0) -> np.ndarray:
    """Aperiodicity by rule, [T, bins] in 0..1: 1 where unvoiced, rising with frequency where voiced."""
    frequency = np.linspace(0, 1, bins)
    voiced = 0.02 + 0.5 * frequency**1.5
    voiced = voiced + (1 - voiced) * breath * np.clip(frequency * 4, 0.2, 1.0)
    return np.where(f0[:, None] > 0, voiced[None, :], 1.0 - 1e-9)


def synthesise(f0: np.ndarray, envelope: np.ndarray, frame_ms: float, breath: float = 0.0) -> np.ndarray:
    """WORLD's synthesis: f0 [T] Hz, envelope [T, bins] log power -> float64 [T * frame_ms * 16] at RATE."""
    power = np.ascontiguousarray(np.exp(envelope.astype(np.float64)))
    ap = aperiodicity(f0, power.shape[1], breath)
    return np.asarray(pyworld.synthesize(np.ascontiguousarray(f0, dtype=np.float64), power, np.ascontiguousarray(ap), RATE, frame_ms))


def perform(recording: Recording, voice: Voice, style: Style, variation: Variation | None, rng: np.random.Generator) -> np.ndarray:
    """The recording in a voice and a style: int16 [T] at RATE.

    Args:
        variation: how much this utterance strays from its voice; None for a voice that never does.
        rng: draws the variation, the jitter and the noise.
    """
    draw = rng.normal(size=6)
    spread = variation or Variation(rate=0, pitch=0, range=0, gain=0, tilt=0, formants=0, noise=(60, 60))
    speed = voice.rate * style.rate * np.exp(spread.rate * draw[0])
    shift = voice.pitch + style.pitch + spread.pitch * draw[1]
    spread_f0 = style.range * np.exp(spread.range * draw[2])
    tilt = style.tilt + spread.tilt * draw[4]
    formants = voice.formants * style.formants * np.exp(spread.formants * draw[5])

    count = max(8, round(len(recording.f0) / speed))
    at = np.linspace(0, len(recording.f0) - 1, count)
    near = np.rint(at).astype(int)
    f0 = _melody(recording.f0[near], shift, spread_f0, style, rng)
    envelope = _spectrum(recording.envelope[near], formants, tilt)
    wave = synthesise(f0, envelope, FRAME_MS, style.breath)
    level = _RMS * 10 ** ((style.gain + spread.gain * draw[3]) / 20)
    wave *= level / max(float(np.sqrt(np.mean(wave**2))), 1e-6)
    snr = rng.uniform(*spread.noise)
    wave += rng.normal(size=len(wave)) * _RMS * 10 ** (-snr / 20)
    return np.asarray(np.clip(wave * 32767, -32768, 32767), dtype=np.int16)


def _melody(f0: np.ndarray, shift: float, spread: float, style: Style, rng: np.random.Generator) -> np.ndarray:
    voiced = f0 > 0
    if not voiced.any():
        return f0
    pitch = 12 * np.log2(np.where(voiced, f0, 1.0))
    mean = pitch[voiced].mean()
    pitch = mean + (pitch - mean) * spread + shift
    frames = np.arange(len(f0))
    tail = 350 / FRAME_MS
    last = frames[voiced][-1]
    pitch += style.final * np.clip((frames - (last - tail)) / tail, 0, 1)
    pitch += style.tremor * np.sin(2 * np.pi * 6 * frames * FRAME_MS / 1000 + rng.uniform(0, 2 * np.pi))
    pitch += style.jitter * rng.normal(size=len(f0))
    return np.where(voiced, np.clip(2 ** (pitch / 12), FLOOR_HZ, CEILING_HZ), 0.0)


def _spectrum(envelope: np.ndarray, formants: float, tilt: float) -> np.ndarray:
    bins = envelope.shape[1]
    source = np.clip(np.arange(bins) / formants, 0, bins - 1)
    low = np.floor(source).astype(int)
    high = np.minimum(low + 1, bins - 1)
    weight = (source - low).astype(np.float32)
    warped = envelope[:, low] * (1 - weight) + envelope[:, high] * weight
    octaves = np.log2(np.maximum(np.linspace(0, RATE / 2, bins), 100) / 500)
    return np.asarray(warped + (tilt * octaves * np.log(10) / 10).astype(np.float32))
