"""Plain-torch twin of the token log-probability kernel: the CPU path.

With z = logits / temperature, p = softmax(z) and H = -sum p log p:
    d logprob / d z_j = [j = id] - p_j          d H / d z_j = -p_j (log p_j + H)
One softmax is most of the cost. The forward keeps p for the backward and gets log sum exp from it (the
largest p is 1 / sum exp), so nothing is exponentiated twice; autograd through log_softmax and exp takes
about 2.5x as long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_NEG_INF = float("-inf")
# exp(-1e4) is 0 in fp32: clamping shifted logits here leaves p as it is, and no product becomes 0 * -inf
_FLOOR = -1e4


def _chosen(logits: Tensor, ids: Tensor) -> Tensor:
    """logits at ids, [N] fp32; ValueError for an id outside [0, V)."""
    try:
        if logits.is_cpu:  # gather checks its indices itself on the CPU; elsewhere it would kill the process
            return logits.gather(1, ids.unsqueeze(1)).squeeze(1).float()
    except (RuntimeError, IndexError):
        _check_range(ids, logits.shape[1])
        raise
    _check_range(ids, logits.shape[1])
    return logits.gather(1, ids.unsqueeze(1)).squeeze(1).float()


def _check_range(ids: Tensor, vocab: int) -> None:
    wrong = torch.nonzero((ids < 0) | (ids >= vocab)).flatten()
    if wrong.numel():
        row = int(wrong[0])
        raise ValueError(f"ids: {int(ids[row])} in row {row} is outside [0, {vocab}), the columns of logits")


def _dead_rows(row_max: Tensor) -> Tensor | None:
    """[N] bool, true for a row that is -inf throughout; None when there is none."""
    dead = row_max == _NEG_INF
    return dead if bool(dead.any()) else None


def _shifted(logits: Tensor, row_max: Tensor, dead: Tensor | None, inv_temperature: float) -> Tensor:
    """(logits - row_max) / temperature, [N, V] fp32 in its own memory, finite also where logits are -inf."""
    anchor = row_max if dead is None else row_max.masked_fill(dead, 0.0)
    z = logits - anchor.unsqueeze(1)  # fp32, because the maximum is
    if inv_temperature != 1.0:
        z *= inv_temperature
    return z.clamp_(min=_FLOOR)


def _probabilities(z: Tensor, dead: Tensor | None) -> Tensor:
    p = torch.softmax(z, dim=-1)
    return p if dead is None else p.masked_fill_(dead.unsqueeze(1), 0.0)


def _forward(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inv_temperature = 1.0 / temperature
    logprob = _chosen(logits, ids)
    row_max = logits.amax(dim=-1).float()
    dead = _dead_rows(row_max)
    z = _shifted(logits, row_max, dead, inv_temperature)
    p = _probabilities(z, dead)
    largest = p.amax(dim=-1)
    log_sum = (largest if dead is None else largest.masked_fill_(dead, 1.0)).log_().neg_()
    entropy = log_sum - torch.linalg.vecdot(p, z)
    logprob = (logprob - row_max).mul_(inv_temperature).sub_(log_sum)
    if dead is not None:
        logprob.masked_fill_(dead, _NEG_INF)
    return logprob, entropy, row_max, log_sum, p


def forward(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logprob, entropy, m = largest logit of the row, log sum exp((logits - m) / temperature)), [N] fp32."""
    logprob, entropy, row_max, log_sum, _ = _forward(logits, ids, temperature)
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
    p: Tensor | None = None,
) -> Tensor:
    """Gradient to `logits` [N, V] in their dtype; `p` is the softmax, if the caller kept it."""
    inv_temperature = 1.0 / temperature
    column = ids.unsqueeze(1)
    dead = _dead_rows(row_max)
    if p is None:
        p = _probabilities(_shifted(logits, row_max, dead, inv_temperature), dead)
    if grad_logprob is None:
        grad_logprob = torch.zeros_like(entropy)
    # an impossible token teaches nothing: whatever gradient arrives for its logprob of -inf is dropped
    impossible = logits.gather(1, column).squeeze(1).float() * inv_temperature == _NEG_INF
    grad_logprob = grad_logprob.masked_fill(impossible, 0.0)
    if grad_entropy is None:
        grad = p * grad_logprob.mul(-inv_temperature).unsqueeze(1)
    else:
        if dead is not None:
            grad_entropy = grad_entropy.masked_fill(dead, 0.0)
        constant = grad_logprob + grad_entropy * (entropy - log_sum)
        grad = _shifted(logits, row_max, dead, inv_temperature)
        grad *= grad_entropy.mul(-inv_temperature).unsqueeze(1)
        grad -= constant.mul_(inv_temperature).unsqueeze(1)
        grad *= p
    grad.scatter_add_(1, column, grad_logprob.mul_(inv_temperature).unsqueeze(1))
    return grad.to(logits.dtype)


class TokenLogprob(torch.autograd.Function):
    """The eager CPU path, `TokenLogprob.apply(logits, ids, temperature) -> (logprob, entropy)`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprob, entropy, row_max, log_sum, p = _forward(logits, ids, temperature)
        ctx.set_materialize_grads(False)  # an entropy that only a monitor reads costs nothing in the backward
        ctx.save_for_backward(logits, ids, entropy, row_max, log_sum, p)
        ctx.temperature = temperature
        return logprob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprob: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor, None, None]:
        logits, ids, entropy, row_max, log_sum, p = ctx.saved_tensors
        grad = backward(logits, ids, ctx.temperature, entropy, row_max, log_sum, grad_logprob, grad_entropy, p)
        return grad, None, None
