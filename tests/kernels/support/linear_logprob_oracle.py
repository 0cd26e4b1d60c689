"""What linear_logprob must return, in float64 and from the definition, and how far a result may be from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Of a gradient, relative to its largest entry: the rounding of its store, and in a half dtype that of the logits' gradient before the
# product, whose errors add up over the tokens or the vocabulary.
GRAD_TOLERANCE = {torch.float32: 5e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}

# forward(hidden, weight, ids, temperature) -> logprob, entropy, row_max, log_sum
Forward = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
# backward(hidden, weight, ids, temperature, entropy, row_max, log_sum, grads of logprob and entropy, need_hidden, need_weight)
Backward = Callable[..., tuple[Tensor, Tensor]]
Results = tuple[Tensor, Tensor, Tensor, Tensor]  # logprob, entropy, gradient of hidden, gradient of weight


@dataclass(frozen=True)
class Case:
    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    ids: Tensor  # [N] int64
    temperature: float
    grad_logprob: Tensor  # [N] fp32
    grad_entropy: Tensor  # [N] fp32


def make_case(
    rows: int,
    vocab: int,
    size: int = 24,
    dtype: torch.dtype = torch.float32,
    temperature: float = 0.7,
    strided: bool = False,
    seed: int = 0,
) -> Case:
    """Random states and a weight whose rows grow, so that a later piece of the vocabulary moves the maximum."""
    draw = torch.Generator().manual_seed(seed)
    wide = size + 3 if strided else size
    hidden = torch.randn(rows, wide, generator=draw)
    weight = torch.randn(vocab, wide, generator=draw) * torch.linspace(0.2, 0.9, vocab)[:, None]
    ids = torch.randint(0, vocab, (rows,), generator=draw)
    grads = (torch.randn(rows, generator=draw), torch.randn(rows, generator=draw))
    return Case(hidden.to(dtype)[:, :size], weight.to(dtype)[:, :size], ids, temperature, *grads)


def _results(case: Case, hidden: Tensor, weight: Tensor) -> Results:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logs = F.log_softmax(hidden @ weight.t() / case.temperature, dim=-1)
    logprob = logs.gather(1, case.ids[:, None])[:, 0]
    entropy = -(logs.exp() * logs).sum(-1)
    loss = logprob @ case.grad_logprob.to(logs.dtype) + entropy @ case.grad_entropy.to(logs.dtype)
    return logprob.detach(), entropy.detach(), *torch.autograd.grad(loss, (hidden, weight))


def exact(case: Case) -> Results:
    return _results(case, case.hidden.double(), case.weight.double())


def eager(case: Case) -> Results:
    """The same in the dtype of the case throughout."""
    return _results(case, case.hidden, case.weight)


def run(case: Case, forward: Forward, backward: Backward, **options: int) -> Results:
    arguments = (case.hidden, case.weight, case.ids, case.temperature)
    logprob, *rows = forward(*arguments, **options)
    grads = backward(*arguments, *rows, case.grad_logprob, case.grad_entropy, True, True, **options)
    return logprob, rows[0], *grads


def check(case: Case, forward: Forward, backward: Backward, **options: int) -> Results:
    """Runs both directions, asserts them against `exact`, and returns them."""
    results = run(case, forward, backward, **options)
    check_close(case, *results)
    return results


def check_close(case: Case, logprob: Tensor, entropy: Tensor, grad_hidden: Tensor, grad_weight: Tensor) -> None:
    dtype = case.hidden.dtype
    assert logprob.dtype == entropy.dtype == torch.float32 and grad_hidden.dtype == grad_weight.dtype == dtype
    want_logprob, want_entropy, want_hidden, want_weight = exact(case)
    # the products are fp32 in every dtype, so a half dtype has no excuse here
    torch.testing.assert_close(logprob.double(), want_logprob, rtol=1e-5, atol=1e-5, msg=lambda m: f"logprob: {m}")
    torch.testing.assert_close(entropy.double(), want_entropy, rtol=1e-5, atol=1e-5, msg=lambda m: f"entropy: {m}")
    for name, got, want in (("hidden", grad_hidden, want_hidden), ("weight", grad_weight, want_weight)):
        atol = GRAD_TOLERANCE[dtype] * max(float(want.abs().max()), 1e-3)
        torch.testing.assert_close(got.double(), want, rtol=0.0, atol=atol, msg=lambda m, name=name: f"gradient of {name}: {m}")


def check_against_eager(case: Case, *results: Tensor) -> None:
    """The largest error against float64 is at most twice that of eager torch in the dtype of the case."""
    names = ("logprob", "entropy", "gradient of hidden", "gradient of weight")
    for name, got, plain, want in zip(names, results, eager(case), exact(case), strict=True):
        ours, theirs = ((value.double() - want).abs().max().item() for value in (got, plain))
        assert ours <= 2 * theirs + 1e-7, f"{name}: error {ours:.3g}, eager loses {theirs:.3g}"
