"""A step in pieces: gradients of some rows at a time are added up, so that the backward keeps what one piece takes."""

from itertools import pairwise

from paras2s_cli.train.ranks import ALONE, Ranks


def pieces(count: int, at_once: int, ranks: Ranks = ALONE) -> list[slice]:
    """This rank's share of `count` rows in pieces, which are as many on all ranks: they go through a model in parts together.

    Args:
        at_once: rows of a piece at most; 0 is all. Where it is 1 and shares are not alike, a piece may have two, as none is empty.

    Returns:
        Slices of the share, of nearly one size. A share without rows is cut as one row that stands in for them (see `sft.lay_out`).
    """
    mine, most, least = (max(1, n) for n in (len(ranks.share(count)), -(-count // ranks.size), count // ranks.size))
    number = min(-(-most // at_once), least) if at_once else 1
    return [slice(a, b) for a, b in pairwise(mine * i // number for i in range(number + 1))]
