"""What varlen_attention must return, in float64 and a sequence at a time, and how far a result may be from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from unittest import mock

import torch
from torch import Tensor

NAN = float("nan")
NAMES = ("out", "lse", "grad_q", "grad_k", "grad_v", "grad_prefix_k", "grad_prefix_v")
Results = tuple[Tensor, ...]  # in the order of NAMES, the last two only where there is a prefix


@dataclass(frozen=True)
class Case:
    q: Tensor  # [T, H, d]
    k: Tensor  # [T, Hkv, d]
    v: Tensor
    cu_seqlens: Tensor  # [B + 1] int32
    scale: float
    prefix_k: Tensor | None  # [P, Hkv, d]
    prefix_v: Tensor | None
    grad_out: Tensor  # [T, H, d]
    grad_lse: Tensor  # [T, H] fp32

    @property
    def arguments(self) -> tuple[Tensor | float | None, ...]:
        return (self.q, self.k, self.v, self.cu_seqlens, self.scale, self.prefix_k, self.prefix_v)

    def to(self, device: str) -> Case:
        return Case(*(value.to(device) if isinstance(value, Tensor) else value for value in self.__dict__.values()))


def make_case(
    lengths: tuple[int, ...] = (37, 0, 1, 18, 5), heads: int = 4, kv_heads: int = 2, dim: int = 16, prefix: int | None = None,
    dtype: torch.dtype = torch.float32, strided: bool = False, seed: int = 0,
) -> Case:  # fmt: skip
    """Scores grow along the keys, so that later blocks move the maximum.

    `strided` takes all from longer rows, [H, T, d] but for grad_out."""
    draw = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)

    def normal(n: int, h: int, growth: float = 0.0, mean: float = 0.0) -> Tensor:
        x = torch.randn(n, h, dim + 3 if strided else dim, generator=draw) + mean
        x += growth * torch.linspace(0, 1, max(n, 1))[:n, None, None]
        x = x.to(dtype)
        return x.transpose(0, 1).contiguous().transpose(0, 1)[..., :dim] if strided else x

    q, k, v = normal(tokens, heads, mean=0.3), normal(tokens, kv_heads, growth=1.0), normal(tokens, kv_heads)
    shared = (None, None) if prefix is None else (normal(prefix, kv_heads, growth=1.0), normal(prefix, kv_heads))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    grad_out = normal(tokens, heads, mean=0.2)
    if strided:
        grad_out = torch.nn.functional.pad(grad_out, (0, 5))[..., :dim]
    grad_lse = torch.randn(tokens, heads, generator=draw)
    return Case(q, k, v, cu_seqlens, dim**-0.5, *shared, grad_out, grad_lse)


@contextmanager
def guarded() -> Iterator[None]:
    """Memory from torch.empty is NaN, and so is what lies behind it: AssertionError when something was written there."""
    behind, empty = [], torch.empty

    def roomy(shape: object, **options: object) -> Tensor:
        if not isinstance(shape, tuple | torch.Size):
            return empty(shape, **options)  # type: ignore[call-overload, no-any-return]
        memory = torch.full((math.prod(shape) + 20_000,), NAN, **options)  # type: ignore[call-overload]
        behind.append(memory[math.prod(shape) :])
        return memory[: math.prod(shape)].view(shape)

    with mock.patch.object(torch, "empty", roomy):
        yield
    assert all(memory.isnan().all() for memory in behind), "out: lse: grad_q: written behind the memory"


def _sequence(q: Tensor, k: Tensor, v: Tensor, scale: float, prefix: int) -> tuple[Tensor, Tensor]:
    rep = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(rep, 1), v.repeat_interleave(rep, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(prefix + 1)
    scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v), scores.logsumexp(-1).T


def exact(case: Case, dtype: torch.dtype = torch.float64, with_lse: bool = True) -> Results:
    """Result and gradients from the definition, by autograd; in another dtype it is what eager torch would make of it."""
    of = (case.q, case.k, case.v, *(p for p in (case.prefix_k, case.prefix_v) if p is not None))
    leaves = [x.detach().to(dtype).requires_grad_() for x in of]
    q, k, v, *shared = leaves
    outs, sums = [q[:0]], [q[:0, :, 0]]
    ends = case.cu_seqlens.tolist()
    for start, end in pairwise(ends):
        keys, values = k[start:end], v[start:end]
        if shared:
            keys, values = torch.cat([shared[0], keys]), torch.cat([shared[1], values])
        if end > start:
            out, lse = _sequence(q[start:end], keys, values, case.scale, len(keys) - (end - start))
            outs.append(out)
            sums.append(lse)
    out, lse = torch.cat(outs), torch.cat(sums)
    loss = (out * case.grad_out.to(dtype)).sum()
    if with_lse:
        loss = loss + (lse * case.grad_lse.to(dtype)).sum()
    return out.detach(), lse.detach(), *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


def check_close(case: Case, got: Results, with_lse: bool = True, names: tuple[str, ...] = NAMES) -> None:
    """float32 to the last bits; in a half dtype the error is at most twice that of eager torch in that dtype."""
    want = dict(zip(NAMES, exact(case, with_lse=with_lse), strict=False))
    eager = dict(zip(NAMES, exact(case, case.q.dtype, with_lse), strict=False)) if case.q.dtype != torch.float32 else {}
    for name, value in zip(names, got, strict=False):
        if name == "lse" and not with_lse:
            continue
        assert value.dtype == (torch.float32 if name == "lse" else case.q.dtype), f"{name}: {value.dtype}"
        assert value.shape == want[name].shape, f"{name}: {list(value.shape)}"
        if name == "lse" or not eager:
            scale = max(1.0, want[name].abs().max().item()) if value.numel() else 1.0
            torch.testing.assert_close(value.double(), want[name], rtol=1e-5, atol=3e-6 * scale, msg=lambda m, name=name: f"{name}: {m}")
        elif value.numel():
            ours, theirs = ((x.double() - want[name]).abs().max().item() for x in (value, eager[name]))
            # where eager makes no error at all, that of float32 is left
            assert ours <= 2 * theirs + 3e-6 * max(1.0, want[name].abs().max().item()), (
                f"{name}: error {ours:.3g}, eager loses {theirs:.3g}"
            )


def run_module(case: Case, module: object, options: dict | None = None, backward_options: dict | None = None) -> Results:
    """Forward and backward of an implementation."""
    options = options or {}
    out, lse = module.forward(*case.arguments, **options)  # type: ignore[attr-defined]
    has_prefix = case.prefix_k is not None
    grads = module.backward(  # type: ignore[attr-defined]
        case.grad_out, case.grad_lse, *case.arguments, out, lse, has_prefix, **options, **(backward_options or {})
    )
    return out, lse, *(grads if has_prefix else grads[:3])


def check_module(case: Case, module: object, options: dict | None = None, backward_options: dict | None = None) -> Results:
    got = run_module(case, module, options, backward_options)
    check_close(case, got)
    return got


def run_function(case: Case, function: Callable[..., object], with_lse: bool) -> Results:
    """A public function by autograd; one that `with_lse` returns (out, lse)."""
    of = (case.q, case.k, case.v, *(p for p in (case.prefix_k, case.prefix_v) if p is not None))
    leaves = [x.detach().requires_grad_() for x in of]
    q, k, v, *shared = leaves
    result = function(q, k, v, case.cu_seqlens, case.scale, *(shared or (None, None)))
    out, lse = result if with_lse else (result, None)  # type: ignore[misc]
    loss = (out * case.grad_out).sum() if not with_lse else (out * case.grad_out).sum() + (lse * case.grad_lse).sum()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return out.detach(), out.detach() if lse is None else lse.detach(), *grads
