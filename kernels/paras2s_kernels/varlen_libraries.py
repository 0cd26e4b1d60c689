"""Packed causal attention by libraries that may be there: flash-attn, and torch's flash attention (`varlen_attn`).

They take float16 and bfloat16 on CUDA and no shared prefix; whatever they cannot take goes on to Triton or the reference.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect

import torch
from torch import Tensor

from paras2s_kernels import dispatch

FLASH_ATTN, TORCH_FLASH = "flash-attn", "torch-flash"


@functools.cache
def _options_of_torch() -> frozenset[str]:
    """The arguments that torch's varlen_attn takes: they differ between releases. Empty where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def missing(library: str, device: torch.device) -> str | None:
    """Why `library` cannot take tensors of `device`, or None when it can."""
    if device.type != "cuda":
        return f"{library} needs CUDA tensors (these are on {device.type})"
    if library == FLASH_ATTN:
        if importlib.util.find_spec("flash_attn") is None:
            return "flash-attn is not installed"
    else:
        if not {"window_size", "scale"} <= _options_of_torch():
            return "this torch has no varlen_attn with a window and a scale"
        if not torch.backends.cuda.is_flash_attention_available():
            return "this torch was built without flash attention"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


def _unsuited(library: str, q: Tensor, k: Tensor, prefix_k: Tensor | None) -> str | None:
    """Why a call cannot go to `library`, or None when it can."""
    if prefix_k is not None:
        return f"{library} knows no shared prefix"
    if q.dtype == torch.float32:
        return f"{library} takes float16 and bfloat16"
    if q.shape[2] % 8:
        return f"{library} takes head sizes that 8 divides"
    if q.shape[0] == 0:
        return f"{library} takes no empty tensors"
    if library == TORCH_FLASH and q.shape[1] != k.shape[1] and "enable_gqa" not in _options_of_torch():
        return "varlen_attn of this torch wants as many key-value heads as heads"
    return None


def choose(q: Tensor, k: Tensor, prefix_k: Tensor | None) -> str | None:
    """The library for a call, or None for Triton or the reference; ValueError when the forced one cannot take it."""
    if q.device.type == "cpu" and not dispatch.forced():
        return None  # the hot path of small CPU tensors: no look-up of packages
    forced = dispatch.forced()
    if forced and forced[0] in dispatch.BACKENDS:
        return None
    for library in dispatch.LIBRARIES["varlen_attention"]:
        if forced and forced[0] != library:
            continue
        reason = missing(library, q.device) or _unsuited(library, q, k, prefix_k)
        if reason is None:
            return library
        if forced:
            raise ValueError(f"{forced[1]}: {reason}; force 'reference' or force nothing")
    return None


def run(library: str, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float, max_seqlen: int | None) -> Tensor:
    longest = q.shape[0] if max_seqlen is None else max_seqlen
    if library == FLASH_ATTN:
        from flash_attn import flash_attn_varlen_func

        out: Tensor = flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, longest, longest, softmax_scale=scale, causal=True)
        return out
    from torch.nn.attention.varlen import varlen_attn

    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    # a window that ends at the position itself is what this function calls causal
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, scale=scale, window_size=(-1, 0), **grouped)  # type: ignore[arg-type, return-value]
