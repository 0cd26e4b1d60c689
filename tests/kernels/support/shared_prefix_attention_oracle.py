"""What shared_prefix_attention must return, in float64 and a row and head at a time, and how far a result may be from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NAN = float("nan")


@dataclass(frozen=True)
class Case:
    q: Tensor  # [B, H, d]
    prefix_k: Tensor  # [P, Hkv, S, d]
    prefix_v: Tensor
    prefix_lengths: Tensor  # [P]
    suffix_k: Tensor  # [B, Hkv, C, d]
    suffix_v: Tensor
    suffix_lengths: Tensor  # [B]
    prompt_of: Tensor  # [B]
    scale: float
    prefix_starts: Tensor | None = None

    @property
    def arguments(self) -> tuple[Tensor | float | None, ...]:
        return tuple(self.__dict__.values())

    def to(self, device: str) -> Case:
        return Case(*(value.to(device) if isinstance(value, Tensor) else value for value in self.arguments))


def make_case(
    sizes: tuple[int, ...] = (3, 1, 2), heads: int = 6, kv_heads: int = 2, dim: int = 32, prefix: int = 37, suffix: int = 9,
    dtype: torch.dtype = torch.float32, padding: str = "none", ragged: bool = False, mixed: bool = False, strided: bool = False,
    seed: int = 0,
) -> Case:  # fmt: skip
    """`sizes` rows for each prompt. What may not be seen is NaN.

    padding "left" or "right" leaves each prompt a length of its own, prompt 1 none. `ragged` does so with the suffixes:
    rows 0 and, of more than three, 3 have none. `mixed` shuffles the rows. `strided` takes [B, C, Hkv, d] and q from longer rows.
    Scores grow along the keys, so that later blocks and splits move the maximum.
    """
    draw = torch.Generator().manual_seed(seed)
    rows, prompts = sum(sizes), len(sizes)
    prompt_of = torch.arange(prompts).repeat_interleave(torch.tensor(sizes))
    if mixed:
        prompt_of = prompt_of[torch.randperm(rows, generator=draw)]

    def normal(n: int, length: int, growth: bool) -> Tensor:
        x = torch.randn(n, kv_heads, length, dim, generator=draw)
        if growth:
            x += torch.linspace(0, 1, max(length, 1))[:length, None]
        x = x.to(dtype)
        return x.transpose(1, 2).contiguous().transpose(1, 2) if strided else x

    keys, values = normal(prompts, prefix, True), normal(prompts, prefix, False)
    own_keys, own_values = normal(rows, suffix, True), normal(rows, suffix, False)
    q = (torch.randn(rows, heads, dim + 3 if strided else dim, generator=draw) + 0.3).to(dtype)[..., :dim]
    starts, lengths = None, torch.full((prompts,), prefix)
    if padding != "none":
        lengths = torch.randint(1, prefix + 1, (prompts,), generator=draw)
        lengths[min(1, prompts - 1)] = 0
        starts = prefix - lengths if padding == "left" else None
    own_lengths = torch.full((rows,), suffix)
    if ragged:
        own_lengths = torch.randint(0, suffix + 1, (rows,), generator=draw)
        own_lengths[0] = 0
        own_lengths[3:4] = 0
    case = Case(q, keys, values, lengths, own_keys, own_values, own_lengths, prompt_of, dim**-0.5, starts)
    for p in range(prompts):
        first = 0 if starts is None else int(starts[p])
        for tensor in (keys, values):
            tensor[p, :, :first] = NAN
            tensor[p, :, first + int(lengths[p]) :] = NAN
    for b in range(rows):
        own_keys[b, :, int(own_lengths[b]) :] = NAN
        own_values[b, :, int(own_lengths[b]) :] = NAN
    return case


def exact(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    """The definition, [B, H, d]; in another dtype it is what eager torch would make of a row on its own."""
    rows, heads, _ = case.q.shape
    out = torch.zeros(case.q.shape, dtype=dtype)
    rep = heads // case.prefix_k.shape[1]
    for b in range(rows):
        p, own = int(case.prompt_of[b]), int(case.suffix_lengths[b])
        first = 0 if case.prefix_starts is None else int(case.prefix_starts[p])
        seen = slice(first, first + int(case.prefix_lengths[p]))
        for h in range(heads):
            keys = torch.cat([case.prefix_k[p, h // rep, seen], case.suffix_k[b, h // rep, :own]]).to(dtype)
            values = torch.cat([case.prefix_v[p, h // rep, seen], case.suffix_v[b, h // rep, :own]]).to(dtype)
            if len(keys):
                out[b, h] = ((keys @ case.q[b, h].to(dtype)) * case.scale).softmax(0) @ values
    return out


def check_close(case: Case, out: Tensor) -> None:
    """float32 to the last bits; in a half dtype the error is at most twice that of eager torch in that dtype."""
    assert out.dtype == case.q.dtype and out.shape == case.q.shape and out.is_contiguous()
    want = exact(case)
    if out.dtype == torch.float32:
        torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=2e-6, msg=lambda m: f"out: {m}")
        return
    ours, theirs = ((value.double() - want).abs().max().item() if value.numel() else 0.0 for value in (out, exact(case, out.dtype)))
    assert ours <= 2 * theirs, f"out: error {ours:.3g}, eager loses {theirs:.3g}"


def check(case: Case, forward: Callable[..., Tensor], **options: int) -> Tensor:
    out = forward(*case.arguments, **options)
    check_close(case, out)
    return out


def in_other_order(case: Case) -> Case:
    """The same rows the other way round."""
    rows = torch.arange(len(case.q)).flip(0)
    turned = {name: getattr(case, name)[rows] for name in ("q", "suffix_k", "suffix_v", "suffix_lengths", "prompt_of")}
    return replace(case, **turned)
