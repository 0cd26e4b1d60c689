"""Decode attention of groups: the rows of one prompt read its keys and values once, and each its own suffix.

Registered as `torch.ops.paras2s.shared_prefix_attention` with fake tensors, without autograd: rollouts need none.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from paras2s_kernels import dispatch
from paras2s_kernels.reference import shared_prefix_attention as reference

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_DIM = 256


def shared_prefix_attention(
    q: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    prefix_lengths: Tensor,
    suffix_k: Tensor,
    suffix_v: Tensor,
    suffix_lengths: Tensor,
    prompt_of: Tensor,
    scale: float,
    prefix_starts: Tensor | None = None,
    group: int = 0,
) -> Tensor:
    """softmax(scale q k') v of one query position a row, over its prompt's prefix and then its own suffix.

    q                   [B, H, d] float32, float16 or bfloat16, d <= 256
    prefix_k, prefix_v  [P, Hkv, S, d] in the dtype of q, H a multiple of Hkv: query head h reads head h // (H / Hkv)
    prefix_lengths      [P] int64: positions [start, start + length) of a prefix are seen, the others never read into a result
    suffix_k, suffix_v  [B, Hkv, C, d]
    suffix_lengths      [B] int64: the first so many positions of a suffix are seen; 0 is allowed
    prompt_of           [B] int64 in [0, P): any order is right, but only rows that stand together share the reading
    scale               multiplies the scores, usually d ** -0.5
    prefix_starts       [P] int64, for prompts that are padded on the left; None is 0
    group               how many rows of a prompt stand together, where that is known: it decides what shares a reading, not what comes out.
                        0 is B / P, too few where memory for more prompts than there are is given
    returns             [B, H, d] in the dtype of q; 0 for a row that sees nothing

    Each tensor may be strided, its last dimension is contiguous. Sums are in float32. There is no gradient.

    ValueError names the argument: a wrong shape, dtype, stride or device, a tensor that needs a gradient, a scale that
    is not finite, a prompt or a length out of range. Triton does not check the last two, as it would have to wait
    for the GPU: there lengths end at the memory, and a row of an unknown prompt sees its suffix alone.
    """
    prefixes, suffixes = {"prefix_k": prefix_k, "prefix_v": prefix_v}, {"suffix_k": suffix_k, "suffix_v": suffix_v}
    _check_heads(q, prefixes, suffixes)
    integers = {"prefix_lengths": prefix_lengths, "prefix_starts": prefix_starts}
    integers |= {"suffix_lengths": suffix_lengths, "prompt_of": prompt_of}
    _check_integers(q, prefix_k.shape[0], {name: tensor for name, tensor in integers.items() if tensor is not None})
    if not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number, got {scale}")
    if group < 0:
        raise ValueError(f"group: expected at least 0, got {group}")
    arguments = (q, prefix_k, prefix_v, prefix_lengths, suffix_k, suffix_v, suffix_lengths, prompt_of, float(scale), prefix_starts)
    if torch.compiler.is_compiling() or dispatch.choose(q.device) == "triton":
        out: Tensor = torch.ops.paras2s.shared_prefix_attention(*arguments, group)
        return out
    return reference.forward(*arguments)


def _check_heads(q: Tensor, prefixes: dict[str, Tensor], suffixes: dict[str, Tensor]) -> None:
    if q.dim() != 3 or not 0 < q.shape[2] <= _MAX_DIM or q.shape[1] == 0:
        raise ValueError(f"q: expected [B, H, d] with H > 0 and 0 < d <= {_MAX_DIM}, got shape {list(q.shape)}")
    if q.dtype not in _DTYPES:
        raise ValueError(f"q: expected float32, float16 or bfloat16, got {q.dtype}")
    rows, heads, dim = q.shape
    kv_heads = prefixes["prefix_k"].shape[1] if prefixes["prefix_k"].dim() == 4 else 0
    for name, tensor in {**prefixes, **suffixes}.items():
        first = "B" if name in suffixes else "P"
        if tensor.dim() != 4 or tensor.shape[3] != dim or (first == "B" and tensor.shape[0] != rows):
            raise ValueError(f"{name}: expected [{first}, Hkv, length, d] beside q of {list(q.shape)}, got shape {list(tensor.shape)}")
        if tensor.shape[1] != kv_heads or kv_heads == 0 or heads % kv_heads:
            raise ValueError(f"{name}: {tensor.shape[1]} heads, which must divide the {heads} of q and be those of prefix_k")
    for k, v in ((*prefixes,), (*suffixes,)):
        both = prefixes | suffixes
        if both[v].shape != both[k].shape:
            raise ValueError(f"{v}: expected {list(both[k].shape)}, the shape of {k}, got {list(both[v].shape)}")
    for name, tensor in {"q": q, **prefixes, **suffixes}.items():
        if tensor.dtype != q.dtype:
            raise ValueError(f"{name}: expected {q.dtype}, the dtype of q, got {tensor.dtype}")
        if tensor.device != q.device:
            raise ValueError(f"{name}: on {tensor.device}, but q is on {q.device}")
        if dim > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name}: the last dimension must be contiguous, its stride is {tensor.stride(-1)}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: needs a gradient, and there is none; call it under torch.no_grad()")


def _check_integers(q: Tensor, prompts: int, integers: dict[str, Tensor]) -> None:
    for name, tensor in integers.items():
        expected = prompts if name.startswith("prefix") else q.shape[0]
        if tensor.shape != (expected,):
            raise ValueError(f"{name}: expected [{expected}], got {list(tensor.shape)}")
        if tensor.dtype != torch.int64:
            raise ValueError(f"{name}: expected int64, got {tensor.dtype}")
        if tensor.device != q.device:
            raise ValueError(f"{name}: on {tensor.device}, but q is on {q.device}")


@torch.library.custom_op(
    "paras2s::shared_prefix_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor prefix_k, Tensor prefix_v, Tensor prefix_lengths, Tensor suffix_k, Tensor suffix_v, "
    "Tensor suffix_lengths, Tensor prompt_of, float scale, Tensor? prefix_starts, int group=0) -> Tensor",
)
def _forward_op(q: Tensor, *arguments: Any) -> Tensor:
    out: Tensor = dispatch.run("shared_prefix_attention", "forward", q.device, q, *arguments)
    return out


@_forward_op.register_fake
def _(q: Tensor, *arguments: Any) -> Tensor:
    return q.new_empty(q.shape)
