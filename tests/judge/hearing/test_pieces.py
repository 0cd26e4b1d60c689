"""Cuts of long audio."""

from __future__ import annotations

import numpy as np
import pytest

from paras2s_cli.judge.hearing.pieces import cut


@pytest.mark.parametrize("length", [0, 1, 32000, 32001, 70000, 500000])
def test_pieces_are_the_wave_and_none_is_too_long(length: int) -> None:
    wave = np.random.default_rng(length).normal(size=length).astype(np.float32)
    pieces = cut(wave, 32000)
    assert all(len(piece) <= 32000 for _, piece in pieces)
    assert [start for start, _ in pieces] == np.cumsum([0, *(len(piece) for _, piece in pieces)])[:-1].tolist()
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), wave)
    assert len(pieces) <= length // (32000 * 5 // 6) + 1


def test_a_cut_is_in_the_pause() -> None:
    wave = np.random.default_rng(0).normal(size=50000).astype(np.float32)
    wave[28500:30500] = 0.0
    (_, first), (start, _) = cut(wave, 32000)
    assert 28500 < start < 30500 and len(first) == start
