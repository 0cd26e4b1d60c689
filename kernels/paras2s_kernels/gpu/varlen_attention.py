"""Triton kernels of packed attention: one tile of one sequence and head a program, forward and backward, no atomics.

Tiles are numbered without asking the GPU for the lengths: those of sequence b start at cu[b] // BLOCK + b, which leaves
each at least the room it needs, so a grid of tokens // BLOCK + sequences + 1 holds them all and a program finds its
sequence by bisection. What room is left over exits at once. Tokens behind the last sequence are treated as one more, which sees nothing.

Keys are walked in parts that all rows see (no mask) and parts that need one: the end of the prefix, and the diagonal. Every
row sees its own key, so its maximum is finite after the first block. Scores are in units of log 2.

Backward, with p = softmax, dp = dout v', delta = sum(dout * out) - dlse:  ds = p (dp - delta),  dq = scale ds k,
dk = scale ds' q,  dv = p' dout. Keys of the prefix get theirs from every token: parts of the tokens in programs of their own, then a sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
DELTA_ROWS = 64
PROGRAMS = 264  # two for each multiprocessor of an H100: what the parts of the prefix's gradient aim at
MIN_PART = 256  # tokens a part, at least


@dataclass(frozen=True)
class Tile:
    """Rows of queries and of keys in a block, warps, and blocks in flight where no mask is needed: masked parts are a block or two."""

    queries: int
    keys: int
    warps: int
    stages: int = 2


# (bytes a number, largest head size) -> tile, so that no register is spilled on any of the GPUs that the tests compile for. Products of
# float32 run outside the tensor cores and keep whole rows in registers: small tiles, most of them with nothing in flight.
FORWARD = {
    (2, 64): Tile(128, 64, 8), (2, 128): Tile(128, 64, 8), (2, 256): Tile(64, 32, 8),
    (4, 64): Tile(32, 32, 8), (4, 128): Tile(32, 32, 8, 1), (4, 256): Tile(16, 16, 8, 1),
}  # fmt: skip
GRAD_QUERIES = {
    (2, 64): Tile(128, 64, 8), (2, 128): Tile(64, 64, 8), (2, 256): Tile(32, 32, 8),
    (4, 64): Tile(32, 32, 8), (4, 128): Tile(32, 16, 8, 1), (4, 256): Tile(16, 16, 8, 1),
}  # fmt: skip
GRAD_KEYS = {
    (2, 64): Tile(32, 32, 8), (2, 128): Tile(32, 32, 8), (2, 256): Tile(32, 32, 8),
    (4, 64): Tile(16, 16, 4, 1), (4, 128): Tile(32, 16, 8, 1), (4, 256): Tile(16, 32, 16, 1),
}  # fmt: skip


@triton.jit
def _place(tile, cu, sequences, tokens, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
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
def _left(position, stop, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many of the BLOCK rows from `position` lie before `stop`, in 32 bits like all numbers of which a tile is full."""
    return tl.minimum(stop - position, BLOCK).to(tl.int32)


@triton.jit
def _rows(base, stride, position, stop, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows [position, position + BLOCK) of a head, zero from `stop` on: [BLOCK, BLOCK_D]."""
    row = tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK_D)
    there = (row < _left(position, stop, BLOCK))[:, None] & (column < DIM)[None, :]
    return tl.load(base + position * stride + (row[:, None] * stride + column[None, :]), mask=there, other=0.0)


@triton.jit
def _keep(base, stride, position, stop, block, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Stores what _rows would load."""
    row = tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK_D)
    there = (row < _left(position, stop, BLOCK))[:, None] & (column < DIM)[None, :]
    tl.store(base + position * stride + (row[:, None] * stride + column[None, :]), block.to(base.dtype.element_ty), mask=there)


@triton.jit
def _absorb(  # type: ignore[no-untyped-def]
    q, keys, values, k_token, v_token, first, stop, reach, scale, m, total, acc,
    MASKED: tl.constexpr, STEP: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Takes keys [first, stop) into maximum [M], sum [M] and undivided output [M, D]; row i sees them up to reach + i * STEP."""
    for position in tl.range(first, stop, BLOCK_N, num_stages=1 if MASKED else None):
        k_block = _rows(keys, k_token, position, stop, DIM, BLOCK_N, BLOCK_D)
        scores = tl.dot(q, tl.trans(k_block), input_precision="ieee") * scale
        if MASKED:
            last = tl.arange(0, BLOCK_M) * STEP + (reach - position).to(tl.int32)
            scores = tl.where(tl.arange(0, BLOCK_N)[None, :] <= last[:, None], scores, float("-inf"))
        new_m = tl.maximum(m, tl.max(scores, 1))
        weights = tl.exp2(scores - new_m[:, None])
        decay = tl.exp2(m - new_m)
        total = total * decay + tl.sum(weights, 1)
        v_block = _rows(values, v_token, position, stop, DIM, BLOCK_N, BLOCK_D)
        acc = acc * decay[:, None]
        acc = tl.dot(weights.to(v_block.dtype), v_block, acc, input_precision="ieee")
        m = new_m
    return m, total, acc


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    q, k, v, prefix_k, prefix_v, cu, out, lse,
    q_token, q_head, k_token, k_head, v_token, v_head, pk_token, pk_head, pv_token, pv_head, tokens, sequences, prefix, scale,
    HAS_PREFIX: tl.constexpr, REP: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    kv_head = head // REP
    start, length, position, rest = _place(tl.program_id(0), cu, sequences, tokens, BLOCK_M)
    if position >= length:
        return
    q_block = _rows(q + start * q_token + head * q_head, q_token, position, length, DIM, BLOCK_M, BLOCK_D)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    zero = start - start
    if HAS_PREFIX:
        keys = prefix_k + kv_head * pk_head
        values = prefix_v + kv_head * pv_head
        seen = tl.where(rest, 0, prefix).to(tl.int64)
        even = seen // BLOCK_N * BLOCK_N
        m, total, acc = _absorb(
            q_block, keys, values, pk_token, pv_token, zero, even, seen - 1, scale, m, total, acc,
            False, 0, DIM, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        m, total, acc = _absorb(
            q_block, keys, values, pk_token, pv_token, even, seen, seen - 1, scale, m, total, acc,
            True, 0, DIM, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    keys = k + start * k_token + kv_head * k_head
    values = v + start * v_token + kv_head * v_head
    stop = tl.where(rest, 0, tl.minimum(position + BLOCK_M, length))
    even = tl.minimum(position // BLOCK_N * BLOCK_N, stop)
    m, total, acc = _absorb(
        q_block, keys, values, k_token, v_token, zero, even, position, scale, m, total, acc,
        False, 1, DIM, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    m, total, acc = _absorb(
        q_block, keys, values, k_token, v_token, even, stop, position, scale, m, total, acc,
        True, 1, DIM, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    nothing = total == 0.0
    result = acc / tl.where(nothing, 1.0, total)[:, None]
    _keep(out + (start * heads + head) * DIM, heads * DIM, position, length, result, DIM, BLOCK_M, BLOCK_D)
    row = tl.arange(0, BLOCK_M)
    sums = tl.where(nothing, float("-inf"), (m + tl.log2(total)) * LN2)
    tl.store(lse + (start + position) * heads + head + row * heads, sums, mask=row < _left(position, length, BLOCK_M))


@triton.jit
def delta_kernel(  # type: ignore[no-untyped-def]
    out, grad_out, grad_lse, delta, g_token, g_head, tokens, heads,
    HAS_LSE: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)
    o = _rows(out + head * DIM, heads * DIM, position, tokens, DIM, BLOCK_M, BLOCK_D)
    g = _rows(grad_out + head * g_head, g_token, position, tokens, DIM, BLOCK_M, BLOCK_D)
    result = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    row = tl.arange(0, BLOCK_M)
    place = position * heads + head + row * heads
    if HAS_LSE:
        result -= tl.load(grad_lse + place, mask=row < _left(position, tokens, BLOCK_M), other=0.0)
    tl.store(delta + place, result, mask=row < _left(position, tokens, BLOCK_M))


@triton.jit
def _grad_of_queries(  # type: ignore[no-untyped-def]
    q, g, lse, delta, keys, values, k_token, v_token, first, stop, reach, scale, acc,
    MASKED: tl.constexpr, STEP: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds ds k of keys [first, stop) to acc [M, D]; lse [M] in units of log 2."""
    for position in tl.range(first, stop, BLOCK_N, num_stages=1 if MASKED else None):
        k_block = _rows(keys, k_token, position, stop, DIM, BLOCK_N, BLOCK_D)
        v_block = _rows(values, v_token, position, stop, DIM, BLOCK_N, BLOCK_D)
        scores = tl.dot(q, tl.trans(k_block), input_precision="ieee") * scale
        if MASKED:
            last = tl.arange(0, BLOCK_M) * STEP + (reach - position).to(tl.int32)
            scores = tl.where(tl.arange(0, BLOCK_N)[None, :] <= last[:, None], scores, float("-inf"))
        weights = tl.exp2(scores - lse[:, None])
        slope = tl.dot(g, tl.trans(v_block), input_precision="ieee") - delta[:, None]
        acc = tl.dot((weights * slope).to(k_block.dtype), k_block, acc, input_precision="ieee")
    return acc


@triton.jit
def grad_queries_kernel(  # type: ignore[no-untyped-def]
    q, k, v, prefix_k, prefix_v, cu, grad_out, lse, delta, grad_q,
    q_token, q_head, k_token, k_head, v_token, v_head, pk_token, pk_head, pv_token, pv_head, g_token, g_head,
    tokens, sequences, prefix, scale,
    HAS_PREFIX: tl.constexpr, REP: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    kv_head = head // REP
    start, length, position, rest = _place(tl.program_id(0), cu, sequences, tokens, BLOCK_M)
    if position >= length:
        return
    q_block = _rows(q + start * q_token + head * q_head, q_token, position, length, DIM, BLOCK_M, BLOCK_D)
    g_block = _rows(grad_out + start * g_token + head * g_head, g_token, position, length, DIM, BLOCK_M, BLOCK_D)
    row = tl.arange(0, BLOCK_M)
    place = (start + position) * heads + head + row * heads
    lse_block = tl.load(lse + place, mask=row < _left(position, length, BLOCK_M), other=0.0) * LOG2E
    delta_block = tl.load(delta + place, mask=row < _left(position, length, BLOCK_M), other=0.0)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    zero = start - start
    if HAS_PREFIX:
        keys = prefix_k + kv_head * pk_head
        values = prefix_v + kv_head * pv_head
        seen = tl.where(rest, 0, prefix).to(tl.int64)
        even = seen // BLOCK_N * BLOCK_N
        acc = _grad_of_queries(
            q_block, g_block, lse_block, delta_block, keys, values, pk_token, pv_token, zero, even, seen - 1, scale, acc,
            False, 0, DIM, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        acc = _grad_of_queries(
            q_block, g_block, lse_block, delta_block, keys, values, pk_token, pv_token, even, seen, seen - 1, scale, acc,
            True, 0, DIM, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    keys = k + start * k_token + kv_head * k_head
    values = v + start * v_token + kv_head * v_head
    stop = tl.where(rest, 0, tl.minimum(position + BLOCK_M, length))
    even = tl.minimum(position // BLOCK_N * BLOCK_N, stop)
    acc = _grad_of_queries(
        q_block, g_block, lse_block, delta_block, keys, values, k_token, v_token, zero, even, position, scale, acc,
        False, 1, DIM, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    acc = _grad_of_queries(
        q_block, g_block, lse_block, delta_block, keys, values, k_token, v_token, even, stop, position, scale, acc,
        True, 1, DIM, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    _keep(grad_q + (start * heads + head) * DIM, heads * DIM, position, length, acc * (scale * LN2), DIM, BLOCK_M, BLOCK_D)


@triton.jit
def _grad_of_keys(  # type: ignore[no-untyped-def]
    k_block, v_block, q, grad_out, lse, delta, q_token, g_token, heads, first, stop, key, scale, grad_k, grad_v,
    MASKED: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds ds' q and p' dout of a head's queries [first, stop) to grad_k and grad_v [N, D]; key + j is seen from itself on."""
    for position in tl.range(first, stop, BLOCK_M, num_stages=1 if MASKED else None):
        q_block = _rows(q, q_token, position, stop, DIM, BLOCK_M, BLOCK_D)
        g_block = _rows(grad_out, g_token, position, stop, DIM, BLOCK_M, BLOCK_D)
        row = tl.arange(0, BLOCK_M)
        live = row < _left(position, stop, BLOCK_M)
        lse_block = tl.load(lse + position * heads + row * heads, mask=live, other=0.0) * LOG2E
        delta_block = tl.load(delta + position * heads + row * heads, mask=live, other=0.0)
        scores = tl.dot(k_block, tl.trans(q_block), input_precision="ieee") * scale
        if MASKED:
            own = tl.arange(0, BLOCK_N) + (key - position).to(tl.int32)
            scores = tl.where(own[:, None] <= row[None, :], scores, float("-inf"))
        weights = tl.exp2(scores - lse_block[None, :])
        grad_v = tl.dot(weights.to(g_block.dtype), g_block, grad_v, input_precision="ieee")
        slope = tl.dot(v_block, tl.trans(g_block), input_precision="ieee") - delta_block[None, :]
        grad_k = tl.dot((weights * slope).to(q_block.dtype), q_block, grad_k, input_precision="ieee")
    return grad_k, grad_v


@triton.jit
def grad_keys_kernel(  # type: ignore[no-untyped-def]
    q, k, v, cu, grad_out, lse, delta, grad_k, grad_v,
    q_token, q_head, k_token, k_head, v_token, v_head, g_token, g_head, tokens, sequences, scale,
    REP: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(1).to(tl.int64)
    kv_heads = tl.num_programs(1)
    start, length, position, rest = _place(tl.program_id(0), cu, sequences, tokens, BLOCK_N)
    if position >= length:
        return
    k_block = _rows(k + start * k_token + kv_head * k_head, k_token, position, length, DIM, BLOCK_N, BLOCK_D)
    v_block = _rows(v + start * v_token + kv_head * v_head, v_token, position, length, DIM, BLOCK_N, BLOCK_D)
    acc_k = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    acc_v = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    stop = tl.where(rest, 0, length)
    first = position // BLOCK_M * BLOCK_M
    even = tl.minimum(tl.cdiv(position + BLOCK_N, BLOCK_M) * BLOCK_M, stop)  # from here on every query sees every key
    heads = kv_heads * REP
    for head in range(kv_head * REP, kv_head * REP + REP):
        q_base = q + start * q_token + head * q_head
        g_base = grad_out + start * g_token + head * g_head
        row_base = start * heads + head
        acc_k, acc_v = _grad_of_keys(
            k_block, v_block, q_base, g_base, lse + row_base, delta + row_base, q_token, g_token, heads, first, even, position, scale,
            acc_k, acc_v, True, DIM, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        acc_k, acc_v = _grad_of_keys(
            k_block, v_block, q_base, g_base, lse + row_base, delta + row_base, q_token, g_token, heads, even, stop, position, scale,
            acc_k, acc_v, False, DIM, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    place = (start * kv_heads + kv_head) * DIM
    _keep(grad_k + place, kv_heads * DIM, position, length, acc_k * (scale * LN2), DIM, BLOCK_N, BLOCK_D)
    _keep(grad_v + place, kv_heads * DIM, position, length, acc_v, DIM, BLOCK_N, BLOCK_D)


@triton.jit
def grad_prefix_kernel(  # type: ignore[no-untyped-def]
    q, prefix_k, prefix_v, cu, grad_out, lse, delta, part_k, part_v,
    q_token, q_head, pk_token, pk_head, pv_token, pv_head, g_token, g_head, tokens, sequences, prefix, scale,
    REP: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * BLOCK_N
    kv_head = tl.program_id(1).to(tl.int64)
    kv_heads = tl.num_programs(1)
    part = tl.program_id(2).to(tl.int64)
    seers = tl.minimum(tl.load(cu + sequences).to(tl.int64), tokens)
    share = tl.cdiv(tl.cdiv(seers, BLOCK_M), tl.num_programs(2).to(tl.int64)) * BLOCK_M
    first = part * share
    stop = tl.minimum(first + share, seers)
    k_block = _rows(prefix_k + kv_head * pk_head, pk_token, position, prefix, DIM, BLOCK_N, BLOCK_D)
    v_block = _rows(prefix_v + kv_head * pv_head, pv_token, position, prefix, DIM, BLOCK_N, BLOCK_D)
    acc_k = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    acc_v = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    heads = kv_heads * REP
    for head in range(kv_head * REP, kv_head * REP + REP):
        acc_k, acc_v = _grad_of_keys(
            k_block, v_block, q + head * q_head, grad_out + head * g_head, lse + head, delta + head, q_token, g_token, heads,
            first, stop, position, scale, acc_k, acc_v, False, DIM, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    place = ((part * prefix) * kv_heads + kv_head) * DIM
    _keep(part_k + place, kv_heads * DIM, position, prefix, acc_k * (scale * LN2), DIM, BLOCK_N, BLOCK_D)
    _keep(part_v + place, kv_heads * DIM, position, prefix, acc_v, DIM, BLOCK_N, BLOCK_D)


def tile_for(table: dict[tuple[int, int], Tile], dim: int, itemsize: int) -> Tile:
    """The tile for the smallest head size of the table that holds `dim`."""
    return next(tile for (size, largest), tile in sorted(table.items()) if size == itemsize and largest >= dim)


def parts_for(tokens: int, programs: int) -> int:
    """Parts of the tokens for the gradient of the prefix: enough to fill the GPU, each of MIN_PART tokens at least."""
    return max(1, min(-(-tokens // MIN_PART), -(-PROGRAMS // max(programs, 1))))


def _near(x: Tensor) -> Tensor:
    """x with tokens so near each other that offsets inside a tile fit 32 bits; those between tiles have 64."""
    return x if x.stride(0) < 2**22 else x.contiguous()


def _blocks(tile: Tile, rep: int, dim: int) -> dict[str, int]:
    sizes = {"REP": rep, "DIM": dim, "BLOCK_M": tile.queries, "BLOCK_N": tile.keys, "BLOCK_D": max(16, triton.next_power_of_2(dim))}
    return sizes | {"num_warps": tile.warps, "num_stages": tile.stages}


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """(out [T, H, d], lse [T, H] fp32). Nothing waits for the GPU: ends beyond T are cut. `tile` is for tests."""
    tokens, heads, dim = q.shape
    out = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((tokens, heads), dtype=torch.float32, device=q.device)
    if not tokens:
        return out, lse
    tile = tile or tile_for(FORWARD, dim, q.dtype.itemsize)
    cu, sequences = cu_seqlens.contiguous(), cu_seqlens.shape[0] - 1
    q, k, v = _near(q), _near(k), _near(v)
    keys, values = (k, v) if prefix_k is None or prefix_v is None else (_near(prefix_k), _near(prefix_v))
    forward_kernel[(tokens // tile.queries + sequences + 1, heads)](
        q, k, v, keys, values, cu, out, lse,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *keys.stride()[:2], *values.stride()[:2],
        tokens, sequences, keys.shape[0], scale * math.log2(math.e), HAS_PREFIX=prefix_k is not None,
        **_blocks(tile, heads // k.shape[1], dim),
    )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    out: Tensor,
    lse: Tensor,
    prefix_grad: bool,
    tile: Tile | None = None,
    parts: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, prefix_k and prefix_v; the last two are empty unless `prefix_grad`. `tile` and `parts` are for tests."""
    tokens, heads, dim = q.shape
    kv_heads, rep, itemsize = k.shape[1], heads // k.shape[1], q.dtype.itemsize
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    q, k, v = _near(q), _near(k), _near(v)
    keys, values = (k, v) if prefix_k is None or prefix_v is None else (_near(prefix_k), _near(prefix_v))
    if not tokens:
        none = (torch.zeros(x.shape if prefix_grad else 0, dtype=x.dtype, device=x.device) for x in (keys, values))
        return grad_q, grad_k, grad_v, *none  # type: ignore[return-value]
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad_out = _near(grad_out if grad_out.stride(2) == 1 or grad_out.shape[2] == 1 else grad_out.contiguous())
    cu, sequences = cu_seqlens.contiguous(), cu_seqlens.shape[0] - 1
    delta = torch.empty_like(lse)
    factor = scale * math.log2(math.e)
    delta_kernel[(-(-tokens // DELTA_ROWS), heads)](
        out, grad_out, lse if grad_lse is None else grad_lse.contiguous(), delta, *grad_out.stride()[:2], tokens, heads,
        HAS_LSE=grad_lse is not None, DIM=dim, BLOCK_M=DELTA_ROWS, BLOCK_D=max(16, triton.next_power_of_2(dim)), num_warps=4,
    )  # fmt: skip
    for_queries = tile or tile_for(GRAD_QUERIES, dim, itemsize)
    grad_queries_kernel[(tokens // for_queries.queries + sequences + 1, heads)](
        q, k, v, keys, values, cu, grad_out, lse, delta, grad_q,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *keys.stride()[:2], *values.stride()[:2], *grad_out.stride()[:2],
        tokens, sequences, keys.shape[0], factor, HAS_PREFIX=prefix_k is not None, **_blocks(for_queries, rep, dim),
    )  # fmt: skip
    for_keys = tile or tile_for(GRAD_KEYS, dim, itemsize)
    grad_keys_kernel[(tokens // for_keys.keys + sequences + 1, kv_heads)](
        q, k, v, cu, grad_out, lse, delta, grad_k, grad_v,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *grad_out.stride()[:2],
        tokens, sequences, factor, **_blocks(for_keys, rep, dim),
    )  # fmt: skip
    if not prefix_grad:
        return grad_q, grad_k, grad_v, q.new_empty(0), q.new_empty(0)
    prefix = keys.shape[0]
    tiles = -(-prefix // for_keys.keys)
    parts = parts or parts_for(tokens, tiles * kv_heads)
    part_k, part_v = (torch.empty((parts, prefix, kv_heads, dim), dtype=torch.float32, device=q.device) for _ in range(2))
    if prefix:
        grad_prefix_kernel[(tiles, kv_heads, parts)](
            q, keys, values, cu, grad_out, lse, delta, part_k, part_v,
            *q.stride()[:2], *keys.stride()[:2], *values.stride()[:2], *grad_out.stride()[:2],
            tokens, sequences, prefix, factor, **_blocks(for_keys, rep, dim),
        )  # fmt: skip
    return grad_q, grad_k, grad_v, part_k.sum(0).to(q.dtype), part_v.sum(0).to(q.dtype)
