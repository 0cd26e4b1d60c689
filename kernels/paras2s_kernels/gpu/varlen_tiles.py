"""What the Triton kernels of packed attention share: which tile is whose, and how its rows are read and written.

Tiles are numbered without asking the GPU for the lengths: those of sequence b start at cu[b] // BLOCK + b, which leaves
each at least the room it needs, so a grid of tokens // BLOCK + sequences + 1 holds them all and a program finds its
sequence by bisection. What room is left over exits at once. Tokens behind the last sequence are treated as one more, which sees nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
# Triton would compile anew for a count of 1 and for multiples of 16, which change from batch to batch and make nothing faster; and ptxas
# of CUDA 12.8 crashes on the half-precision forward of exactly one token.
COUNTS = ("tokens", "sequences", "prefix")


@dataclass(frozen=True)
class Tile:
    """Rows of queries and of keys in a block, warps, and blocks in flight where no mask is needed: masked parts are a block or two."""

    queries: int
    keys: int
    warps: int
    stages: int = 2


@triton.jit
def find_place(tile, cu, sequences, tokens, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """(first token of the tile's sequence, its length, first position of the tile, whether it is no sequence but the rest)."""
    low = tl.full((), 0, tl.int64)
    high = low + sequences
    while low < high:
        middle = (low + high + 1) // 2
        fits = tl.load(cu + middle).to(tl.int64) // BLOCK + middle <= tile
        low = tl.where(fits, middle, low)
        high = tl.where(fits, high, middle - 1)
    rest = low == sequences
    start = tl.load(cu + low).to(tl.int64)
    position = (tile - start // BLOCK - low) * BLOCK
    end = tl.load(cu + low + 1, mask=low < sequences, other=0).to(tl.int64)
    end = tl.minimum(tl.where(rest, tokens, end), tokens)
    start = tl.maximum(start, 0)
    return start, end - start, position, rest


@triton.jit
def rows_left(position, stop, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many of the BLOCK rows from `position` lie before `stop`, in 32 bits like all numbers of which a tile is full."""
    return tl.minimum(stop - position, BLOCK).to(tl.int32)


@triton.jit
def load_rows(base, stride, position, stop, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows [position, position + BLOCK) of a head, zero from `stop` on: [BLOCK, BLOCK_D]."""
    row = tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK_D)
    there = (row < rows_left(position, stop, BLOCK))[:, None] & (column < DIM)[None, :]
    return tl.load(base + position * stride + (row[:, None] * stride + column[None, :]), mask=there, other=0.0)


@triton.jit
def store_rows(base, stride, position, stop, block, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Stores what load_rows would load."""
    row = tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK_D)
    there = (row < rows_left(position, stop, BLOCK))[:, None] & (column < DIM)[None, :]
    tl.store(base + position * stride + (row[:, None] * stride + column[None, :]), block.to(base.dtype.element_ty), mask=there)


def tile_for(table: dict[tuple[int, int], Tile], dim: int, itemsize: int) -> Tile:
    """The tile for the smallest head size of the table that holds `dim`."""
    return next(tile for (size, largest), tile in sorted(table.items()) if size == itemsize and largest >= dim)


def near(x: Tensor) -> Tensor:
    """x with tokens so near each other that offsets inside a tile fit 32 bits; those between tiles have 64."""
    return x if x.stride(0) < 2**22 else x.contiguous()


def launch_sizes(tile: Tile, rep: int, dim: int) -> dict[str, int]:
    sizes = {"REP": rep, "DIM": dim, "BLOCK_M": tile.queries, "BLOCK_N": tile.keys, "BLOCK_D": max(16, triton.next_power_of_2(dim))}
    return sizes | {"num_warps": tile.warps, "num_stages": tile.stages}
