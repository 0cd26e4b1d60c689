"""Triton kernel of packed attention: one tile of one sequence and head a program (see varlen_tiles.py).

Keys are walked in parts that all rows see (no mask) and parts that need one: the end of the prefix, and the diagonal. Every
row sees its own key, so its maximum is finite after the first block. Scores are in units of log 2.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from paras2s_kernels.gpu.varlen_attention_backward import backward
from paras2s_kernels.gpu.varlen_tiles import COUNTS, LN2, Tile, find_place, launch_sizes, load_rows, near, rows_left, store_rows, tile_for

__all__ = ["backward", "forward"]

# (bytes a number, largest head size) -> tile, so that no register is spilled on any of the GPUs that the tests compile for. Products of
# float32 run outside the tensor cores and keep whole rows in registers: small tiles, most of them with nothing in flight.
FORWARD = {
    (2, 64): Tile(128, 64, 8), (2, 128): Tile(128, 64, 8), (2, 256): Tile(64, 32, 8),
    (4, 64): Tile(32, 32, 8), (4, 128): Tile(32, 32, 8, 1), (4, 256): Tile(16, 16, 8, 1),
}  # fmt: skip


@triton.jit
def _absorb(  # type: ignore[no-untyped-def]
    q, keys, values, k_token, v_token, first, stop, reach, scale, m, total, acc,
    MASKED: tl.constexpr, STEP: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Takes keys [first, stop) into maximum [M], sum [M] and undivided output [M, D]; row i sees them up to reach + i * STEP."""
    for position in tl.range(first, stop, BLOCK_N, num_stages=1 if MASKED else None):
        k_block = load_rows(keys, k_token, position, stop, DIM, BLOCK_N, BLOCK_D)
        scores = tl.dot(q, tl.trans(k_block), input_precision="ieee") * scale
        if MASKED:
            last = tl.arange(0, BLOCK_M) * STEP + (reach - position).to(tl.int32)
            scores = tl.where(tl.arange(0, BLOCK_N)[None, :] <= last[:, None], scores, float("-inf"))
        new_m = tl.maximum(m, tl.max(scores, 1))
        weights = tl.exp2(scores - new_m[:, None])
        decay = tl.exp2(m - new_m)
        total = total * decay + tl.sum(weights, 1)
        v_block = load_rows(values, v_token, position, stop, DIM, BLOCK_N, BLOCK_D)
        acc = acc * decay[:, None]
        acc = tl.dot(weights.to(v_block.dtype), v_block, acc, input_precision="ieee")
        m = new_m
    return m, total, acc


@triton.jit(do_not_specialize=COUNTS)
def forward_kernel(  # type: ignore[no-untyped-def]
    q, k, v, prefix_k, prefix_v, cu, out, lse,
    q_token, q_head, k_token, k_head, v_token, v_head, pk_token, pk_head, pv_token, pv_head, tokens, sequences, prefix, scale,
    HAS_PREFIX: tl.constexpr, REP: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    kv_head = head // REP
    start, length, position, rest = find_place(tl.program_id(0), cu, sequences, tokens, BLOCK_M)
    if position >= length:
        return
    q_block = load_rows(q + start * q_token + head * q_head, q_token, position, length, DIM, BLOCK_M, BLOCK_D)
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
    store_rows(out + (start * heads + head) * DIM, heads * DIM, position, length, result, DIM, BLOCK_M, BLOCK_D)
    row = tl.arange(0, BLOCK_M)
    sums = tl.where(nothing, float("-inf"), (m + tl.log2(total)) * LN2)
    tl.store(lse + (start + position) * heads + head + row * heads, sums, mask=row < rows_left(position, length, BLOCK_M))


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
    q, k, v = near(q), near(k), near(v)
    keys, values = (k, v) if prefix_k is None or prefix_v is None else (near(prefix_k), near(prefix_v))
    forward_kernel[(tokens // tile.queries + sequences + 1, heads)](
        q, k, v, keys, values, cu, out, lse,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *keys.stride()[:2], *values.stride()[:2],
        tokens, sequences, keys.shape[0], scale * math.log2(math.e), HAS_PREFIX=prefix_k is not None,
        **launch_sizes(tile, heads // k.shape[1], dim),
    )  # fmt: skip
    return out, lse
