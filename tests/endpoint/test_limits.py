"""Budgets against a count of every window, and the rule of additive increase and multiplicative decrease."""

from __future__ import annotations

import time

import numpy as np
import pytest

from paras2s_cli.endpoint.limits import START, Budget, Concurrency


@pytest.mark.parametrize(("requests", "tokens"), [(5, 0), (0, 100), (7, 90)])
def test_no_minute_holds_more_than_its_budget_and_none_waits_longer_than_it_must(requests: int, tokens: int) -> None:
    rng, budget, now = np.random.default_rng(0), Budget(requests, tokens), 0.0
    sent: list[tuple[float, int]] = []

    def admissible(at: float, size: int) -> bool:
        inside = [s for t, s in sent if t > at - 63.0 + 1e-9]
        return not (requests and len(inside) + 1 > requests) and not (tokens and sum(inside) + size > tokens)

    for _ in range(300):
        now += float(rng.exponential(3.0))
        size = int(rng.integers(1, 60))
        wait = budget.wait(size, now)
        assert wait == 0 or not admissible(now + wait - 1e-6, size), "it waits for nothing"
        now += wait
        assert admissible(now, size)
        budget.spend(size, now)
        sent.append((now, size))


def test_a_request_beyond_the_budget_goes_alone() -> None:
    budget = Budget(0, 100)
    assert budget.wait(500, 1.0) == 0
    budget.spend(500, 1.0)
    assert budget.wait(1, 2.0) == pytest.approx(62.0)


def test_the_servers_own_count_sets_a_budget_right() -> None:
    budget = Budget(0, 100)
    sent = budget.spend(100, 0.0)
    assert budget.wait(50, 1.0) > 0
    sent.tokens = 40
    assert budget.wait(50, 1.0) == 0


def test_a_round_adds_one_and_congestion_halves() -> None:
    flow = Concurrency(64)
    for _ in range(START):
        flow.grow()
    assert flow.limit == 2 * START, "doubles until the first congestion"
    flow.shrink(time.monotonic())
    assert flow.limit == START
    before = flow.limit
    for _ in range(START):
        flow.grow()
    assert before + 0.9 < flow.limit <= before + 1


def test_one_burst_of_refusals_halves_once() -> None:
    flow = Concurrency(64)
    sent = time.monotonic()
    for _ in range(10):
        flow.shrink(sent)
    assert flow.limit == START / 2
    for _ in range(100):
        flow.shrink(time.monotonic())
    assert flow.limit == 1
    for _ in range(10_000):
        flow.grow()
    assert flow.limit == 64
