"""Plain-torch twin of the head-and-log-probability kernel: the CPU path, a few hundred tokens at a time.

A piece of hidden states gives a piece of logits, which `token_logprob`'s twin turns into log-probabilities and entropies, and in the
backward, recomputed, into their gradient. What is kept between the two is [N].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from paras2s_kernels.reference import token_logprob

# Logits held at a time, for a small vocabulary: 2 MB, which the caches take. For a large one at least so many tokens, for else the
# gradient of the weight is read and written more often than it is computed.
_CHUNK = 1 << 19
_TOKENS = 256

Rows = tuple[Tensor, Tensor, Tensor, Tensor]  # logprob, entropy, row_max, log_sum, each [N] fp32


def _pieces(rows: int, vocab: int) -> Iterator[slice]:
    size = max(_TOKENS, _CHUNK // vocab)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _check_range(ids: Tensor, vocab: int) -> None:
    wrong = torch.nonzero((ids < 0) | (ids >= vocab)).flatten()
    if wrong.numel():
        row = int(wrong[0])
        raise ValueError(f"ids: {int(ids[row])} in row {row} is outside [0, {vocab}), the rows of weight")


def forward(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float) -> Rows:
    """(logprob, entropy, largest logit of the row, log sum exp((logits - it) / temperature)), [N] fp32."""
    _check_range(ids, weight.shape[0])
    head = weight.float().t()
    outputs = tuple(torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device) for _ in range(4))
    for piece in _pieces(hidden.shape[0], weight.shape[0]):
        done = token_logprob.forward(hidden[piece].float() @ head, ids[piece], temperature)
        for output, values in zip(outputs, done, strict=True):
            output[piece] = values
    logprob, entropy, row_max, log_sum = outputs
    return logprob, entropy, row_max, log_sum


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
) -> tuple[Tensor, Tensor]:
    """Gradients to `hidden` [N, D] and `weight` [V, D] in their dtype, empty where not needed; summed in fp32."""
    head = weight.float()
    grad_hidden = torch.empty_like(hidden) if need_hidden else hidden.new_empty(0)
    grad_head = torch.zeros_like(head) if need_weight else head.new_empty(0)
    for piece in _pieces(hidden.shape[0], weight.shape[0]):
        states = hidden[piece].float()
        grad = token_logprob.backward(
            states @ head.t(), ids[piece], temperature, entropy[piece], row_max[piece], log_sum[piece],
            None if grad_logprob is None else grad_logprob[piece], None if grad_entropy is None else grad_entropy[piece],
        )  # fmt: skip
        if need_hidden:
            grad_hidden[piece] = grad @ head
        if need_weight:
            grad_head.addmm_(grad.t(), states)
    return grad_hidden, grad_head.to(weight.dtype)


class LinearLogprob(torch.autograd.Function):
    """The eager CPU path, `LinearLogprob.apply(hidden, weight, ids, temperature) -> (logprob, entropy)`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprob, entropy, row_max, log_sum = forward(hidden, weight, ids, temperature)
        ctx.set_materialize_grads(False)  # an entropy that only a monitor reads costs nothing in the backward
        ctx.save_for_backward(hidden, weight, ids, entropy, row_max, log_sum)
        ctx.temperature = temperature
        return logprob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprob: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, ids, entropy, row_max, log_sum = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        with torch.autocast(hidden.device.type, enabled=False):  # where somebody calls backward() under it
            grad_hidden, grad_weight = backward(
                hidden, weight, ids, ctx.temperature, entropy, row_max, log_sum, grad_logprob, grad_entropy, need_hidden, need_weight
            )
        return grad_hidden if need_hidden else None, grad_weight if need_weight else None, None, None
