"""What several servers are likely to cost together."""

from __future__ import annotations

import pytest

from paras2s_cli.endpoint.cost import Estimate, check_cost
from paras2s_cli.errors import UsageError


def costing(*costs: float | None) -> list[Estimate]:
    return [Estimate(1, 1, 1, cost) for cost in costs]


def test_estimates_are_held_against_the_limit_together() -> None:
    check_cost(costing(0.6, 0.4), 1.0)
    check_cost(costing(5.0, None), None)
    check_cost([], 0.0)
    with pytest.raises(UsageError, match=r"likely to cost 1\.20, more than --max-cost 1;"):
        check_cost(costing(0.6, 0.6), 1.0)


def test_one_server_without_prices_is_enough_for_no_limit_to_hold() -> None:
    with pytest.raises(UsageError, match="needs prices"):
        check_cost(costing(0.1, None), 1.0)
