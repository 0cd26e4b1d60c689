"""Head and log-probability on the GPU: the library's matrix products on pieces of the vocabulary, two Triton kernels between them.

A piece of the weight gives [tokens, width] logits in fp32. Forward, `merge_kernel` takes them into each row's running maximum m,
s = sum exp(z - m) and t = sum exp(z - m) (z - m), as in `token_logprob`. Backward computes the piece again, `gradient_kernel` turns it
into its gradient in the dtype of the weight, and two products take that to the hidden states and to the weight. The vocabulary is the
outer loop: a piece of the weight's gradient is then finished before the next begins, and only [N, D] is summed from piece to piece.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# block of columns -> warps
CONFIGS = {256: 1, 1024: 4, 4096: 8}
GRADIENT_BLOCK = 1024
# Tokens and logits held at a time: 400 MB of fp32, in the backward half as much again for bf16, which with the fp32 gradient of the
# hidden states is below 1 GiB at 16384 x 3584. No narrower, because that gradient is read and written once a piece.
TOKENS = 16384
LOGITS = 3 << 25
# A vocabulary is no multiple of anything (Kimi-Audio's audio head has 16,386 rows), and products are several times slower where rows do
# not begin at multiples of 16 bytes.
ALIGNED = 64
# the maximum of a row of which nothing was seen: finite, so that 0 times what is scaled by it is 0
_NOTHING = -1e30


@triton.jit
def merge_kernel(  # type: ignore[no-untyped-def]
    logits, ids, row_max, sums, moments, chosen, row_stride, width, first, inv_temperature, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * row_stride
    m = tl.load(row_max + row)
    s = tl.load(sums + row)
    t = tl.load(moments + row)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        x = tl.load(base + columns, mask=inside, other=float("-inf"))
        new_m = tl.maximum(m, tl.max(x, 0))
        shift = (m - new_m) * inv_temperature
        scale = tl.exp(shift)
        z = tl.where(inside, (x - new_m) * inv_temperature, 0.0)
        e = tl.where(inside, tl.exp(z), 0.0)
        t = scale * (t + shift * s) + tl.sum(e * z, 0)
        s = scale * s + tl.sum(e, 0)
        m = new_m
    tl.store(row_max + row, m)
    tl.store(sums + row, s)
    tl.store(moments + row, t)
    column = tl.load(ids + row) - first
    here = (column >= 0) & (column < width)
    tl.store(chosen + row, tl.load(base + column, mask=here, other=0.0), mask=here)


@triton.jit
def gradient_kernel(  # type: ignore[no-untyped-def]
    logits, ids, entropy, row_max, log_sum, grad_logprob, grad_entropy, grad, row_stride, width, first, inv_temperature,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(logits + row * row_stride + columns, mask=inside, other=0.0)
    g_logprob = tl.load(grad_logprob + row)
    log_p = (x - tl.load(row_max + row)) * inv_temperature - tl.load(log_sum + row)
    g = -tl.exp(log_p) * (g_logprob + tl.load(grad_entropy + row) * (log_p + tl.load(entropy + row)))
    g += tl.where(columns == tl.load(ids + row) - first, g_logprob, 0.0)
    tl.store(grad + row * row_stride + columns, (g * inv_temperature).to(grad.dtype.element_ty), mask=inside)


def _empty(rows: int, width: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """[rows, width] whose rows begin at multiples of ALIGNED numbers."""
    return like.new_empty((rows, -(-width // ALIGNED) * ALIGNED), dtype=dtype)[:, :width]


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b in fp32, also where the factors are not."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32) if out is None else torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)


def _logits(states: Tensor, head: Tensor) -> Tensor:
    return _product(states, head.t(), _empty(len(states), len(head), states, torch.float32))


def _pieces(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _split(rows: int, vocab: int, tokens: int | None, width: int | None) -> tuple[list[slice], list[slice]]:
    """Pieces of the tokens and of the vocabulary; the width is a multiple of 256, which the products like."""
    tokens = min(tokens or TOKENS, max(rows, 1))
    return _pieces(rows, tokens), _pieces(vocab, width or max(1, LOGITS // tokens // 256) * 256)


def forward(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, tokens: int | None = None, width: int | None = None,
    block: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(logprob, entropy, m = largest logit of the row, log sum exp((logits - m) / temperature)), [N] fp32.

    An id outside [0, V) gives a logprob of NaN. `tokens`, `width` and `block` are for tests: several pieces of something small.
    """
    rows, vocab = hidden.shape[0], weight.shape[0]
    ids = ids.contiguous()
    row_max = torch.full((rows,), _NOTHING, dtype=torch.float32, device=hidden.device)
    sums, moments = torch.zeros_like(row_max), torch.zeros_like(row_max)
    chosen = torch.full_like(row_max, float("nan"))
    token_pieces, vocab_pieces = _split(rows, vocab, tokens, width)
    for columns in vocab_pieces:
        for piece in token_pieces:
            logits = _logits(hidden[piece], weight[columns])
            size = block or next((block for block in CONFIGS if block >= logits.shape[1]), max(CONFIGS))
            merge_kernel[(logits.shape[0],)](
                logits, ids[piece], row_max[piece], sums[piece], moments[piece], chosen[piece],
                logits.stride(0), logits.shape[1], columns.start, 1.0 / temperature, BLOCK=size, num_warps=CONFIGS.get(size, 1),
            )  # fmt: skip
            del logits  # before the next piece takes its memory
    log_sum = sums.log()
    return (chosen - row_max) * (1.0 / temperature) - log_sum, log_sum - moments / sums, row_max, log_sum


def backward(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    temperature: float,
    entropy: Tensor,
    row_max: Tensor,
    log_sum: Tensor,
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    need_hidden: bool,
    need_weight: bool,
    tokens: int | None = None,
    width: int | None = None,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients to `hidden` [N, D] and `weight` [V, D] in their dtype, empty where not needed; summed in fp32."""
    rows, vocab = hidden.shape[0], weight.shape[0]
    block = block or GRADIENT_BLOCK
    ids, entropy, row_max, log_sum = (values.contiguous() for values in (ids, entropy, row_max, log_sum))
    zero = torch.zeros_like(entropy)
    grad_logprob = zero if grad_logprob is None else grad_logprob.contiguous()
    grad_entropy = zero if grad_entropy is None else grad_entropy.contiguous()
    grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if need_hidden else hidden.new_empty(0)
    grad_weight = torch.empty_like(weight) if need_weight else weight.new_empty(0)
    token_pieces, vocab_pieces = _split(rows, vocab, tokens, width)
    for columns in vocab_pieces:
        head = weight[columns]
        grad_head = torch.zeros_like(head, dtype=torch.float32) if need_weight else grad_weight
        for piece in token_pieces:
            states = hidden[piece]
            logits = _logits(states, head)
            grad = _empty(logits.shape[0], logits.shape[1], states, weight.dtype)
            gradient_kernel[(logits.shape[0], triton.cdiv(logits.shape[1], block))](
                logits, ids[piece], entropy[piece], row_max[piece], log_sum[piece], grad_logprob[piece], grad_entropy[piece], grad,
                logits.stride(0), logits.shape[1], columns.start, 1.0 / temperature, BLOCK=block, num_warps=CONFIGS.get(block, 1),
            )  # fmt: skip
            del logits  # the products below take its memory
            if need_hidden:
                grad_hidden[piece] += _product(grad, head)
            if need_weight:
                grad_head += _product(grad.t(), states)
            del grad
        if need_weight:
            grad_weight[columns] = grad_head
    return grad_hidden.to(hidden.dtype), grad_weight
