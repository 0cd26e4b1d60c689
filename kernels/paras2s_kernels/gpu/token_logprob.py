"""Triton kernels of the token log-probability: one program a row, one pass over the row in each direction.

Forward, over blocks of z = logits / temperature with a running maximum m, s = sum exp(z - m) and
t = sum exp(z - m) (z - m); when the maximum moves by d = m_old - m_new,
    s <- exp(d) s          t <- exp(d) (t + d s)
and at the end logprob = z_id - m - log s and entropy = log s - t / s: the online softmax of arXiv:1805.02867
with the entropy's sum carried along. Backward needs m, log s and the entropy, and reads the logits once more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# block of columns -> warps; a row longer than the largest block is walked in several
CONFIGS = {256: 1, 2048: 4, 4096: 8}


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    logits, ids, logprob, entropy, row_max, log_sum, row_stride, vocab, inv_temperature, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    neg_inf = float("-inf")
    base = logits + row * row_stride
    m = tl.full((), neg_inf, tl.float32)
    s = tl.full((), 0.0, tl.float32)
    t = tl.full((), 0.0, tl.float32)
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(base + columns, mask=columns < vocab, other=neg_inf).to(tl.float32)
        illegal = x == neg_inf
        new_m = tl.maximum(m, tl.max(x, 0))
        # while nothing legal was seen the sums are 0 and need no rescaling; -inf - -inf must not reach them
        shift = tl.where(m == neg_inf, 0.0, (m - new_m) * inv_temperature)
        scale = tl.exp(shift)
        z = tl.where(illegal, 0.0, (x - new_m) * inv_temperature)
        e = tl.where(illegal, 0.0, tl.exp(z))
        t = scale * (t + shift * s) + tl.sum(e * z, 0)
        s = scale * s + tl.sum(e, 0)
        m = new_m
    s = tl.where(m == neg_inf, 1.0, s)
    log_s = tl.log(s)

    chosen = tl.load(ids + row)
    in_range = (chosen >= 0) & (chosen < vocab)
    x_id = tl.load(base + chosen, mask=in_range, other=0.0).to(tl.float32)
    value = tl.where(x_id == neg_inf, neg_inf, (x_id - m) * inv_temperature - log_s)
    tl.store(logprob + row, tl.where(in_range, value, float("nan")))
    tl.store(entropy + row, log_s - t / s)
    tl.store(row_max + row, m)
    tl.store(log_sum + row, log_s)


@triton.jit
def backward_kernel(  # type: ignore[no-untyped-def]
    logits, ids, entropy, row_max, log_sum, grad_logprob, grad_entropy, grad,
    row_stride, vocab, inv_temperature, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    neg_inf = float("-inf")
    base = logits + row * row_stride
    out = grad + row * vocab
    m = tl.load(row_max + row)
    log_s = tl.load(log_sum + row)
    chosen = tl.load(ids + row)
    in_range = (chosen >= 0) & (chosen < vocab)
    x_id = tl.load(base + chosen, mask=in_range, other=neg_inf).to(tl.float32)
    # where and not a product: the gradient that arrives for a logprob of -inf may itself be NaN
    g_logprob = tl.where(x_id * inv_temperature == neg_inf, 0.0, tl.load(grad_logprob + row))
    g_entropy = tl.where(m == neg_inf, 0.0, tl.load(grad_entropy + row))
    row_entropy = tl.load(entropy + row)
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocab
        x = tl.load(base + columns, mask=inside, other=neg_inf).to(tl.float32)
        illegal = x == neg_inf
        log_p = tl.where(illegal, 0.0, (x - m) * inv_temperature - log_s)
        p = tl.where(illegal, 0.0, tl.exp(log_p))
        g = -p * (g_logprob + g_entropy * (log_p + row_entropy))
        g += tl.where(columns == chosen, g_logprob, 0.0)
        tl.store(out + columns, (g * inv_temperature).to(grad.dtype.element_ty), mask=inside)


def block_for(vocab: int) -> int:
    """The smallest block that holds the row, or the largest there is."""
    return next((block for block in CONFIGS if block >= vocab), max(CONFIGS))


def forward(logits: Tensor, ids: Tensor, temperature: float, block: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logprob, entropy, m = largest logit of the row, log sum exp((logits - m) / temperature)), [N] fp32.

    An id outside [0, V) reads nothing and gives a logprob of NaN. `block` is for tests: several in a short
    row.
    """
    rows, vocab = logits.shape
    block = block or block_for(vocab)
    outputs = tuple(torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(4))
    if rows:
        forward_kernel[(rows,)](
            logits, ids.contiguous(), *outputs, logits.stride(0), vocab, 1.0 / temperature,
            BLOCK=block, num_warps=CONFIGS.get(block, 1),
        )  # fmt: skip
    logprob, entropy, row_max, log_sum = outputs
    return logprob, entropy, row_max, log_sum


def backward(
    logits: Tensor,
    ids: Tensor,
    temperature: float,
    entropy: Tensor,
    row_max: Tensor,
    log_sum: Tensor,
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    block: int | None = None,
) -> Tensor:
    """Gradient to `logits` [N, V], contiguous, in their dtype."""
    rows, vocab = logits.shape
    block = block or block_for(vocab)
    zero = torch.zeros_like(entropy) if grad_logprob is None or grad_entropy is None else entropy
    grad = torch.empty((rows, vocab), dtype=logits.dtype, device=logits.device)
    if rows:
        backward_kernel[(rows,)](
            logits, ids.contiguous(), entropy.contiguous(), row_max.contiguous(), log_sum.contiguous(),
            zero if grad_logprob is None else grad_logprob.contiguous(),
            zero if grad_entropy is None else grad_entropy.contiguous(),
            grad, logits.stride(0), vocab, 1.0 / temperature, BLOCK=block, num_warps=CONFIGS.get(block, 1),
        )  # fmt: skip
    return grad
