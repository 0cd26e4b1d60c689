"""Plain-torch twin of shared-prefix decode attention: the CPU path.

The queries of all rows of a prompt are one product with its keys, [G * rep, d] x [d, S]; a row's own keys are a small
one. Both scores go through one softmax side by side; two softmaxes merged by their log-sum-exp would be more passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEG_INF = float("-inf")


def _grouping(prompt_of: Tensor, prompts: int) -> tuple[int, Tensor | None]:
    """(rows of the largest group G, place [B] of each row among P * G; None where every row stands there already)."""
    rows = prompt_of.shape[0]
    if rows % prompts == 0:
        inside = prompt_of.view(prompts, rows // prompts) == torch.arange(prompts, device=prompt_of.device).unsqueeze(1)
        if bool(inside.all()):
            return rows // prompts, None
    low, high = int(prompt_of.min()), int(prompt_of.max())
    if low < 0 or high >= prompts:
        raise ValueError(f"prompt_of: {low if low < 0 else high} is outside [0, {prompts}), the prompts of prefix_k")
    order = prompt_of.argsort(stable=True)
    sizes = prompt_of.bincount(minlength=prompts)
    group = int(sizes.max())
    of = prompt_of[order]
    rank = torch.arange(rows, device=order.device) - (sizes.cumsum(0) - sizes)[of]
    return group, torch.empty_like(order).index_copy_(0, order, of * group + rank)


def _outside(lengths: Tensor, starts: Tensor | None, capacity: int, name: str) -> Tensor | None:
    """[N, capacity] bool, True where nothing may be seen; None where everything may. ValueError for what is no part of it."""
    first = torch.zeros_like(lengths) if starts is None else starts
    end = first + lengths
    if bool((lengths < 0).any()) or bool((end > capacity).any()):
        raise ValueError(f"{name}_lengths: expected parts of {capacity} positions, got {lengths.tolist()} from {first.tolist()}")
    if bool((first < 0).any()):
        raise ValueError(f"{name}_starts: expected none below 0, got {first.tolist()}")
    if bool((lengths == capacity).all()):
        return None
    position = torch.arange(capacity, device=lengths.device)
    return (position < first.unsqueeze(1)) | (position >= end.unsqueeze(1))


def _scores(q: Tensor, keys: Tensor, values: Tensor, outside: Tensor | None) -> tuple[Tensor, Tensor]:
    """q k' [N, Hkv, M, S], -inf outside, and the values with zeros there: what stands there may be no number at all."""
    scores = q @ keys.transpose(-1, -2)
    if outside is None:
        return scores, values
    return scores.masked_fill_(outside[:, None, None], _NEG_INF), values.masked_fill(outside[:, None, :, None], 0.0)


def forward(
    q: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    prefix_lengths: Tensor,
    suffix_k: Tensor,
    suffix_v: Tensor,
    suffix_lengths: Tensor,
    prompt_of: Tensor,
    scale: float,
    prefix_starts: Tensor | None,
) -> Tensor:
    """out [B, H, d]."""
    rows, heads, dim = q.shape
    prompts, kv, capacity, _ = prefix_k.shape
    if not rows:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    if not prompts:
        raise ValueError("prompt_of: names prompts, but prefix_k has none")
    rep = heads // kv
    group, place = _grouping(prompt_of, prompts)
    prefix_outside = _outside(prefix_lengths, prefix_starts, capacity, "prefix")
    longest = int(suffix_lengths.max())
    if longest > suffix_k.shape[2]:
        raise ValueError(f"suffix_lengths: {longest} is more than the {suffix_k.shape[2]} positions of suffix_k")
    longest = max(longest, 0)
    suffix_outside = _outside(suffix_lengths, None, longest, "suffix")

    q = (q * scale).reshape(rows, kv, rep, dim)
    own, suffix_v = _scores(q, suffix_k[:, :, :longest], suffix_v[:, :, :longest], suffix_outside)
    if place is not None:  # into groups of one size; what is left empty there is never read
        q = q.new_zeros(prompts * group, kv, rep, dim).index_copy_(0, place, q)
        own = own.new_zeros(prompts * group, kv, rep, longest).index_copy_(0, place, own)
    q = q.view(prompts, group, kv, rep, dim).transpose(1, 2).reshape(prompts, kv, group * rep, dim)
    shared, prefix_v = _scores(q, prefix_k, prefix_v, prefix_outside)
    shared = shared.view(prompts, kv, group, rep, capacity).transpose(1, 2)
    scores = torch.cat([shared, own.view(prompts, group, kv, rep, longest)], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)

    shared = weights[..., :capacity].transpose(1, 2).reshape(prompts, kv, group * rep, capacity) @ prefix_v
    shared = shared.view(prompts, kv, group, rep, dim).transpose(1, 2).reshape(prompts * group, kv, rep, dim)
    own = weights[..., capacity:].reshape(prompts * group, kv, rep, longest)
    if place is not None:
        shared, own = shared[place], own[place]
    out = (shared + own @ suffix_v).view(rows, heads, dim)
    if prefix_outside is not None or suffix_outside is not None or not longest:
        nothing = (prefix_lengths[prompt_of] == 0) & (suffix_lengths == 0)
        out.masked_fill_(nothing[:, None, None], 0.0)
    return out
