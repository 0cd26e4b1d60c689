"""varlen_attention inside the models of transformers: `attn_implementation="paras2s_varlen"`.

Both interfaces are registered, as a model that has the attention alone would silently ignore padding. The mask function runs once a
forward and says where sequences begin: instead of a mask [B, 1, S, S] it returns cu_seqlens [N + 1], int32, over the flattened batch, whose
rows, packed sequences and runs of padding are sequences of their own. What padded positions return is not defined, as in SDPA.
Masks that are no causal mask of whole sequences (a cache, a window, both directions, holes in the padding) are made by transformers
and go to its SDPA, and so do sub-models that are not causal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paras2s_kernels.varlen_attention import varlen_attention

NAME = "paras2s_varlen"


def register_with_transformers() -> str:
    """Makes NAME known to transformers as an attention and as a mask, and returns it; twice does no harm.

    A model with attn_implementation=NAME takes packed sequences, one row [1, T]: by `position_ids` that begin anew and use_cache=False,
    as everywhere in transformers, or by `cu_seq_lens_q` (int32; `max_length_q` with it), which wins. `shared_prefix`, a cache filled with
    P tokens in a batch of one, lets every sequence of the call follow those tokens: `position_ids` must then begin at P.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sequence_mask)
    return NAME


def sequence_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] | None = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Tensor | None:
    """cu_seqlens [N + 1] where the mask is causal in whole sequences, otherwise what transformers makes for SDPA."""
    from transformers import masking_utils

    mask_function = masking_utils.causal_mask_function if mask_function is None else mask_function
    plain = q_length == kv_length and q_offset == kv_offset == 0 and local_size is None and not use_vmap
    if plain and q_length and not torch.compiler.is_compiling():
        starts = _starts(batch_size, q_length, mask_function, attention_mask, device)
        if starts is not None:
            places = starts.flatten().nonzero().flatten()
            return torch.cat([places, places.new_tensor([batch_size * q_length])]).int()
    return masking_utils.sdpa_mask(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset,
        mask_function=mask_function, attention_mask=attention_mask, local_size=local_size, use_vmap=use_vmap, device=device, **options,
    )  # fmt: skip


def _starts(
    batch: int, length: int, mask_function: Callable[..., Tensor], attention_mask: Tensor | None, device: torch.device | str
) -> Tensor | None:
    """[B, S] bool, True where a sequence begins; None where the mask is not causal in whole sequences.

    A position that does not see the one before it begins a sequence. That the mask is causal, and reaches back to the first position, is
    asked of every position too: 3 B S answers instead of B S S.
    """
    row = torch.arange(batch, device=device)[:, None]
    place = torch.arange(length, device=device)[None, :].expand(batch, length)
    head = torch.zeros((), dtype=torch.long, device=device)

    def sees(query: Tensor, key: Tensor) -> Tensor:
        seen = torch.as_tensor(mask_function(row, head, query, key), device=device)
        return seen.expand(query.shape)

    starts = torch.ones(batch, length, dtype=torch.bool, device=device)
    starts[:, 1:] = ~sees(place[:, 1:], place[:, :-1])
    first = torch.where(starts, place, 0).cummax(1).values
    other = sees(place[:, :-1], place[:, 1:]).any() | ~sees(place, first).all()
    if attention_mask is not None:
        if attention_mask.shape != (batch, length):
            return None
        live = attention_mask.to(device=device, dtype=torch.bool)
        begins = live & ~torch.nn.functional.pad(live[:, :-1], (1, 0))
        other = other | (begins.sum(1) > 1).any()
        starts[:, 1:] |= live[:, 1:] != live[:, :-1]
    return None if bool(other) else starts


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    shared_prefix: Any = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query [B, H, S, d], key and value [B, Hkv, S, d] -> [B, S, H, d]. ValueError for what would be computed wrongly."""
    batch, heads, length, dim = query.shape
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    cu_seqlens = attention_mask if attention_mask is not None and attention_mask.dim() == 1 else None
    if causal and cu_seq_lens_q is not None and key.shape[2] == length:
        if batch != 1:
            raise ValueError(f"cu_seq_lens_q: packed sequences are one row, got a batch of {batch}")
        if cu_seq_lens_k is not None and cu_seq_lens_k.shape != cu_seq_lens_q.shape:
            raise ValueError("cu_seq_lens_k: keys must be packed as the queries are")
        cu_seqlens = cu_seq_lens_q.to(device=query.device, dtype=torch.int32)
    elif causal and attention_mask is None and key.shape[2] == length:
        cu_seqlens = torch.arange(0, batch * length + 1, length, dtype=torch.int32, device=query.device) if length else None
    if cu_seqlens is None:
        if shared_prefix is not None:
            raise ValueError("shared_prefix: needs a causal model, no cache of its own, and no mask but padding")
        return _sdpa(module, query, key, value, attention_mask, dropout, scaling, is_causal, options)
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"{name}: {NAME} has none; load the model with attn_implementation='eager'")
    if dropout:
        raise ValueError(f"dropout: {NAME} has none; set attention_dropout to 0 or load the model with attn_implementation='sdpa'")
    prefix_k = prefix_v = None
    if shared_prefix is not None:
        prefix_k, prefix_v = _prefix_of(shared_prefix, module)
    longest = length if batch > 1 or max_length_q is None else max_length_q
    window = options.get("sliding_window")
    if window is not None and longest + (0 if prefix_k is None else len(prefix_k)) > window:
        raise ValueError(f"sliding_window: {NAME} has none; a prefix and the longest sequence behind it may have {window} tokens in all")
    q, k, v = (_packed(x, batch * length, dim) for x in (query, key, value))
    out = varlen_attention(q, k, v, cu_seqlens, scaling, prefix_k, prefix_v, longest)
    return out.view(batch, length, heads, dim), None


def _packed(x: Tensor, tokens: int, dim: int) -> Tensor:
    """[B, H, T, d] as [B * T, H, d] whose last dimension is dense."""
    x = x.transpose(1, 2).reshape(tokens, -1, dim)
    return x if x.stride(-1) == 1 else x.contiguous()


def _prefix_of(cache: Any, module: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """[P, Hkv, d] keys and values of the module's layer."""
    layer = cache.layers[module.layer_idx]
    if layer.keys is None or layer.keys.shape[0] != 1:
        raise ValueError("shared_prefix: expected a cache filled by a batch of one")
    if layer.keys.shape[2] != cache.get_seq_length(module.layer_idx):
        raise ValueError("shared_prefix: expected a DynamicCache, whose keys are all in use")
    return layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)


def _sdpa(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float,
    scaling: float | None, is_causal: bool | None, options: dict[str, Any],
) -> tuple[Tensor, None]:  # fmt: skip
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    result: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **options
    )
    return result
