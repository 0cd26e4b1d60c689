"""What token_logprob must return, in float64 and from the definition, and how far a result may be from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NEG_INF = float("-inf")
# the rounding of one store of a gradient, and for float32 the rounding of the sums before it
GRAD_RTOL = {torch.float32: 2e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
GRAD_ATOL = {torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2e-6}

# forward(logits, ids, temperature) -> logprob, entropy, row_max, log_sum
Forward = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
Backward = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    logits: Tensor  # [N, V]
    ids: Tensor  # [N] int64
    temperature: float
    grad_logprob: Tensor  # [N] fp32
    grad_entropy: Tensor  # [N] fp32


def make_case(
    rows: int, vocab: int, dtype: torch.dtype = torch.float32, temperature: float = 0.8, illegal: float = 0.0,
    strided: bool = False, seed: int = 0,
) -> Case:  # fmt: skip
    """Random logits that grow along the row, so that a later block moves the maximum.

    With `illegal` > 0 that share of the logits is -inf; row 0 is -inf throughout and row 1 chooses an
    illegal id.
    """
    draw = torch.Generator().manual_seed(seed)
    wide = vocab + 5 if strided else vocab
    logits = torch.randn(rows, wide, generator=draw) * 3 + torch.linspace(0, 4, wide)
    ids = torch.randint(0, vocab, (rows,), generator=draw)
    if illegal:
        keep = logits[torch.arange(rows), ids]
        logits[torch.rand(rows, wide, generator=draw) < illegal] = NEG_INF
        logits[torch.arange(rows), ids] = keep
        logits[0] = NEG_INF
        if rows > 1:
            logits[1, ids[1]] = NEG_INF
    logits = logits.to(dtype)[:, :vocab]
    return Case(logits, ids, temperature, torch.randn(rows, generator=draw), torch.randn(rows, generator=draw))


def exact(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob, entropy, gradient) in float64: autograd, a row at a time, over the legal columns alone."""
    rows, vocab = case.logits.shape
    logprob, entropy = (
        torch.full((rows,), NEG_INF, dtype=torch.float64),
        torch.zeros(rows, dtype=torch.float64),
    )
    grad = torch.zeros(rows, vocab, dtype=torch.float64)
    for row in range(rows):
        legal = torch.nonzero(case.logits[row] > NEG_INF).flatten()
        if not len(legal):
            continue
        x = case.logits[row, legal].double().requires_grad_()
        logs = F.log_softmax(x / case.temperature, dim=0)
        entropy[row] = h = -(logs.exp() * logs).sum()
        loss = h * case.grad_entropy[row].double()
        if case.ids[row] in legal:
            chosen = logs[legal == case.ids[row]].squeeze()
            logprob[row] = chosen
            loss = loss + chosen * case.grad_logprob[row].double()
        grad[row, legal] = torch.autograd.grad(loss, x)[0]
    return logprob.detach(), entropy.detach(), grad


def eager(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch, in the dtype of the logits throughout; for logits without -inf."""
    x = case.logits.clone().requires_grad_()
    logs = F.log_softmax(x / case.temperature, dim=-1)
    logprob = logs.gather(1, case.ids[:, None])[:, 0]
    entropy = -(logs.exp() * logs).sum(-1)
    loss = logprob @ case.grad_logprob.to(x.dtype) + entropy @ case.grad_entropy.to(x.dtype)
    return logprob.detach(), entropy.detach(), torch.autograd.grad(loss, x)[0]


def check(case: Case, forward: Forward, backward: Backward, **options: int) -> tuple[Tensor, Tensor, Tensor]:
    """Runs both directions, asserts them against `exact`, and returns (logprob, entropy, gradient)."""
    logprob, entropy, row_max, log_sum = forward(case.logits, case.ids, case.temperature, **options)
    grad = backward(
        case.logits,
        case.ids,
        case.temperature,
        entropy,
        row_max,
        log_sum,
        case.grad_logprob,
        case.grad_entropy,
        **options,
    )
    check_close(case, logprob, entropy, grad)
    return logprob, entropy, grad


def check_close(case: Case, logprob: Tensor, entropy: Tensor, grad: Tensor) -> None:
    want_logprob, want_entropy, want_grad = exact(case)
    dtype = case.logits.dtype
    assert logprob.dtype == entropy.dtype == torch.float32 and grad.dtype == dtype
    # inputs are exact in every dtype and the sums are float32, so a half dtype has no excuse here
    torch.testing.assert_close(logprob.double(), want_logprob, rtol=1e-5, atol=5e-6, msg=lambda m: f"logprob: {m}")
    torch.testing.assert_close(entropy.double(), want_entropy, rtol=1e-5, atol=1e-5, msg=lambda m: f"entropy: {m}")
    torch.testing.assert_close(grad.double(), want_grad, rtol=GRAD_RTOL[dtype], atol=GRAD_ATOL[dtype], msg=lambda m: f"gradient: {m}")


def check_against_eager(case: Case, logprob: Tensor, entropy: Tensor, grad: Tensor) -> None:
    """The largest error against float64 is at most twice that of eager torch in the dtype of the logits."""
    for name, got, plain, want in zip(("logprob", "entropy", "gradient"), (logprob, entropy, grad), eager(case), exact(case), strict=True):
        ours, theirs = ((value.double() - want).abs().max().item() for value in (got, plain))
        assert ours <= 2 * theirs, f"{name}: error {ours:.3g}, eager loses {theirs:.3g}"
