"""Plain-torch twin of shared-prefix decode attention: the CPU path.

The queries of all rows of a prompt are one product with its keys, [G * rep, d] x [d, S]; a row's own keys are a small
one. Both scores go through one softmax side by side; two softmaxes merged by their log-sum-exp would be more passes.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Plan:
    """What depends on the lengths and on who belongs to whom, and not on the numbers: one for all layers of a step.

    finite: all of the memory holds numbers, so that what a row does not see needs a weight of 0 only.
    """

    group: int
    place: Tensor | None
    prefix_outside: Tensor | None
    suffix_outside: Tensor | None
    longest: int
    nothing: Tensor | None
    finite: bool


def plan(
    prefix_lengths: Tensor,
    prefix_starts: Tensor | None,
    prefix_capacity: int,
    suffix_lengths: Tensor,
    suffix_capacity: int,
    prompt_of: Tensor,
    finite: bool = False,
) -> Plan:
    """For `attend`; ValueError for lengths and prompts that are out of range."""
    group, place = _grouping(prompt_of, len(prefix_lengths))
    prefix_outside = _outside(prefix_lengths, prefix_starts, prefix_capacity, "prefix")
    longest = int(suffix_lengths.max())
    if longest > suffix_capacity:
        raise ValueError(f"suffix_lengths: {longest} is more than the {suffix_capacity} positions of suffix_k")
    longest = max(longest, 0)
    suffix_outside = _outside(suffix_lengths, None, longest, "suffix")
    nothing = None
    if prefix_outside is not None or suffix_outside is not None or not longest:
        empty = (prefix_lengths[prompt_of] == 0) & (suffix_lengths == 0)
        nothing = empty if bool(empty.any()) else None
    return Plan(group, place, prefix_outside, suffix_outside, longest, nothing, finite)


def _scores(q: Tensor, keys: Tensor, values: Tensor, outside: Tensor | None, finite: bool) -> tuple[Tensor, Tensor]:
    """q k' [N, Hkv, M, S], -inf outside, and the values with zeros there where they may be no numbers at all."""
    scores = q @ keys.transpose(-1, -2)
    if outside is None:
        return scores, values
    scores = scores.masked_fill_(outside[:, None, None], _NEG_INF)
    return scores, values if finite else values.masked_fill(outside[:, None, :, None], 0.0)


def attend(q: Tensor, prefix_k: Tensor, prefix_v: Tensor, suffix_k: Tensor, suffix_v: Tensor, scale: float, planned: Plan) -> Tensor:
    """out [B, H, d]."""
    rows, heads, dim = q.shape
    prompts, kv, capacity, _ = prefix_k.shape
    rep, group, place, longest = heads // kv, planned.group, planned.place, planned.longest

    q = (q * scale).reshape(rows, kv, rep, dim)
    own, suffix_v = _scores(q, suffix_k[:, :, :longest], suffix_v[:, :, :longest], planned.suffix_outside, planned.finite)
    if place is not None:  # into groups of one size; what is left empty there is never read
        q = q.new_zeros(prompts * group, kv, rep, dim).index_copy_(0, place, q)
        own = own.new_zeros(prompts * group, kv, rep, longest).index_copy_(0, place, own)
    q = q.view(prompts, group, kv, rep, dim).transpose(1, 2).reshape(prompts, kv, group * rep, dim)
    shared, prefix_v = _scores(q, prefix_k, prefix_v, planned.prefix_outside, planned.finite)
    shared = shared.view(prompts, kv, group, rep, capacity).transpose(1, 2)
    scores = torch.cat([shared, own.view(prompts, group, kv, rep, longest)], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)

    shared = weights[..., :capacity].transpose(1, 2).reshape(prompts, kv, group * rep, capacity) @ prefix_v
    shared = shared.view(prompts, kv, group, rep, dim).transpose(1, 2).reshape(prompts * group, kv, rep, dim)
    own = weights[..., capacity:].reshape(prompts * group, kv, rep, longest)
    if place is not None:
        shared, own = shared[place], own[place]
    out = (shared + own @ suffix_v).reshape(rows, heads, dim)
    return out if planned.nothing is None else out.masked_fill_(planned.nothing[:, None, None], 0.0)


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
    if not q.shape[0]:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    if not prefix_k.shape[0]:
        raise ValueError("prompt_of: names prompts, but prefix_k has none")
    planned = plan(prefix_lengths, prefix_starts, prefix_k.shape[2], suffix_lengths, suffix_k.shape[2], prompt_of)
    return attend(q, prefix_k, prefix_v, suffix_k, suffix_v, scale, planned)
