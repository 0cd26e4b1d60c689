"""Triton kernels of the GRPO loss: one program a row, then one program for the means over rows.

The sums are deterministic: every row leaves its four means in memory and a second kernel adds them in a fixed
order. The formulas are in the docstring of the plain-torch twin.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# tokens a block -> warps; a longer row is walked in several blocks
CONFIGS = {128: 1, 1024: 4}
ROW_BLOCK = 1024


@triton.jit
def rows_kernel(  # type: ignore[no-untyped-def]
    new_logprob, old_logprob, ref_logprob, free, advantages, means, token_grad,
    new_stride, old_stride, ref_stride, free_stride, length, clip_low, clip_high, lower, upper, kl_weight,
    HAS_KL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    advantage = tl.load(advantages + row).to(tl.float32)
    counted = tl.where(advantage == advantage, length, 0)  # columns that count: none without a reward
    is_free = free + row * free_stride
    count = tl.full((), 0, tl.int32)
    for start in range(0, length, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        count += tl.sum(tl.load(is_free + columns, mask=columns < length, other=0).to(tl.int32), 0)
    per_token = 1.0 / tl.maximum(count, 1).to(tl.float32)

    policy = tl.full((), 0.0, tl.float32)
    kl = tl.full((), 0.0, tl.float32)
    clipped = tl.full((), 0.0, tl.float32)
    off = tl.full((), 0.0, tl.float32)
    for start in range(0, length, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < length
        keep = tl.load(is_free + columns, mask=columns < counted, other=0) != 0
        # nothing is read where the mask is False, and the zeros there make ratio 1 and k3 0
        new = tl.load(new_logprob + row * new_stride + columns, mask=keep, other=0.0).to(tl.float32)
        old = tl.load(old_logprob + row * old_stride + columns, mask=keep, other=0.0).to(tl.float32)
        ref = tl.load(ref_logprob + row * ref_stride + columns, mask=keep, other=0.0).to(tl.float32)
        ratio = tl.exp(new - old)
        distance = ref - new
        expected = tl.exp(distance)
        # comparisons and no minimum: that one would return the bound for a ratio of NaN
        held = tl.where(advantage >= 0, ratio > upper, ratio < lower)
        bound = tl.where(advantage >= 0, upper, lower)
        policy += tl.sum(tl.where(keep, -advantage * tl.where(held, bound, ratio), 0.0), 0)
        kl += tl.sum(expected - distance - 1.0, 0)
        apart = ratio - 1.0
        clipped += tl.sum(((apart > clip_high) | (-apart > clip_low)).to(tl.float32), 0)
        off += tl.sum(tl.abs(apart), 0)
        grad = tl.where(held, 0.0, -advantage * ratio)
        if HAS_KL:
            grad += kl_weight * (1.0 - expected)
        tl.store(token_grad + row * length + columns, tl.where(keep, grad * per_token, 0.0), mask=inside)
    tl.store(means + row * 4, policy * per_token)
    tl.store(means + row * 4 + 1, kl * per_token)
    tl.store(means + row * 4 + 2, clipped * per_token)
    tl.store(means + row * 4 + 3, off * per_token)


@triton.jit
def totals_kernel(  # type: ignore[no-untyped-def]
    means, advantages, loss, stats, share, rows, kl_weight, HAS_KL: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    policy = tl.full((), 0.0, tl.float32)
    kl = tl.full((), 0.0, tl.float32)
    clipped = tl.full((), 0.0, tl.float32)
    off = tl.full((), 0.0, tl.float32)
    counted = tl.full((), 0, tl.int32)
    for start in range(0, rows, BLOCK):
        row = (start + tl.arange(0, BLOCK)).to(tl.int64)
        inside = row < rows
        advantage = tl.load(advantages + row, mask=inside, other=float("nan")).to(tl.float32)
        counted += tl.sum((advantage == advantage).to(tl.int32), 0)
        policy += tl.sum(tl.load(means + row * 4, mask=inside, other=0.0), 0)
        kl += tl.sum(tl.load(means + row * 4 + 1, mask=inside, other=0.0), 0)
        clipped += tl.sum(tl.load(means + row * 4 + 2, mask=inside, other=0.0), 0)
        off += tl.sum(tl.load(means + row * 4 + 3, mask=inside, other=0.0), 0)
    per_row = tl.where(counted > 0, 1.0 / tl.maximum(counted, 1).to(tl.float32), 0.0)
    total = policy * per_row
    if HAS_KL:
        total += kl_weight * (kl * per_row)
    tl.store(loss, total)
    tl.store(stats, kl * per_row)
    tl.store(stats + 1, clipped * per_row)
    tl.store(stats + 2, off * per_row)
    tl.store(share, per_row)


def block_for(length: int) -> int:
    """The smallest block that holds the row, or the largest there is."""
    return next((block for block in CONFIGS if block >= length), max(CONFIGS))


def forward(
    new_logprob: Tensor,
    old_logprob: Tensor,
    ref_logprob: Tensor,
    free: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    kl_weight: float,
    block: int | None = None,
    row_block: int = ROW_BLOCK,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss [], stats [3], token_grad [B, L], share []), fp32: share is 1 / rows counted, token_grad lacks it.

    `block` and `row_block` are for tests: several blocks in a short row, and in few rows.
    """
    rows, length = new_logprob.shape
    block = block or block_for(length)
    token_grad, means, stats, loss, share = (
        torch.empty(shape, dtype=torch.float32, device=new_logprob.device) for shape in ((rows, length), (rows, 4), (3,), (), ())
    )
    advantages = advantages.contiguous()
    tokens = (new_logprob, old_logprob, ref_logprob, free)
    if rows:
        rows_kernel[(rows,)](
            *tokens, advantages, means, token_grad, *(tensor.stride(0) for tensor in tokens), length,
            clip_low, clip_high, 1 - clip_low, 1 + clip_high, kl_weight,
            HAS_KL=kl_weight != 0, BLOCK=block, num_warps=CONFIGS.get(block, 1),
        )  # fmt: skip
    totals_kernel[(1,)](
        means, advantages, loss, stats, share, rows, kl_weight, HAS_KL=kl_weight != 0, BLOCK=row_block, num_warps=4
    )  # fmt: skip
    return loss, stats, token_grad, share
