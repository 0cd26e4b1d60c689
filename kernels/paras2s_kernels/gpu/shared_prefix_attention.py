"""Triton kernels of shared-prefix decode attention: the prefixes for tiles of rows, then every row's suffix and the merge.

A tile holds consecutive rows of one key-value head and walks the prompts that occur among them, one after the other,
so any order of the rows is right and adjacent rows of one prompt read its prefix once. The prefix is split over programs
(flash-decoding); each leaves its maximum m, its sum of 2^(s - m) and the output before division, in fp32, and the second
kernel goes on from there with the row's own keys. Scores are in units of log 2.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# By bytes a number, so that no register is spilled on any of the GPUs that the tests compile for.
MAX_QUERIES = {2: 64, 4: 16}  # of a tile, where loads can be wide: see `wide`
MAX_QUERIES_NARROW = {2: 32, 4: 16}
MIN_QUERIES = {2: 32, 4: 16}
KEY_BLOCK = {2: 32, 4: 16}
PROGRAMS = 264  # two for each multiprocessor of an H100: what the split of the prefix aims at
MIN_SPLIT = 128  # keys a split, at least
# Every bucket of rows would be compiled anew for a count of 1 and for multiples of 16, which make nothing faster here.
COUNTS = ("rows", "prompts", "capacity", "tile_rows", "splits")


@triton.jit
def _absorb(q, keys, values, seen, scale, m, total, acc):  # type: ignore[no-untyped-def]
    """Takes a block of keys [N, D] into maximum [M], sum [M] and undivided output [M, D]; seen [M, N]."""
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where(seen, scores, float("-inf"))
    new_m = tl.maximum(m, tl.max(scores, 1))
    # a row that has seen nothing stays at -inf, and -inf - -inf must not reach the exponent
    anchor = tl.where(new_m == float("-inf"), 0.0, new_m)
    weights = tl.exp2(scores - anchor[:, None])
    decay = tl.exp2(m - anchor)
    total = total * decay + tl.sum(weights, 1)
    acc = acc * decay[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return new_m, total, acc


@triton.jit(do_not_specialize=COUNTS)
def prefix_kernel(  # type: ignore[no-untyped-def]
    q, keys, values, starts, lengths, prompt_of, part_out, part_max, part_sum,
    q_row, q_head, k_prompt, k_head, k_position, v_prompt, v_head, v_position, rows, prompts, capacity, tile_rows, scale,
    HAS_STARTS: tl.constexpr, REP: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2).to(tl.int64)
    splits = tl.num_programs(2).to(tl.int64)
    query = tl.arange(0, BLOCK_M)
    row = tile * tile_rows + query // REP
    live = (query // REP < tile_rows) & (row < rows)
    q_heads = head * REP + query % REP
    columns = tl.arange(0, BLOCK_D)
    in_dim = (columns < DIM)[None, :]
    q_block = tl.load(q + row[:, None] * q_row + q_heads[:, None] * q_head + columns[None, :], mask=live[:, None] & in_dim, other=0.0)
    prompt = tl.load(prompt_of + row, mask=live, other=-1)
    prompt = tl.where((prompt >= 0) & (prompt < prompts), prompt, prompts)

    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    current = tl.min(prompt, 0)
    while current < prompts:
        first = tl.full((), 0, tl.int64)
        if HAS_STARTS:
            first = tl.maximum(tl.load(starts + current), 0)
        length = tl.minimum(tl.load(lengths + current), capacity - first)
        share = tl.cdiv(tl.cdiv(length, BLOCK_N), splits) * BLOCK_N
        end = tl.minimum(split * share + share, length)
        k_base = keys + current * k_prompt + head * k_head + first * k_position
        v_base = values + current * v_prompt + head * v_head + first * v_position
        for position in range(split * share, end, BLOCK_N):
            offset = position + tl.arange(0, BLOCK_N).to(tl.int64)
            inside = offset < end
            there = inside[:, None] & in_dim
            k_block = tl.load(k_base + offset[:, None] * k_position + columns[None, :], mask=there, other=0.0)
            v_block = tl.load(v_base + offset[:, None] * v_position + columns[None, :], mask=there, other=0.0)
            seen = inside[None, :] & (prompt == current)[:, None]
            m, total, acc = _absorb(q_block, k_block, v_block, seen, scale, m, total, acc)
        current = tl.min(tl.where(prompt > current, prompt, prompts), 0)

    place = ((row * tl.num_programs(1) * REP) + q_heads) * splits + split
    tl.store(part_max + place, m, mask=live)
    tl.store(part_sum + place, total, mask=live)
    tl.store(part_out + place[:, None] * DIM + columns[None, :], acc, mask=live[:, None] & in_dim)


@triton.jit(do_not_specialize=COUNTS)
def suffix_kernel(  # type: ignore[no-untyped-def]
    q, keys, values, lengths, part_out, part_max, part_sum, out,
    q_row, q_head, k_row, k_head, k_position, v_row, v_head, v_position, capacity, splits, scale,
    REP: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    query = tl.arange(0, BLOCK_M)
    live = query < REP
    q_heads = head * REP + query
    columns = tl.arange(0, BLOCK_D)
    in_dim = (columns < DIM)[None, :]
    q_block = tl.load(q + row * q_row + q_heads[:, None] * q_head + columns[None, :], mask=live[:, None] & in_dim, other=0.0)

    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    out_row = row * tl.num_programs(1) * REP + q_heads
    for split in range(0, splits):
        place = out_row * splits + split
        part_m = tl.load(part_max + place, mask=live, other=float("-inf"))
        part_t = tl.load(part_sum + place, mask=live, other=0.0)
        part = tl.load(part_out + place[:, None] * DIM + columns[None, :], mask=live[:, None] & in_dim, other=0.0)
        new_m = tl.maximum(m, part_m)
        anchor = tl.where(new_m == float("-inf"), 0.0, new_m)
        decay = tl.exp2(m - anchor)
        gain = tl.exp2(part_m - anchor)
        total = total * decay + part_t * gain
        acc = acc * decay[:, None] + part * gain[:, None]
        m = new_m

    length = tl.minimum(tl.load(lengths + row), capacity)
    k_base = keys + row * k_row + head * k_head
    v_base = values + row * v_row + head * v_head
    for position in range(0, length, BLOCK_N):
        offset = position + tl.arange(0, BLOCK_N).to(tl.int64)
        inside = offset < length
        there = inside[:, None] & in_dim
        k_block = tl.load(k_base + offset[:, None] * k_position + columns[None, :], mask=there, other=0.0)
        v_block = tl.load(v_base + offset[:, None] * v_position + columns[None, :], mask=there, other=0.0)
        m, total, acc = _absorb(q_block, k_block, v_block, inside[None, :] & live[:, None], scale, m, total, acc)

    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + out_row[:, None] * DIM + columns[None, :], result.to(out.dtype.element_ty), mask=live[:, None] & in_dim)


def wide(*tensors: Tensor) -> bool:
    """Whether addresses and strides are multiples of 16, which is when Triton loads 16 bytes a thread and ahead of their use."""
    return all(x.data_ptr() % 16 == 0 and not any(stride % 16 for stride in x.stride()[:-1]) for x in tensors)


def tiling(rows: int, group: int, rep: int, itemsize: int, wide: bool = True) -> tuple[int, int]:
    """(rows a tile, queries a tile): a group in one tile, or in equal parts where it is too large for one.

    All query heads of a row are in one tile, so one of many heads for each key-value head can be larger than MAX_QUERIES.
    """
    most = max((MAX_QUERIES if wide else MAX_QUERIES_NARROW)[itemsize], triton.next_power_of_2(rep))
    group = min(group, rows)
    parts = -(-group // (most // rep))
    tile_rows = -(-group // parts)
    return tile_rows, queries_of(tile_rows, rep, itemsize)


def queries_of(tile_rows: int, rep: int, itemsize: int) -> int:
    return max(MIN_QUERIES[itemsize], triton.next_power_of_2(tile_rows * rep))


def queries_of_suffix(rep: int, itemsize: int, wide: bool) -> int:
    return max(16 if wide else MIN_QUERIES[itemsize], triton.next_power_of_2(rep))


def launch(dim: int, itemsize: int, queries: int, wide: bool = True) -> dict[str, int]:
    """Keys a block, warps, and stages of the pipeline of loads, for a tile of so many queries; the suffix is always `wide`."""
    large = dim > 128
    warps = 8 if large or queries > MAX_QUERIES[itemsize] else 4
    stages = 1 if itemsize == 4 and not wide else 2 if itemsize == 4 or large else 3
    return {"BLOCK_N": KEY_BLOCK[itemsize], "num_warps": warps, "num_stages": stages}


def splits_for(capacity: int, programs: int) -> int:
    """Parts of the prefix: enough to fill the GPU, each of MIN_SPLIT keys at least; 0 where there is no prefix."""
    return min(-(-capacity // MIN_SPLIT), -(-PROGRAMS // max(programs, 1)))


def forward(
    q: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    prefix_lengths: Tensor,
    suffix_k: Tensor,
    suffix_v: Tensor,
    suffix_lengths: Tensor,
    prompt_of: Tensor,
    scale: float,
    prefix_starts: Tensor | None,
    group: int = 0,
    block: int | None = None,
    splits: int | None = None,
    tile_rows: int | None = None,
) -> Tensor:
    """out [B, H, d]. Nothing waits for the GPU: lengths beyond the memory are cut, an unknown prompt is an empty one.

    `block` (keys), `splits` and `tile_rows` are for tests: several blocks, splits and prompts a tile in few rows.
    """
    rows, heads, dim = q.shape
    prompts, kv_heads, capacity, _ = prefix_k.shape
    out = torch.empty((rows, heads, dim), dtype=q.dtype, device=q.device)
    if not rows:
        return out
    rep, itemsize = heads // kv_heads, q.dtype.itemsize
    all_wide = wide(q, prefix_k, prefix_v, suffix_k, suffix_v)
    chosen_rows, queries = tiling(rows, group or -(-rows // max(prompts, 1)), rep, itemsize, all_wide)
    if tile_rows is not None:
        chosen_rows, queries = tile_rows, queries_of(tile_rows, rep, itemsize)
    tiles = -(-rows // chosen_rows)
    splits = splits_for(capacity, tiles * kv_heads) if splits is None else splits
    part_out = torch.empty((rows, heads, splits, dim), dtype=torch.float32, device=q.device)
    part_max, part_sum = (torch.empty((rows, heads, splits), dtype=torch.float32, device=q.device) for _ in range(2))
    own_queries = queries_of_suffix(rep, itemsize, all_wide)
    sizes = {"REP": rep, "DIM": dim, "BLOCK_D": max(16, triton.next_power_of_2(dim))}
    shared = {**sizes, **launch(dim, itemsize, queries, all_wide), "BLOCK_M": queries}
    own = {**sizes, **launch(dim, itemsize, own_queries), "BLOCK_M": own_queries}
    if block:
        shared["BLOCK_N"] = own["BLOCK_N"] = block
    scale = scale * math.log2(math.e)
    prompt_of, prefix_lengths, suffix_lengths = prompt_of.contiguous(), prefix_lengths.contiguous(), suffix_lengths.contiguous()
    if splits:
        starts = prefix_lengths if prefix_starts is None else prefix_starts.contiguous()
        prefix_kernel[(tiles, kv_heads, splits)](
            q, prefix_k, prefix_v, starts, prefix_lengths, prompt_of, part_out, part_max, part_sum,
            *q.stride()[:2], *prefix_k.stride()[:3], *prefix_v.stride()[:3], rows, prompts, capacity, chosen_rows, scale,
            HAS_STARTS=prefix_starts is not None, **shared,
        )  # fmt: skip
    suffix_kernel[(rows, kv_heads)](
        q, suffix_k, suffix_v, suffix_lengths, part_out, part_max, part_sum, out,
        *q.stride()[:2], *suffix_k.stride()[:3], *suffix_v.stride()[:3], suffix_k.shape[2], splits, scale,
        **own,
    )  # fmt: skip
    return out
