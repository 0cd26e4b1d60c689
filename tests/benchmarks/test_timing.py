"""A round on a GPU makes every call as often as the others, and waits once."""

from __future__ import annotations

import pytest

from benchmarks import timing


def test_a_round_waits_once_behind_all_its_calls() -> None:
    seen: list[str] = []
    one, count = timing.in_turn(lambda: seen.append("all three"), lambda: seen.append("wait"), calls=3, times=2)
    assert count == 6
    for _ in range(2 * count):
        one()
    assert seen == ["all three", "all three", "wait"] * 2


def test_a_single_call_is_waited_for() -> None:
    seen: list[str] = []
    one, count = timing.in_turn(lambda: seen.append("it"), lambda: seen.append("wait"), calls=1, times=1)
    one()
    assert (seen, count) == (["it", "wait"], 1)


def test_inputs_that_take_turns_are_no_cached_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timing.sets_for(1) == 1  # without a GPU
    monkeypatch.setattr(timing, "CUDA", True)
    assert [timing.sets_for(size) for size in (1 << 10, 10 << 20, 150 << 20, 5 << 30)] == [32, 20, 2, 1]
