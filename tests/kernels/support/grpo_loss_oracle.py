"""What grpo_loss must return, in float64 and a token at a time, and how far a result may be from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NAN = float("nan")
# the rounding of one store of a gradient
GRAD_RTOL = {torch.float32: 2e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@dataclass(frozen=True)
class Case:
    new: Tensor  # [B, L], like old, ref and free
    old: Tensor
    ref: Tensor
    free: Tensor
    advantages: Tensor  # [B]
    clip_low: float
    clip_high: float
    kl_weight: float

    @property
    def arguments(self) -> tuple[Tensor | float, ...]:
        return (self.new, self.old, self.ref, self.free, self.advantages, self.clip_low, self.clip_high, self.kl_weight)


def make_case(
    rows: int, length: int, dtype: torch.dtype = torch.float32, clip_low: float = 0.2, clip_high: float = 0.28,
    kl_weight: float = 0.3, missing: bool = False, strided: bool = False, garbage: float | None = None, seed: int = 0,
) -> Case:  # fmt: skip
    """Ratios from about 0.3 to 3, six tenths of the tokens free; of four rows or more, row 3 has no free token and row 2
    advantage 0.

    With `missing` row 1 has advantage NaN, and with three rows or more so has the last. `garbage` fills every number that
    must not count.
    """
    draw = torch.Generator().manual_seed(seed)
    new, old, ref = (-2 + 0.5 * torch.randn(rows, length, generator=draw) for _ in range(3))
    free = torch.rand(rows, length, generator=draw) < 0.6
    advantages = torch.randn(rows, generator=draw) * 1.5
    if rows > 3:
        free[3], advantages[2] = False, 0.0
    if missing:
        advantages[[1, -1] if rows > 2 else [-1]] = NAN
    if garbage is not None:
        ignored = ~free | advantages.isnan()[:, None]
        for tensor in (new, old, ref):
            tensor[ignored] = garbage
    tensors = [tensor.to(dtype) for tensor in (new, old, ref)] + [free]
    if strided:  # each with a row stride of its own, as slices of longer buffers have
        for index, tensor in enumerate(tensors):
            wide = torch.ones(rows, length + 3 + index, dtype=tensor.dtype)
            wide[:, :length] = tensor
            tensors[index] = wide[:, :length]
    return Case(*tensors, advantages, clip_low, clip_high, kl_weight)


def exact(case: Case) -> tuple[float, Tensor, Tensor]:
    """(loss, [kl, clipped, off policy], gradient [B, L]) from the definition."""
    lower, upper = 1 - case.clip_low, 1 + case.clip_high
    total, stats, grad = 0.0, [0.0, 0.0, 0.0], torch.zeros(case.new.shape, dtype=torch.float64)
    counted = [b for b, a in enumerate(case.advantages.tolist()) if not math.isnan(a)]
    new, old, ref = (tensor.tolist() for tensor in (case.new, case.old, case.ref))
    for b in counted:
        a, tokens = float(case.advantages[b]), torch.nonzero(case.free[b]).flatten().tolist()
        for t in tokens:
            r, d = math.exp(new[b][t] - old[b][t]), ref[b][t] - new[b][t]
            share = 1 / len(tokens) / len(counted)
            k3 = math.exp(d) - d - 1
            total += share * (-min(r * a, min(max(r, lower), upper) * a) + case.kl_weight * k3)
            for i, value in enumerate((k3, float(r < lower or r > upper), abs(r - 1))):
                stats[i] += share * value
            held = (a > 0 and r > upper) or (a < 0 and r < lower)
            grad[b, t] = share * ((0.0 if held else -a * r) + case.kl_weight * (1 - math.exp(d)))
    return total, torch.tensor(stats, dtype=torch.float64), grad


def check_close(case: Case, loss: Tensor, stats: Tensor, grad: Tensor) -> None:
    want_loss, want_stats, want_grad = exact(case)
    assert loss.dtype == stats.dtype == torch.float32 and loss.shape == () and stats.shape == (3,)
    assert grad.dtype == case.new.dtype
    # inputs are exact in every dtype and the sums are float32, so a half dtype has no excuse here
    torch.testing.assert_close(loss.double(), torch.tensor(want_loss).double(), rtol=1e-5, atol=2e-6, msg=lambda m: f"loss: {m}")
    torch.testing.assert_close(stats.double(), want_stats, rtol=1e-5, atol=2e-6, msg=lambda m: f"stats: {m}")
    rtol = GRAD_RTOL[case.new.dtype]
    torch.testing.assert_close(grad.double(), want_grad, rtol=rtol, atol=1e-6, msg=lambda m: f"gradient: {m}")


# forward(*case.arguments) -> loss, stats, token_grad, share
Forward = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


def check(case: Case, forward: Forward, **options: int) -> tuple[Tensor, Tensor, Tensor]:
    """Runs `forward`, asserts it against `exact`, and returns (loss, stats, gradient)."""
    loss, stats, token_grad, share = forward(*case.arguments, **options)
    grad = (token_grad * share).to(case.new.dtype)
    check_close(case, loss, stats, grad)
    return loss, stats, grad


def eager(
    new: Tensor, old: Tensor, reference: Tensor, free: Tensor, advantages: Tensor, clip: float, kl: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same by plain torch and autograd, in the dtype of its arguments.

    L = -min(r A, clip(r, 1 - c, 1 + c) A) + beta (exp(d) - d - 1), r = exp(new - old), d = reference - new (k3: Schulman 2020). The
    mean over an answer's free tokens, then over answers.

    Args:
        new, old, reference: [B, L] log-probabilities. free: [B, L] bool. advantages: [B].
    """
    count = free.sum(1).clamp(min=1)
    ratio = (new - old).exp()
    policy = -torch.minimum(ratio * advantages[:, None], ratio.clamp(1 - clip, 1 + clip) * advantages[:, None])
    distance = reference - new
    k3 = distance.exp() - distance - 1

    def mean(x: Tensor) -> Tensor:
        return ((x * free).sum(1) / count).mean()

    detached = ratio.detach()
    watched = {
        "kl": mean(k3.detach()),
        "clipped": mean(((detached - 1).abs() > clip).float()),
        "off_policy": mean((detached - 1).abs()),
    }
    return mean(policy) + kl * mean(k3), watched
