"""Triton kernels of packed attention's gradients: one tile of one sequence and head a program (see varlen_tiles.py), no atomics.

With p = softmax, dp = dout v', delta = sum(dout * out) - dlse:  ds = p (dp - delta),  dq = scale ds k,  dk = scale ds' q,  dv = p' dout.
Keys of the prefix get theirs from every token: parts of the tokens in programs of their own, then a sum. Scores are in units of log 2.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from paras2s_kernels.gpu.varlen_tiles import (
    COUNTS,
    LN2,
    LOG2E,
    Tile,
    find_place,
    launch_sizes,
    load_rows,
    near,
    rows_left,
    store_rows,
    tile_for,
)

DELTA_ROWS = 64
PROGRAMS = 264  # two for each multiprocessor of an H100: what the parts of the prefix's gradient aim at
MIN_PART = 256  # tokens a part, at least

# As FORWARD in varlen_attention.py.
GRAD_QUERIES = {
    (2, 64): Tile(128, 64, 8), (2, 128): Tile(64, 64, 8), (2, 256): Tile(32, 32, 8),
    (4, 64): Tile(32, 32, 8), (4, 128): Tile(32, 16, 8, 1), (4, 256): Tile(16, 16, 8, 1),
}  # fmt: skip
GRAD_KEYS = {
    (2, 64): Tile(32, 32, 8), (2, 128): Tile(32, 32, 8), (2, 256): Tile(32, 32, 8),
    (4, 64): Tile(16, 16, 4, 1), (4, 128): Tile(32, 16, 8, 1), (4, 256): Tile(16, 32, 16, 1),
}  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def delta_kernel(  # type: ignore[no-untyped-def]
    out, grad_out, grad_lse, delta, g_token, g_head, tokens, heads,
    HAS_LSE: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)
    o = load_rows(out + head * DIM, heads * DIM, position, tokens, DIM, BLOCK_M, BLOCK_D)
    g = load_rows(grad_out + head * g_head, g_token, position, tokens, DIM, BLOCK_M, BLOCK_D)
    result = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    row = tl.arange(0, BLOCK_M)
    place = position * heads + head + row * heads
    if HAS_LSE:
        result -= tl.load(grad_lse + place, mask=row < rows_left(position, tokens, BLOCK_M), other=0.0)
    tl.store(delta + place, result, mask=row < rows_left(position, tokens, BLOCK_M))


@triton.jit
def _grad_of_queries(  # type: ignore[no-untyped-def]
    q, g, lse, delta, keys, values, k_token, v_token, first, stop, reach, scale, acc,
    MASKED: tl.constexpr, STEP: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds ds k of keys [first, stop) to acc [M, D]; lse [M] in units of log 2."""
    for position in tl.range(first, stop, BLOCK_N, num_stages=1 if MASKED else None):
        k_block = load_rows(keys, k_token, position, stop, DIM, BLOCK_N, BLOCK_D)
        v_block = load_rows(values, v_token, position, stop, DIM, BLOCK_N, BLOCK_D)
        scores = tl.dot(q, tl.trans(k_block), input_precision="ieee") * scale
        if MASKED:
            last = tl.arange(0, BLOCK_M) * STEP + (reach - position).to(tl.int32)
            scores = tl.where(tl.arange(0, BLOCK_N)[None, :] <= last[:, None], scores, float("-inf"))
        weights = tl.exp2(scores - lse[:, None])
        slope = tl.dot(g, tl.trans(v_block), input_precision="ieee") - delta[:, None]
        acc = tl.dot((weights * slope).to(k_block.dtype), k_block, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=COUNTS)
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
    start, length, position, rest = find_place(tl.program_id(0), cu, sequences, tokens, BLOCK_M)
    if position >= length:
        return
    q_block = load_rows(q + start * q_token + head * q_head, q_token, position, length, DIM, BLOCK_M, BLOCK_D)
    g_block = load_rows(grad_out + start * g_token + head * g_head, g_token, position, length, DIM, BLOCK_M, BLOCK_D)
    row = tl.arange(0, BLOCK_M)
    place = (start + position) * heads + head + row * heads
    lse_block = tl.load(lse + place, mask=row < rows_left(position, length, BLOCK_M), other=0.0) * LOG2E
    delta_block = tl.load(delta + place, mask=row < rows_left(position, length, BLOCK_M), other=0.0)
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
    store_rows(grad_q + (start * heads + head) * DIM, heads * DIM, position, length, acc * (scale * LN2), DIM, BLOCK_M, BLOCK_D)


@triton.jit
def _grad_of_keys(  # type: ignore[no-untyped-def]
    k_block, v_block, q, grad_out, lse, delta, q_token, g_token, heads, first, stop, key, scale, grad_k, grad_v,
    MASKED: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds ds' q and p' dout of a head's queries [first, stop) to grad_k and grad_v [N, D]; key + j is seen from itself on."""
    for position in tl.range(first, stop, BLOCK_M, num_stages=1 if MASKED else None):
        q_block = load_rows(q, q_token, position, stop, DIM, BLOCK_M, BLOCK_D)
        g_block = load_rows(grad_out, g_token, position, stop, DIM, BLOCK_M, BLOCK_D)
        row = tl.arange(0, BLOCK_M)
        live = row < rows_left(position, stop, BLOCK_M)
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


@triton.jit(do_not_specialize=COUNTS)
def grad_keys_kernel(  # type: ignore[no-untyped-def]
    q, k, v, cu, grad_out, lse, delta, grad_k, grad_v,
    q_token, q_head, k_token, k_head, v_token, v_head, g_token, g_head, tokens, sequences, scale,
    REP: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(1).to(tl.int64)
    kv_heads = tl.num_programs(1)
    start, length, position, rest = find_place(tl.program_id(0), cu, sequences, tokens, BLOCK_N)
    if position >= length:
        return
    k_block = load_rows(k + start * k_token + kv_head * k_head, k_token, position, length, DIM, BLOCK_N, BLOCK_D)
    v_block = load_rows(v + start * v_token + kv_head * v_head, v_token, position, length, DIM, BLOCK_N, BLOCK_D)
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
    store_rows(grad_k + place, kv_heads * DIM, position, length, acc_k * (scale * LN2), DIM, BLOCK_N, BLOCK_D)
    store_rows(grad_v + place, kv_heads * DIM, position, length, acc_v, DIM, BLOCK_N, BLOCK_D)


@triton.jit(do_not_specialize=COUNTS)
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
    k_block = load_rows(prefix_k + kv_head * pk_head, pk_token, position, prefix, DIM, BLOCK_N, BLOCK_D)
    v_block = load_rows(prefix_v + kv_head * pv_head, pv_token, position, prefix, DIM, BLOCK_N, BLOCK_D)
    acc_k = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    acc_v = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    heads = kv_heads * REP
    for head in range(kv_head * REP, kv_head * REP + REP):
        acc_k, acc_v = _grad_of_keys(
            k_block, v_block, q + head * q_head, grad_out + head * g_head, lse + head, delta + head, q_token, g_token, heads,
            first, stop, position, scale, acc_k, acc_v, False, DIM, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    place = ((part * prefix) * kv_heads + kv_head) * DIM
    store_rows(part_k + place, kv_heads * DIM, position, prefix, acc_k * (scale * LN2), DIM, BLOCK_N, BLOCK_D)
    store_rows(part_v + place, kv_heads * DIM, position, prefix, acc_v, DIM, BLOCK_N, BLOCK_D)


def parts_for(tokens: int, programs: int) -> int:
    """Parts of the tokens for the gradient of the prefix: enough to fill the GPU, each of MIN_PART tokens at least."""
    return max(1, min(-(-tokens // MIN_PART), -(-PROGRAMS // max(programs, 1))))


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
    q, k, v = near(q), near(k), near(v)
    keys, values = (k, v) if prefix_k is None or prefix_v is None else (near(prefix_k), near(prefix_v))
    if not tokens:
        none = (torch.zeros(x.shape if prefix_grad else 0, dtype=x.dtype, device=x.device) for x in (keys, values))
        return grad_q, grad_k, grad_v, *none  # type: ignore[return-value]
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad_out = near(grad_out if grad_out.stride(2) == 1 or grad_out.shape[2] == 1 else grad_out.contiguous())
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
        tokens, sequences, keys.shape[0], factor, HAS_PREFIX=prefix_k is not None, **launch_sizes(for_queries, rep, dim),
    )  # fmt: skip
    for_keys = tile or tile_for(GRAD_KEYS, dim, itemsize)
    grad_keys_kernel[(tokens // for_keys.keys + sequences + 1, kv_heads)](
        q, k, v, cu, grad_out, lse, delta, grad_k, grad_v,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *grad_out.stride()[:2],
        tokens, sequences, factor, **launch_sizes(for_keys, rep, dim),
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
            tokens, sequences, prefix, factor, **launch_sizes(for_keys, rep, dim),
        )  # fmt: skip
    return grad_q, grad_k, grad_v, part_k.sum(0).to(q.dtype), part_v.sum(0).to(q.dtype)
