"""The clipped policy loss of GRPO with its KL penalty, its statistics and its gradient, in one pass over the tokens.

Registered as `torch.ops.paras2s.grpo_loss` with fake tensors and autograd. The forward leaves the derivative by
every token behind, so the backward is one product. Eager CPU calls skip the op, as in token_logprob.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from paras2s_kernels import dispatch
from paras2s_kernels.reference.grpo_loss import GrpoLoss, backward

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def grpo_loss(
    new_logprob: Tensor,
    old_logprob: Tensor,
    ref_logprob: Tensor,
    free: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    kl_weight: float,
) -> tuple[Tensor, Tensor]:
    """Clipped policy loss (PPO, arXiv 1707.06347) with the k3 estimate of the KL (GRPO, arXiv 2402.03300), of one stream.

    new_logprob  [B, L] float32, float16 or bfloat16: of the policy that learns, the only one that gets a gradient
    old_logprob  [B, L] of the policy that sampled; ref_logprob [B, L] of the one to stay near; dtypes as above
    free         [B, L] bool, True where the token was the policy's choice
    advantages   [B] float32, float16 or bfloat16; NaN where the answer has no reward
    clip_low     in [0, 1], clip_high >= 0: the ratio new / old pays between 1 - clip_low and 1 + clip_high
    kl_weight    >= 0
    returns      loss [] float32; stats [3] float32, without gradient: kl (k3), clipped share, mean |ratio - 1|

    All four are means over a row's free tokens, then over rows. A row without free tokens counts as 0; a row whose
    advantage is NaN does not count at all, and if no row counts all four are 0. Rows may be strided, the last dimension
    is contiguous. Computed in float32, gradient of first order only. Numbers at tokens that are not free, or in rows that do not
    count, are never read into a result; at the others what is not finite reaches the loss, so that it is seen. With
    kl_weight 0 `ref_logprob` reaches nothing but the statistic.

    The loss of several streams is the weighted sum of the calls. ValueError names the argument: a wrong shape, dtype,
    stride or device, a clip or weight out of its range.
    """
    numbers = {"clip_low": clip_low, "clip_high": clip_high, "kl_weight": kl_weight}
    _check({"old_logprob": old_logprob, "ref_logprob": ref_logprob, "free": free}, new_logprob, advantages, numbers)
    arguments = (new_logprob, old_logprob, ref_logprob, free, advantages, *(float(value) for value in numbers.values()))
    if torch.compiler.is_compiling() or dispatch.choose(new_logprob.device) == "triton":
        loss, stats, _, _ = torch.ops.paras2s.grpo_loss(*arguments)
        return loss, stats.detach()
    return GrpoLoss.apply(*arguments)


def _check(others: dict[str, Tensor], new_logprob: Tensor, advantages: Tensor, numbers: dict[str, float]) -> None:
    if new_logprob.dim() != 2:
        raise ValueError(f"new_logprob: expected [B, L], got shape {list(new_logprob.shape)}")
    for name, tensor in {"new_logprob": new_logprob, **others}.items():
        if tensor.shape != new_logprob.shape:
            raise ValueError(f"{name}: expected {list(new_logprob.shape)}, the shape of new_logprob, got {list(tensor.shape)}")
        if name == "free" and tensor.dtype != torch.bool:
            raise ValueError(f"free: expected bool, got {tensor.dtype}")
        if name != "free" and tensor.dtype not in _DTYPES:
            raise ValueError(f"{name}: expected float32, float16 or bfloat16, got {tensor.dtype}")
        if tensor.shape[1] > 1 and tensor.stride(1) != 1:
            raise ValueError(f"{name}: the last dimension must be contiguous, its stride is {tensor.stride(1)}")
    if advantages.shape != new_logprob.shape[:1]:
        raise ValueError(f"advantages: expected [{new_logprob.shape[0]}], one for each row, got {list(advantages.shape)}")
    if advantages.dtype not in _DTYPES:
        raise ValueError(f"advantages: expected float32, float16 or bfloat16, got {advantages.dtype}")
    for name, tensor in {**others, "advantages": advantages}.items():
        if tensor.device != new_logprob.device:
            raise ValueError(f"{name}: on {tensor.device}, but new_logprob is on {new_logprob.device}")
    for name, value in numbers.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
    if numbers["clip_low"] > 1:
        raise ValueError(f"clip_low: expected at most 1, as no ratio is below 0, got {numbers['clip_low']}")


_Results = tuple[Tensor, Tensor, Tensor, Tensor]  # loss [], stats [3], token_grad [B, L], share [], all fp32


@torch.library.custom_op(
    "paras2s::grpo_loss",
    mutates_args=(),
    schema="(Tensor new_logprob, Tensor old_logprob, Tensor ref_logprob, Tensor free, Tensor advantages, float clip_low, "
    "float clip_high, float kl_weight) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward_op(new_logprob: Tensor, *arguments: Any) -> _Results:
    results: _Results = dispatch.run("grpo_loss", "forward", new_logprob.device, new_logprob, *arguments)
    return results


@_forward_op.register_fake
def _(new_logprob: Tensor, *arguments: Any) -> _Results:
    loss, stats, share = (new_logprob.new_empty(shape, dtype=torch.float32) for shape in ((), (3,), ()))
    return loss, stats, new_logprob.new_empty(new_logprob.shape, dtype=torch.float32), share


def _save(ctx: Any, inputs: tuple[Any, ...], output: _Results) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(*output[2:])


def _differentiate(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    token_grad, share = ctx.saved_tensors
    return (backward(token_grad, share, grad_loss, ctx.dtype), *[None] * 7)


_forward_op.register_autograd(_differentiate, setup_context=_save)
