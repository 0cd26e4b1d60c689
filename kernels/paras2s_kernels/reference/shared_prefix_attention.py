"""Plain-torch twin of shared-prefix decode attention: the CPU path.

The queries of all rows of a prompt are one product with its keys, [G * rep, d] x [d, S]; a row's own keys are a small
one. Both scores go through one softmax side by side; two softmaxes merged by their log-sum-exp would be more passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_NEG_INF = float("-inf")


def grouping(prompt_of: Tensor, prompts: int) -> tuple[int, Tensor | None]:
    """(rows of the largest group G, place [B] of each row among P * G; None where every row stands there already).

    ValueError for a prompt out of range.
    """
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


def _outside(lengths: Tensor, starts: Tensor | None, capacity: int, name: str) -> Tensor:
    """[N, capacity] bool, True where nothing may be seen. ValueError for what is no part of it."""
    first = torch.zeros_like(lengths) if starts is None else starts
    end = first + lengths
    if bool((lengths < 0).any()) or bool((end > capacity).any()):
        raise ValueError(f"{name}_lengths: expected parts of {capacity} positions, got {lengths.tolist()} from {first.tolist()}")
    if bool((first < 0).any()):
        raise ValueError(f"{name}_starts: expected none below 0, got {first.tolist()}")
    position = torch.arange(capacity, device=lengths.device)
    return (position < first.unsqueeze(1)) | (position >= end.unsqueeze(1))


def spread(rows: Tensor, prompts: int, group: int, place: Tensor | None) -> Tensor:
    """Rows [B, ...] into groups of one size, [P, G, ...]; what is left empty there is 0, and never read."""
    if place is not None:
        rows = rows.new_zeros(prompts * group, *rows.shape[1:]).index_copy_(0, place, rows)
    return rows.view(prompts, group, *rows.shape[1:])


@dataclass(frozen=True)
class Plan:
    """What depends on the lengths and on who belongs to whom, and not on the numbers: one for all layers of a step.

    prompts: P. group, place: as from `grouping`. seen [P, G, 1, 1, S + longest], 0 or -inf: added to the scores; None is 0 everywhere.
    nothing [B] bool: rows that see nothing, if there are any.
    """

    prompts: int
    group: int
    place: Tensor | None = None
    seen: Tensor | None = None
    nothing: Tensor | None = None


def attend(q: Tensor, prefix_k: Tensor, prefix_v: Tensor, suffix_k: Tensor, suffix_v: Tensor, planned: Plan) -> Tensor:
    """out [B, H, d] of contiguous q that is scaled already, prefixes [P * kv, S, d] and suffixes [B * kv, longest, d]. What is not seen
    must be numbers all the same: 0 times NaN is NaN."""
    rows, heads, dim = q.shape
    parts, capacity = prefix_k.shape[:2]
    longest, prompts, group, place = suffix_k.shape[1], planned.prompts, planned.group, planned.place
    kv = parts // prompts
    rep = heads // kv

    own = torch.bmm(q.view(rows * kv, rep, dim), suffix_k.mT).view(rows, kv, rep, longest)
    q = spread(q.view(rows, kv, rep, dim), prompts, group, place).transpose(1, 2).reshape(parts, group * rep, dim)
    shared = torch.bmm(q, prefix_k.mT).view(prompts, kv, group, rep, capacity)
    scores = torch.cat([shared.transpose(1, 2), spread(own, prompts, group, place)], -1)
    if planned.seen is not None:
        scores += planned.seen
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)

    shared, own = weights.split((capacity, longest), -1)
    shared = torch.bmm(shared.transpose(1, 2).reshape(parts, group * rep, capacity), prefix_v)
    shared = shared.view(prompts, kv, group, rep, dim).transpose(1, 2)
    if place is not None:
        shared, own = (x.flatten(0, 1)[place] for x in (shared, own))
    own = own.view(rows * kv, rep, longest)
    out = torch.baddbmm(shared.reshape(rows * kv, rep, dim), own, suffix_v).view(rows, heads, dim)
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
    group: int = 0,
) -> Tensor:
    """out [B, H, d]. How many rows of a prompt stand together does not matter here."""
    if not q.shape[0]:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    prompts = prefix_k.shape[0]
    if not prompts:
        raise ValueError("prompt_of: names prompts, but prefix_k has none")
    size, place = grouping(prompt_of, prompts)
    longest = max(int(suffix_lengths.max()), 0)
    if longest > suffix_k.shape[2]:
        raise ValueError(f"suffix_lengths: {longest} is more than the {suffix_k.shape[2]} positions of suffix_k")
    prefix_outside = _outside(prefix_lengths, prefix_starts, prefix_k.shape[2], "prefix")
    suffix_outside = _outside(suffix_lengths, None, longest, "suffix")
    outside = torch.cat([prefix_outside[prompt_of], suffix_outside], 1)
    nothing = outside.all(1)
    seen = torch.zeros_like(outside, dtype=q.dtype).masked_fill_(outside, _NEG_INF)
    planned = Plan(prompts, size, place, spread(seen, prompts, size, place)[:, :, None, None], nothing if bool(nothing.any()) else None)
    # what is not seen may be no number
    prefix_k, prefix_v = (x.masked_fill(prefix_outside[:, None, :, None], 0.0).flatten(0, 1) for x in (prefix_k, prefix_v))
    suffix_k, suffix_v = (x[:, :, :longest].masked_fill(suffix_outside[:, None, :, None], 0.0).flatten(0, 1) for x in (suffix_k, suffix_v))
    return attend((q * scale).contiguous(), prefix_k, prefix_v, suffix_k, suffix_v, planned)
