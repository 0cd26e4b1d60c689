"""The codec on the assistant's voice: what goes in comes out, roughly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pyworld
import soundfile

from paras2s_cli.pocket.codec import BLOCK, Codec, decode_from, parameters
from paras2s_cli.pocket.embedded import PocketWorld
from paras2s_cli.pocket.render import FRAME_MS, RATE

SAMPLES = BLOCK * RATE // 100
TEXTS = ("How wonderful! Enjoy every bit of the party.", "Let us ask a grown up to come with you to the lake.")
Waves = list[np.ndarray]


@pytest.fixture(scope="module")
def waves(speak: Callable[..., np.ndarray]) -> Waves:
    return [speak(text, "assistant", tone).astype(np.float64) for text in TEXTS for tone in ("cheerful", "gentle", "serious", "calm")]


@pytest.fixture(scope="module")
def codec(waves: Waves) -> Codec:
    return Codec.fit(np.concatenate([parameters(wave) for wave in waves]), 128, seed=0)


def pitch(wave: np.ndarray) -> np.ndarray:
    f0, _ = pyworld.dio(wave.astype(np.float64), RATE, f0_floor=60, f0_ceil=600, frame_period=FRAME_MS)
    return f0


def test_the_blocks_of_a_wave(waves: Waves) -> None:
    for wave in waves:
        blocks = parameters(wave)
        assert blocks.shape == (-(-len(wave) // SAMPLES), BLOCK, 34) and blocks.dtype == np.float32
        assert np.isfinite(blocks).all()


@pytest.mark.parametrize("length", [1, 100, SAMPLES - 1, SAMPLES, SAMPLES + 1])
def test_short_and_silent_waves_have_blocks_too(length: int) -> None:
    blocks = parameters(np.zeros(length))
    assert blocks.shape == (-(-length // SAMPLES), BLOCK, 34) and np.isfinite(blocks).all()


def test_a_round_trip_keeps_length_melody_and_level(waves: Waves, codec: Codec) -> None:
    errors, levels = [], []
    for wave in waves:
        codes = codec.encode(parameters(wave))
        assert codes.dtype == np.int64 and codes.min() >= 0 and codes.max() < codec.size
        again = codec.decode(codes)
        assert again.dtype == np.float32 and len(again) == len(codes) * SAMPLES
        assert np.isfinite(again).all() and np.abs(again).max() <= 1
        before, after = pitch(wave), pitch(again)[: len(pitch(wave))]
        both = (before[: len(after)] > 0) & (after > 0)
        assert both.mean() > 0.3
        errors.append(np.abs(12 * np.log2(before[: len(after)][both] / after[both])))
        levels.append(10 * np.log10(np.mean(again**2) / np.mean(wave**2)))
    assert np.median(np.concatenate(errors)) < 1.5, "semitones"
    assert np.abs(np.mean(levels)) < 3, "dB"


def test_more_codes_are_nearer(waves: Waves, codec: Codec) -> None:
    blocks = np.concatenate([parameters(wave) for wave in waves])
    small = Codec.fit(blocks, 8, seed=0)
    error = [np.abs(blocks - c.codebook[c.encode(blocks)]).mean() for c in (small, codec)]
    assert error[1] < 0.8 * error[0]


def test_the_nearest_code_of_a_code_is_itself(codec: Codec) -> None:
    assert (codec.encode(codec.codebook) == np.arange(codec.size)).all()


def test_no_codes_give_no_samples(codec: Codec) -> None:
    assert codec.decode(np.zeros(0, dtype=np.int64)).shape == (0,)


def test_any_codes_give_finite_samples(codec: Codec) -> None:
    for seed in range(5):
        wave = codec.decode(np.random.default_rng(seed).integers(codec.size, size=seed + 1))
        assert len(wave) == (seed + 1) * SAMPLES and np.isfinite(wave).all() and np.abs(wave).max() <= 1


def test_fitting_is_deterministic_and_the_seed_counts(waves: Waves) -> None:
    blocks = np.concatenate([parameters(wave) for wave in waves[:3]])
    one, two, other = (Codec.fit(blocks, 32, seed=seed, rounds=5) for seed in (0, 0, 1))
    assert one.codebook.tobytes() == two.codebook.tobytes() != other.codebook.tobytes()


def test_what_is_saved_is_what_is_loaded(tmp_path: Path, codec: Codec, waves: Waves) -> None:
    codec.save(tmp_path / "codec.safetensors")
    again = Codec.load(tmp_path / "codec.safetensors")
    assert (again.codebook == codec.codebook).all() and again.size == codec.size
    codes = codec.encode(parameters(waves[0]))
    assert (again.decode(codes) == codec.decode(codes)).all()
    assert (decode_from(str(tmp_path / "codec.safetensors"), codes) == codec.decode(codes)).all()


@pytest.mark.slow
def test_the_worlds_codec_keeps_the_melody_of_its_answers(pocket_world: PocketWorld) -> None:
    errors = []
    for answer in pocket_world.answers()[::24]:
        wave, _ = soundfile.read(answer.path)
        assert answer.codes is not None and (pocket_world.rendering.codec.encode(parameters(wave)) == answer.codes).mean() > 0.99
        after = pitch(pocket_world.codec.decode(answer.codes))
        before = pitch(wave)[: len(after)]
        after = after[: len(before)]
        both = (before > 0) & (after > 0)
        errors.append(np.abs(12 * np.log2(before[both] / after[both])))
    print(f"codec: median F0 error {np.median(np.concatenate(errors)):.2f} semitones")
    assert np.median(np.concatenate(errors)) < 1.0
