"""Pauses around a recording are cut; what the world's own recordings are like is left as it is."""

import numpy as np
import pytest

from paras2s_cli.judge.edges import between_pauses

RNG = np.random.default_rng(0)


def speech(length: int = 16000) -> np.ndarray:
    """Something as loud from end to end, without a pause."""
    return (0.2 * RNG.normal(size=length)).astype(np.float32)


def test_long_pauses_are_cut_to_two_blocks_and_those_inside_are_left() -> None:
    first, second = speech(3200), speech(4800)
    whole = np.concatenate([np.zeros(8000), first, np.zeros(16000), second, np.zeros(3200)]).astype(np.float32)
    expected = np.concatenate([np.zeros(320), first, np.zeros(16000), second, np.zeros(320)])
    np.testing.assert_array_equal(between_pauses(whole), expected)


@pytest.mark.parametrize("hiss", [0.0, 0.0005])
def test_each_end_by_itself_and_whatever_the_level_or_the_hiss(hiss: float) -> None:
    wave = np.concatenate([speech(), np.zeros(4800)]) + hiss * RNG.normal(size=20800)
    for gain in (1.0, 0.01):
        np.testing.assert_array_equal(between_pauses(gain * wave), gain * wave[: 16000 + 320])
        np.testing.assert_array_equal(between_pauses(gain * wave[::-1]), gain * wave[::-1][4800 - 320 :])


def test_short_pauses_silence_and_nothing_are_left() -> None:
    for pause in (0, 1, 160, 1600):
        wave = np.concatenate([np.zeros(pause), speech(), np.zeros(pause)])
        assert len(between_pauses(wave)) == len(wave)
    for length in (0, 1, 159, 160, 32000):
        assert len(between_pauses(np.zeros(length, np.float32))) == length
