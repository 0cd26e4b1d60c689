"""Causal attention of packed sequences, all of which may begin with one shared prefix.

Registered as `torch.ops.paras2s.varlen_attention` with fake tensors and autograd; the op returns the log-sum-exp [T, H] too,
differentiable, to merge with other attention. Eager calls that flash-attn or torch's own flash attention can take go there, others
to Triton; on the CPU to torch's fused attention.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from paras2s_kernels import dispatch, varlen_libraries
from paras2s_kernels.reference import varlen_attention as reference

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_DIM = 256


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float | None = None,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """softmax(scale q k') v, each position over the whole prefix and then its own sequence up to itself.

    q                   [T, H, d] float32, float16 or bfloat16, d <= 256: the tokens of all sequences one after the other
    k, v                [T, Hkv, d] in the dtype of q, H a multiple of Hkv: query head h reads head h // (H / Hkv)
    cu_seqlens          [B + 1] int32: sequence b is tokens [cu_seqlens[b], cu_seqlens[b + 1]); it rises from 0 to T, empty ones are allowed
    scale               multiplies the scores; None is d ** -0.5
    prefix_k, prefix_v  [P, Hkv, d]: keys and values that every position sees besides, positions already in them; both or none
    max_seqlen          at least the longest sequence; None is T. Only flash-attn and torch's flash use it, to launch less
    returns             [T, H, d] in the dtype of q

    Tokens and heads may be strided, the last dimension is contiguous. Sums are in float32. Gradients of first order reach q, k, v and the
    prefix; on Triton and the CPU they are the same at every run.

    ValueError names the argument: a wrong shape, dtype, stride or device, a scale that is not finite, one of the two prefixes
    without the other, cu_seqlens that do not rise from 0 to T, a sequence above max_seqlen. The last two are checked on the CPU
    only, as it would have to wait for the GPU: there Triton cuts ends beyond T, and tokens behind the last end get 0.
    """
    scale = q.shape[-1] ** -0.5 if scale is None and q.dim() == 3 and q.shape[-1] else scale
    _check(q, {"k": k, "v": v}, {"prefix_k": prefix_k, "prefix_v": prefix_v}, cu_seqlens, max_seqlen)
    if scale is None or not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number, got {scale}")
    arguments = (q, k, v, cu_seqlens, float(scale), prefix_k, prefix_v)
    if torch.compiler.is_compiling():
        return _op(*arguments)
    if library := varlen_libraries.choose(q, k, prefix_k):
        return varlen_libraries.run(library, q, k, v, cu_seqlens, float(scale), max_seqlen)
    if dispatch.choose(q.device) == "triton":
        return _op(*arguments)
    return reference.attend(*arguments, max_seqlen)


def _op(*arguments: Any) -> Tensor:
    out: Tensor = torch.ops.paras2s.varlen_attention(*arguments)[0]
    return out


def _check(q: Tensor, keys: dict[str, Tensor], prefixes: dict[str, Tensor | None], cu_seqlens: Tensor, max_seqlen: int | None) -> None:
    if q.dim() != 3 or not 0 < q.shape[2] <= _MAX_DIM or q.shape[1] == 0:
        raise ValueError(f"q: expected [T, H, d] with H > 0 and 0 < d <= {_MAX_DIM}, got shape {list(q.shape)}")
    if q.dtype not in _DTYPES:
        raise ValueError(f"q: expected float32, float16 or bfloat16, got {q.dtype}")
    tokens, heads, dim = q.shape
    shared = {name: tensor for name, tensor in prefixes.items() if tensor is not None}
    if len(shared) == 1:
        missing = next(name for name in prefixes if name not in shared)
        raise ValueError(f"{missing}: missing beside {next(iter(shared))}; give both or none")
    for name, tensor in {**keys, **shared}.items():
        first = "T" if name in keys else "P"
        if tensor.dim() != 3 or tensor.shape[2] != dim or (first == "T" and tensor.shape[0] != tokens):
            raise ValueError(f"{name}: expected [{first}, Hkv, d] beside q of {list(q.shape)}, got shape {list(tensor.shape)}")
        if tensor.shape[1] != keys["k"].shape[1] or tensor.shape[1] == 0 or heads % tensor.shape[1]:
            raise ValueError(f"{name}: {tensor.shape[1]} heads, which must divide the {heads} of q and be those of k")
    if shared and shared["prefix_v"].shape != shared["prefix_k"].shape:
        shape = list(shared["prefix_k"].shape)
        raise ValueError(f"prefix_v: expected {shape}, the shape of prefix_k, got {list(shared['prefix_v'].shape)}")
    for name, tensor in {"q": q, **keys, **shared}.items():
        if tensor.dtype != q.dtype:
            raise ValueError(f"{name}: expected {q.dtype}, the dtype of q, got {tensor.dtype}")
        if tensor.device != q.device:
            raise ValueError(f"{name}: on {tensor.device}, but q is on {q.device}")
        if dim > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name}: the last dimension must be contiguous, its stride is {tensor.stride(-1)}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens: expected [B + 1], got shape {list(cu_seqlens.shape)}")
    if cu_seqlens.dtype != torch.int32:
        raise ValueError(f"cu_seqlens: expected int32, got {cu_seqlens.dtype}")
    if cu_seqlens.device != q.device:
        raise ValueError(f"cu_seqlens: on {cu_seqlens.device}, but q is on {q.device}")
    if max_seqlen is not None and max_seqlen < 0:
        raise ValueError(f"max_seqlen: expected at least 0, got {max_seqlen}")


_Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op(
    "paras2s::varlen_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, float scale, Tensor? prefix_k, Tensor? prefix_v) -> (Tensor, Tensor)",
)
def _forward_op(q: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    results: tuple[Tensor, Tensor] = dispatch.run("varlen_attention", "forward", q.device, q, *arguments)
    return results


@torch.library.custom_op(
    "paras2s::varlen_attention_backward",
    mutates_args=(),
    schema="(Tensor? grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, float scale, Tensor? prefix_k, "
    "Tensor? prefix_v, Tensor out, Tensor lse, bool prefix_grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward_op(grad_out: Tensor | None, grad_lse: Tensor | None, q: Tensor, *arguments: Any) -> _Grads:
    grads: _Grads = dispatch.run("varlen_attention", "backward", q.device, grad_out, grad_lse, q, *arguments)
    return grads


@_forward_op.register_fake
def _(q: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@_backward_op.register_fake
def _(grad_out: Tensor | None, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> _Grads:
    prefix_k, prefix_grad = arguments[2], arguments[-1]
    shape = prefix_k.shape if prefix_grad else (0,)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), q.new_empty(shape), q.new_empty(shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, prefix_k, prefix_v = inputs
    ctx.save_for_backward(*tensors, prefix_k, prefix_v, *output)


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, cu_seqlens, prefix_k, prefix_v, out, lse = ctx.saved_tensors
    prefix_grad = any(ctx.needs_input_grad[5:])
    grad_q, grad_k, grad_v, *shared = torch.ops.paras2s.varlen_attention_backward(
        grad_out, grad_lse, q, k, v, cu_seqlens, ctx.scale, prefix_k, prefix_v, out, lse, prefix_grad
    )
    return grad_q, grad_k, grad_v, None, None, *(shared if prefix_grad else (None, None))


_forward_op.register_autograd(_differentiate, setup_context=_save)
