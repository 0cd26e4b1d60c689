"""Triton kernel of sampling with its log-probability: one program a row, without a sort.

1. The row's maximum m.
2. Top-k: the largest bit pattern t for which at least k logits lie at or above t, two bits a pass over the row. The bits of a
   float, with the sign turned, are ordered as the float is; a bf16 logit has 16 of them, so 8 passes.
3. Nucleus: the same search, with exp(z - m) as an id's weight in place of 1 and top_p of their sum as the target.
4. One pass with w = exp(z - m) of the ids that are left: s = sum w, and the Gumbel-max draw. argmax z + Gumbel is written as the
   exponential race that it is, argmax w / e with e = -log(uniform): no logarithm of a logarithm.
Passes after the first find the row in the cache. The words are those of philox: counter (stream * 2^22 + column // 4, step, low and
high half of the row id), key the seed, and column % 4 picks one of its four words.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# block of columns -> warps; a row longer than the largest block is walked in several
CONFIGS = {256: 1, 1024: 4, 4096: 8}
# pairs of bits that tell two values of the dtype apart once they are float32: sign, exponent, mantissa
DIGITS = {torch.bfloat16: 8, torch.float16: 10, torch.float32: 16}


@triton.jit
def ordered(x):  # type: ignore[no-untyped-def]
    """uint32 in the order of the float32 x; both zeros are one value."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.uint32, bitcast=True)
    return tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def cut(  # type: ignore[no-untyped-def]
    base, vocab, row_max, inv_temperature, target, MASS: tl.constexpr, DIGITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The largest bits t with a weight of at least `target` at or above t."""
    found = tl.full((), 0, tl.uint32)
    digit = tl.full((), 1 << 30, tl.uint32)
    for _ in range(DIGITS):
        one = tl.full((BLOCK,), 0.0, tl.float32)
        two = tl.full((BLOCK,), 0.0, tl.float32)
        three = tl.full((BLOCK,), 0.0, tl.float32)
        for start in range(0, vocab, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            x = tl.load(base + columns, mask=columns < vocab, other=float("-inf")).to(tl.float32)
            bits = ordered(x)
            weight = tl.full((BLOCK,), 1.0, tl.float32)  # padding counts as -inf does: it changes nothing above
            if MASS:
                weight = tl.exp((x - row_max) * inv_temperature)
            one += tl.where(bits >= found + digit, weight, 0.0)
            two += tl.where(bits >= found + 2 * digit, weight, 0.0)
            three += tl.where(bits >= found + 3 * digit, weight, 0.0)
        # the weight above falls as the bits rise, so these are the first so many of the three
        enough = (tl.sum(one, 0) >= target).to(tl.uint32)
        enough += (tl.sum(two, 0) >= target).to(tl.uint32)
        enough += (tl.sum(three, 0) >= target).to(tl.uint32)
        found += enough * digit
        digit = digit >> 2
    return found


@triton.jit
def exponentials(words):  # type: ignore[no-untyped-def]
    """Exponential variables -log(1 - v) of v = (words + 1/2) / 2^32, exact to a few ulp at both ends.

    1 - v comes from the complement of the words, so it is never 0; where it is rounded, v / (1 - (1 - v)) makes up for it.
    """
    v = (words.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    rest = ((words ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    lost = 1.0 - rest
    return tl.where(lost == 0.0, v, -tl.log(rest) * (v / tl.where(lost == 0.0, 1.0, lost)))


@triton.jit(do_not_specialize=["seed", "stream", "top_k"])
def sample_kernel(  # type: ignore[no-untyped-def]
    logits, row_ids, steps, ids, logprob, row_stride, step_stride, vocab, seed, stream, inv_temperature, top_k, top_p,
    GREEDY: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr, DIGITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    neg_inf = float("-inf")
    base = logits + row * row_stride

    m = tl.full((), neg_inf, tl.float32)
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(base + columns, mask=columns < vocab, other=neg_inf).to(tl.float32)
        m = tl.maximum(m, tl.max(x, 0))

    least = tl.full((), 0, tl.uint32)
    if TOP_K:
        least = cut(base, vocab, m, inv_temperature, top_k * 1.0, False, DIGITS, BLOCK)
    if TOP_P:
        mass = tl.full((BLOCK,), 0.0, tl.float32)
        for start in range(0, vocab, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            x = tl.load(base + columns, mask=columns < vocab, other=neg_inf).to(tl.float32)
            mass += tl.where(ordered(x) >= least, tl.exp((x - m) * inv_temperature), 0.0)
        least = cut(base, vocab, m, inv_temperature, top_p * tl.sum(mass, 0), True, DIGITS, BLOCK)

    row_id = tl.load(row_ids + row)
    zero = tl.full((BLOCK // 4,), 0, tl.uint32)
    c1 = zero + tl.load(steps + row * step_stride).to(tl.uint32)
    c2 = zero + row_id.to(tl.uint32)
    c3 = zero + (row_id >> 32).to(tl.uint32)

    weights = tl.full((BLOCK,), 0.0, tl.float32)
    # in a row of -inf throughout every score is NaN or -inf, larger than nothing: the id stays 0
    best = tl.full((), neg_inf, tl.float32)
    chosen = tl.full((), 0, tl.int32)
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(base + columns, mask=columns < vocab, other=neg_inf).to(tl.float32)
        kept = ordered(x) >= least
        # after a cut few ids are left, and most blocks of a long row need no random numbers
        if tl.max(kept.to(tl.int32), 0) > 0:
            w = tl.where(kept, tl.exp((x - m) * inv_temperature), 0.0)
            weights += w
            if GREEDY:
                score = tl.where(kept, x, neg_inf)
            else:
                c0 = (stream * 4194304 + start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
                r0, r1, r2, r3 = tl.philox(seed, c0, c1, c2, c3)
                words = tl.reshape(tl.join(tl.join(r0, r2), tl.join(r1, r3)), (BLOCK,))
                score = tl.where(kept, w / exponentials(words), neg_inf)
            top, place = tl.max(score, 0, return_indices=True, return_indices_tie_break_left=True)
            chosen = tl.where(top > best, start + place, chosen)
            best = tl.maximum(best, top)

    x_id = tl.load(base + chosen).to(tl.float32)
    value = tl.where(m == neg_inf, neg_inf, (x_id - m) * inv_temperature - tl.log(tl.sum(weights, 0)))
    tl.store(ids + row, chosen.to(tl.int64))
    tl.store(logprob + row, value)


def block_for(vocab: int) -> int:
    """The smallest block that holds the row, or the largest there is."""
    return next((block for block in CONFIGS if block >= vocab), max(CONFIGS))


def forward(
    logits: Tensor,
    seed: int,
    row_ids: Tensor,
    steps: Tensor,
    stream: int,
    temperature: float,
    top_k: int,
    top_p: float,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(ids [N] int64, logprob [N] fp32). `block` is for tests: several in a short row."""
    rows, vocab = logits.shape
    block = block or block_for(vocab)
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logprob = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        sample_kernel[(rows,)](
            logits, row_ids.contiguous(), steps, ids, logprob, logits.stride(0), steps.stride(0), vocab,
            seed, stream, 1.0 / temperature if temperature > 0 else 1.0, top_k, top_p,
            GREEDY=temperature == 0, TOP_K=0 < top_k < vocab, TOP_P=top_p < 1, DIGITS=DIGITS[logits.dtype],
            BLOCK=block, num_warps=CONFIGS.get(block, 1),
        )  # fmt: skip
    return ids, logprob
