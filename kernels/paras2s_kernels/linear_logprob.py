"""Log-probability of the chosen token, entropy and KL estimate from hidden states and the head's weight, without [N, V] logits.

Registered as `torch.ops.paras2s.linear_logprob` with fake tensors and autograd; the KL estimate is [N] and plain torch on top. Eager
CPU calls go straight to the twin's autograd function.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from paras2s_kernels import dispatch
from paras2s_kernels.reference.linear_logprob import LinearLogprob, Rows

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def linear_logprob(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float = 1.0, ref_logprob: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """log softmax(hidden weight^T / temperature) at `ids`, the entropy of that softmax in nats, and the KL to a reference.

    hidden       [N, D] float32, float16 or bfloat16, finite
    weight       [V, D] in the dtype of `hidden`; under autocast both are cast as `F.linear` casts them
    ids          [N] int64 in [0, V)
    temperature  > 0
    ref_logprob  [N] float32: log-probabilities of the same ids under the reference; no gradient goes to it
    returns      logprob, entropy, kl, [N] float32 each. kl is k3 (Schulman 2020), exp(d) - d - 1 of d = ref_logprob - logprob, and 0
                 without `ref_logprob`

    Logits are float32 in every dtype; a fixed number of them is held at a time, forward and backward, which computes them again.
    Gradients reach `hidden` and `weight` from all three outputs, in their dtype, summed in float32, first order only.

    ValueError names the argument: a wrong shape, dtype or device, a temperature that is not positive and finite, ids outside [0, V).
    Triton does not check ids, as it would have to wait for the GPU: there the logprob of such a row is NaN.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    _check(hidden, weight, ids, temperature, ref_logprob)
    with torch.autocast(hidden.device.type, enabled=False):  # it would round the logits to its dtype
        if torch.compiler.is_compiling() or dispatch.choose(hidden.device) == "triton":
            logprob, entropy, _, _ = torch.ops.paras2s.linear_logprob(hidden, weight, ids, float(temperature))
        else:
            logprob, entropy = LinearLogprob.apply(hidden, weight, ids, float(temperature))
    if ref_logprob is None:
        return logprob, entropy, torch.zeros_like(logprob)
    distance = ref_logprob.detach() - logprob
    return logprob, entropy, distance.expm1() - distance


def _check(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, ref_logprob: Tensor | None) -> None:
    if hidden.dim() != 2 or hidden.shape[1] == 0:
        raise ValueError(f"hidden: expected [N, D] with D > 0, got shape {list(hidden.shape)}")
    if hidden.dtype not in _DTYPES:
        raise ValueError(f"hidden: expected float32, float16 or bfloat16, got {hidden.dtype}")
    rows, size = hidden.shape
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != size:
        raise ValueError(f"weight: expected [V, {size}] with V > 0, got shape {list(weight.shape)}")
    if weight.dtype != hidden.dtype:
        raise ValueError(f"weight: expected {hidden.dtype} as hidden, got {weight.dtype}")
    for name, values, dtype in (("ids", ids, torch.int64), ("ref_logprob", ref_logprob, torch.float32)):
        if values is None:
            continue
        if values.dim() != 1 or values.shape[0] != rows:
            raise ValueError(f"{name}: expected [{rows}], one for each row of hidden, got {list(values.shape)}")
        if values.dtype != dtype:
            raise ValueError(f"{name}: expected {dtype}, got {values.dtype}")
    for name, values in (("weight", weight), ("ids", ids), ("ref_logprob", ref_logprob)):
        if values is not None and values.device != hidden.device:
            raise ValueError(f"{name}: on {values.device}, but hidden is on {hidden.device}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: expected a positive finite number, got {temperature}")


@torch.library.custom_op(
    "paras2s::linear_logprob",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor ids, float temperature) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward_op(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float) -> Rows:
    rows: Rows = dispatch.run("linear_logprob", "forward", hidden.device, hidden, weight, ids, temperature)
    return rows


@torch.library.custom_op(
    "paras2s::linear_logprob_backward",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor ids, float temperature, Tensor entropy, Tensor row_max, Tensor log_sum, "
    "Tensor? grad_logprob, Tensor? grad_entropy, bool need_hidden, bool need_weight) -> (Tensor, Tensor)",
)
def _backward_op(hidden: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    with torch.autocast(hidden.device.type, enabled=False):  # where somebody calls backward() under it
        grads: tuple[Tensor, Tensor] = dispatch.run("linear_logprob", "backward", hidden.device, hidden, *arguments)
    return grads


@_forward_op.register_fake
def _(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float) -> Rows:
    a, b, c, d = (hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(4))
    return a, b, c, d


@_backward_op.register_fake
def _(hidden: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    needed = zip(arguments[-2:], (hidden, weight), strict=True)
    grad_hidden, grad_weight = (torch.empty_like(x) if need else x.new_empty(0) for need, x in needed)
    return grad_hidden, grad_weight


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Rows) -> None:
    hidden, weight, ids, ctx.temperature = inputs
    _, entropy, row_max, log_sum = output
    ctx.save_for_backward(hidden, weight, ids, entropy, row_max, log_sum)


def _differentiate(ctx: Any, grad_logprob: Tensor | None, grad_entropy: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    need_hidden, need_weight = ctx.needs_input_grad[:2]
    hidden, weight, ids, entropy, row_max, log_sum = ctx.saved_tensors
    grad_hidden, grad_weight = torch.ops.paras2s.linear_logprob_backward(
        hidden, weight, ids, ctx.temperature, entropy, row_max, log_sum, grad_logprob, grad_entropy, need_hidden, need_weight
    )
    return grad_hidden if need_hidden else None, grad_weight if need_weight else None, None, None


_forward_op.register_autograd(_differentiate, setup_context=_save)
