"""Which queries of a suite a bench measures."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from paras2s_cli.bench.run import first_of_each_dimension

if TYPE_CHECKING:
    from paras2s_cli.pocket.embedded import PocketWorld


def test_a_limit_takes_as_many_of_each_dimension_and_keeps_twins(silent_world: PocketWorld) -> None:
    found = [q.row for q in first_of_each_dimension(silent_world.queries("test"), 6)]
    assert Counter(row["dimension"] for row in found) == dict.fromkeys(("emotion", "sarcasm", "age", "gender"), 6)
    assert {row["contrast"] for row in found} == {row["id"] for row in found}


def test_without_a_limit_all_are_taken(silent_world: PocketWorld) -> None:
    queries = silent_world.queries("test")
    assert first_of_each_dimension(queries, 0) == queries
