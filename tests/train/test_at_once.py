"""A step in pieces: every row of a share once, as many pieces on all ranks, and none larger than asked."""

from __future__ import annotations

import pytest

from paras2s_cli.train.at_once import pieces
from paras2s_cli.train.ranks import Ranks


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("at_once", [0, 1, 2, 3, 7, 100])
def test_all_ranks_take_their_share_in_as_many_pieces(size: int, at_once: int) -> None:
    for count in range(1, 40):
        numbers = set()
        for rank in range(size):
            ranks = Ranks(rank, size)
            mine = max(1, len(ranks.share(count)))  # a row stands in for none
            found = [range(mine)[some] for some in pieces(count, at_once, ranks)]
            assert [row for rows in found for row in rows] == list(range(mine)) and all(found)
            assert max(map(len, found)) - min(map(len, found)) <= 1
            uneven = at_once == 1 and count % size and count > size
            assert at_once == 0 or max(map(len, found)) <= at_once + bool(uneven)
            numbers.add(len(found))
        assert len(numbers) == 1
        assert numbers == {1} or 0 < at_once < -(-count // size)


def test_by_hand() -> None:
    assert pieces(5, 2) == [slice(0, 1), slice(1, 3), slice(3, 5)]
    assert pieces(32, 3, Ranks(7, 8)) == [slice(0, 2), slice(2, 4)]
    assert [pieces(5, 1, Ranks(rank, 2)) for rank in (0, 1)] == [[slice(0, 1), slice(1, 3)], [slice(0, 1), slice(1, 2)]]
