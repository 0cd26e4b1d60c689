"""Log-probability of the chosen token and entropy of its distribution, in one pass over the logits.

Registered as `torch.ops.paras2s.token_logprob` with fake tensors and autograd: torch.compile keeps one
graph. Eager CPU calls go straight to the twin's autograd function: the op's Python layers add a third to a
small call, and only the twin's own function can keep the softmax for its backward (2x at 2000 x 1026).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from paras2s_kernels import dispatch
from paras2s_kernels.reference.token_logprob import TokenLogprob

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def token_logprob(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature) at `ids`, and the entropy of that softmax in nats.

    logits       [N, V] float32, float16 or bfloat16; rows may be strided, the last dimension is contiguous
    ids          [N] int64 in [0, V)
    temperature  > 0
    returns      logprob [N] float32, entropy [N] float32, computed in float32

    A logit of -inf is an illegal id: it has probability 0, adds nothing to the entropy, and its gradient is
    0. A chosen id that is illegal has logprob -inf and sends no gradient through it. A row that is -inf
    throughout has logprob -inf, entropy 0 and gradient 0. Gradients reach `logits` from both outputs, in
    their dtype, first order only.

    ValueError names the argument: a wrong shape, dtype, stride or device, a temperature that is not positive
    and finite, ids outside [0, V). Triton does not check ids, as it would have to wait for the GPU: there
    the logprob of such a row is NaN, and no memory outside the row is read.
    """
    _check(logits, ids, temperature)
    if torch.compiler.is_compiling() or dispatch.choose(logits.device) == "triton":
        logprob, entropy, _, _ = torch.ops.paras2s.token_logprob(logits, ids, float(temperature))
        return logprob, entropy
    return TokenLogprob.apply(logits, ids, float(temperature))


def _check(logits: Tensor, ids: Tensor, temperature: float) -> None:
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits: expected [N, V] with V > 0, got shape {list(logits.shape)}")
    if logits.dtype not in _DTYPES:
        raise ValueError(f"logits: expected float32, float16 or bfloat16, got {logits.dtype}")
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        raise ValueError(f"logits: the last dimension must be contiguous, its stride is {logits.stride(1)}")
    if ids.dim() != 1 or ids.shape[0] != logits.shape[0]:
        raise ValueError(f"ids: expected [{logits.shape[0]}], one for each row of logits, got {list(ids.shape)}")
    if ids.dtype != torch.int64:
        raise ValueError(f"ids: expected int64, got {ids.dtype}")
    if ids.device != logits.device:
        raise ValueError(f"ids: on {ids.device}, but logits are on {logits.device}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: expected a positive finite number, got {temperature}")


_Rows = tuple[Tensor, Tensor, Tensor, Tensor]  # logprob, entropy, row_max, log_sum, each [N] fp32


@torch.library.custom_op(
    "paras2s::token_logprob",
    mutates_args=(),
    schema="(Tensor logits, Tensor ids, float temperature) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward_op(logits: Tensor, ids: Tensor, temperature: float) -> _Rows:
    rows: _Rows = dispatch.run("token_logprob", "forward", logits.device, logits, ids, temperature)
    return rows


@torch.library.custom_op(
    "paras2s::token_logprob_backward",
    mutates_args=(),
    schema="(Tensor logits, Tensor ids, float temperature, Tensor entropy, Tensor row_max, Tensor log_sum, "
    "Tensor? grad_logprob, Tensor? grad_entropy) -> Tensor",
)
def _backward_op(logits: Tensor, *arguments: Any) -> Tensor:
    grad: Tensor = dispatch.run("token_logprob", "backward", logits.device, logits, *arguments)
    return grad


@_forward_op.register_fake
def _(logits: Tensor, ids: Tensor, temperature: float) -> _Rows:
    a, b, c, d = (logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(4))
    return a, b, c, d


@_backward_op.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: _Rows) -> None:
    logits, ids, ctx.temperature = inputs
    _, entropy, row_max, log_sum = output
    ctx.save_for_backward(logits, ids, entropy, row_max, log_sum)


def _differentiate(ctx: Any, grad_logprob: Tensor | None, grad_entropy: Tensor | None, *unused: Any) -> tuple[Tensor, None, None]:
    logits, ids, entropy, row_max, log_sum = ctx.saved_tensors
    grad = torch.ops.paras2s.token_logprob_backward(logits, ids, ctx.temperature, entropy, row_max, log_sum, grad_logprob, grad_entropy)
    return grad, None, None


_forward_op.register_autograd(_differentiate, setup_context=_save)
