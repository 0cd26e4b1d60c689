"""Plain-torch twin of the GRPO loss kernel: the CPU path.

With r = exp(new - old), d = ref - new and A the row's advantage, a token's loss is
    -min(r A, clip(r, 1 - low, 1 + high) A) + w (exp(d) - d - 1)
    = -A bounded(r) + w k3(d)    with bounded(r) = min(r, 1 + high) where A >= 0, max(r, 1 - low) where A < 0
and its derivative by `new` is -A r (0 where the bound holds it) + w (1 - exp(d)). What a row does not count is cut off
before the first exp: there r = 1, d = 0, A = 0, so that every sum and the gradient are 0 without another mask.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def forward(
    new_logprob: Tensor,
    old_logprob: Tensor,
    ref_logprob: Tensor,
    free: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    kl_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss [], stats [3], token_grad [B, L], share []), fp32: share is 1 / rows counted, token_grad lacks it."""
    missing = advantages.isnan()
    rows = advantages.shape[0] - int(missing.sum())
    ignored = ~free if rows == advantages.shape[0] else ~free | missing.unsqueeze(1)
    new = new_logprob.float()
    ratio = (new - old_logprob).masked_fill_(ignored, 0.0).exp_()
    distance = (ref_logprob - new).masked_fill_(ignored, 0.0)
    by_row = advantages.float().neg().unsqueeze(1)
    minus = by_row.masked_fill(ignored, 0.0)
    expected = distance.exp()
    up = by_row <= 0
    least, most = torch.where(up, -math.inf, 1 - clip_low), torch.where(up, 1 + clip_high, math.inf)
    bounded = ratio.clamp(least.to(ratio.dtype), most.to(ratio.dtype))

    terms = ratio.new_empty(4, *ratio.shape)  # policy, k3, clipped, off policy
    torch.mul(minus, bounded, out=terms[0])
    torch.sub(expected, distance, out=terms[1]).sub_(1)
    apart = torch.sub(ratio, 1, out=terms[3])
    terms[2] = (apart > clip_high) | (apart < -clip_low)
    apart.abs_()

    count = free.sum(1).clamp_(min=1)
    means = (terms.sum(2) / count).sum(1) / max(rows, 1)
    policy, stats = means[0], means[1:].clone()
    token_grad = (ratio * minus).masked_fill_(bounded != ratio, 0.0)
    if kl_weight:  # without a weight a reference that is not finite must not reach the loss
        policy = policy + kl_weight * stats[0]
        token_grad.sub_(expected.sub_(1), alpha=kl_weight)
    share = token_grad.new_tensor(1.0 / rows if rows else 0.0)
    return policy.clone(), stats, token_grad.div_(count.unsqueeze(1)), share


def backward(token_grad: Tensor, share: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient to `new_logprob` [B, L] in its dtype, on any device: one product, which has no kernel of its own."""
    return (token_grad * (share * grad_loss)).to(dtype)


class GrpoLoss(torch.autograd.Function):
    """The eager CPU path, `GrpoLoss.apply(*arguments of forward) -> (loss, stats)`."""

    @staticmethod
    def forward(ctx: Any, new_logprob: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        loss, stats, token_grad, share = forward(new_logprob, *arguments)
        ctx.save_for_backward(token_grad, share)
        ctx.dtype = new_logprob.dtype
        ctx.mark_non_differentiable(stats)
        return loss, stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        token_grad, share = ctx.saved_tensors
        return (backward(token_grad, share, grad_loss, ctx.dtype), *[None] * 7)
