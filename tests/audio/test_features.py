"""What the small networks hear of sines, silence, noise and scraps."""

from __future__ import annotations

import numpy as np
import pytest

from paras2s_cli.audio.features import BANDS, HOP, RATE, SIZE, features

PITCH, CHANGE, VOICED, LOUD = range(BANDS, SIZE)


def hum(hertz: float, seconds: float = 1.0, level: float = 0.1) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return level * sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 6))


@pytest.mark.parametrize("length", [0, 1, HOP - 1, HOP, HOP + 1, 4 * HOP, 4 * HOP + 1, 5 * HOP, 12345])
@pytest.mark.parametrize("kind", ["silence", "noise", "hum", "square"])
def test_any_wave_of_any_length_has_finite_features(length: int, kind: str) -> None:
    wave = {
        "silence": np.zeros(length),
        "noise": np.random.default_rng(0).normal(size=length) * 0.3,
        "hum": hum(150, 1.0)[:length],
        "square": np.sign(hum(150, 1.0))[:length],
    }[kind]
    found = features(wave)
    assert found.shape == (max(1, -(-length // HOP)), SIZE) and found.dtype == np.float32
    assert np.isfinite(found).all() and np.abs(found).max() < 8


@pytest.mark.parametrize("hertz", [80.0, 160.0, 220.0, 400.0])
def test_the_pitch_column_is_the_pitch(hertz: float) -> None:
    found = features(hum(hertz))[10:40]
    assert (found[:, VOICED] == 1).all()
    assert found[:, PITCH] / 2 == pytest.approx(np.log2(hertz / 160), abs=0.02)
    assert np.abs(found[:, CHANGE]).max() < 0.2


def test_a_rising_tone_has_a_positive_change_of_that_size() -> None:
    seconds = np.arange(RATE) / RATE
    phase = 2 * np.pi * 150 * (2**seconds - 1) / np.log(2)  # an octave a second
    found = features(0.1 * sum(np.sin(k * phase) / k for k in range(1, 6)))[10:40]
    assert np.median(found[:, CHANGE]) / 8 == pytest.approx(HOP / RATE, rel=0.2)


def test_pitch_is_held_where_nothing_is_voiced() -> None:
    found = features(np.concatenate([np.zeros(8000), hum(240), np.zeros(8000)]))
    assert found[2, VOICED] == 0 and found[-3, VOICED] == 0
    assert found[[2, -3], PITCH] / 2 == pytest.approx(np.log2(240 / 160), abs=0.1)


def test_the_level_of_a_recording_does_not_matter() -> None:
    wave = np.random.default_rng(3).normal(size=16000) * 0.05
    assert features(4 * wave) == pytest.approx(features(wave), abs=1e-3)


def test_a_high_tone_is_in_a_high_band() -> None:
    bands = [int(features(0.1 * np.sin(2 * np.pi * hz * np.arange(RATE) / RATE))[25, :BANDS].argmax()) for hz in (200, 800, 3000, 7000)]
    assert bands == sorted(set(bands)) and bands[-1] >= BANDS - 3


def test_frames_are_where_the_sound_is() -> None:
    wave = np.zeros(RATE)
    wave[8000] = 1.0  # sample 8000 is the start of frame 25
    assert features(wave)[:, LOUD].argmax() == 25


def test_float32_and_float64_are_heard_alike() -> None:
    wave = hum(200).astype(np.float32)
    assert features(wave) == pytest.approx(features(wave.astype(np.float64)), abs=1e-5)
