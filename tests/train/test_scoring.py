"""Scores of many tokens under a large head are those of few, and never make all logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_lm import random_frames, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from paras2s_cli.models.prompt import spoken_queries
from paras2s_cli.rollout.engine import rollout
from paras2s_cli.rollout.sampling import Sampling, Warp
from paras2s_cli.train import scoring
from paras2s_cli.train.grpo import stream_logprobs
from paras2s_cli.train.policy import NativePolicy
from paras2s_cli.train.sft import next_token_losses

N, D, V = 250, 12, 90
WARPS = [Warp(), Warp(0.8), Warp(0.8, 10), Warp(1.3, 0, 0.9), Warp(1.3, 20, 0.8)]


class Largest(TorchDispatchMode):
    """The most numbers that any tensor had which was made under it."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, Tensor))])
        return out


def numbers() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    hidden, head = torch.randn(N, D, generator=generator), torch.randn(V, D, generator=generator)
    return hidden.requires_grad_(), head.requires_grad_(), torch.randint(V, (N,), generator=generator)


def by_definition(hidden: Tensor, head: Tensor, columns: Tensor, warp: Warp) -> tuple[Tensor, Tensor]:
    """Row by row in float64; the drawn column and all that are no less likely are kept, whatever the warp says."""
    logprobs, entropies = [], []
    for logits, column in zip((hidden.double() @ head.double().t()).unbind(), columns.tolist(), strict=True):
        least = logits.min()
        if warp.top_k:
            least = logits.sort(descending=True).values[warp.top_k - 1]
        if warp.top_p < 1:
            kept = logits.masked_fill(logits < torch.minimum(least, logits[column]), -torch.inf)
            shares = (kept / warp.temperature).softmax(-1).sort(descending=True).values.cumsum(-1)
            last = int((shares < warp.top_p).sum())
            least = torch.maximum(least, logits.sort(descending=True).values[last])
        kept = logits[logits >= torch.minimum(least, logits[column])]
        logs = (kept / warp.temperature).log_softmax(-1)
        logprobs.append((logits[column] / warp.temperature) - (kept / warp.temperature).logsumexp(-1))
        entropies.append(-(logs.exp() * logs).sum())
    return torch.stack(logprobs), torch.stack(entropies)


@pytest.mark.parametrize("warp", WARPS, ids=str)
@pytest.mark.parametrize("most", [1 << 24, 3000])
def test_scores_and_gradients_are_those_of_the_definition(most: int, warp: Warp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "LOGITS", most)
    monkeypatch.setattr(scoring, "TOKENS", 1)
    hidden, head, columns = numbers()
    weights = torch.randn(2, N, generator=torch.Generator().manual_seed(7))
    found = scoring.score(hidden, head, columns, warp)
    wanted = by_definition(hidden, head, columns, warp)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-5, rtol=1e-5)
    grads, wanted_grads = (
        torch.autograd.grad((w * torch.stack(list(x))).sum(), (hidden, head)) for w, x in ((weights, found), (weights, wanted))
    )
    for a, b in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(a, b.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("most", [1 << 24, 3000])
def test_cross_entropy_is_that_of_torch(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "LOGITS", most)
    monkeypatch.setattr(scoring, "TOKENS", 1)
    hidden, head, columns = numbers()
    found = scoring.cross_entropy(hidden, head, columns)
    wanted = F.cross_entropy(hidden.double() @ head.double().t(), columns, reduction="sum")
    torch.testing.assert_close(found.double(), wanted)
    for a, b in zip(torch.autograd.grad(found, (hidden, head)), torch.autograd.grad(wanted, (hidden, head)), strict=True):
        torch.testing.assert_close(a, b.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("warp", [None, Warp(0.8), Warp(0.8, 10), Warp(1.3, 20, 0.8)], ids=str)
def test_all_logits_are_never_there_at_once(warp: Warp | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "LOGITS", 1 << 24)
    hidden, head, columns = numbers()
    many = hidden.detach().repeat(80, 1).requires_grad_()  # 20,000 tokens: 1.8 million logits

    def step() -> int:
        with Largest() as largest:
            score = scoring.cross_entropy(many, head, columns.repeat(80)) if warp is None else None
            loss = score if warp is None else scoring.score(many, head, columns.repeat(80), warp)[0].sum()
            loss.backward()
        return largest.numel

    assert step() >= 80 * N * V
    monkeypatch.setattr(scoring, "LOGITS", 1 << 20)
    assert step() <= 1 << 20


@pytest.mark.parametrize("sampling", [Sampling(0.8, 10), Sampling(0.8)])
def test_on_policy_the_ratio_is_1_in_pieces(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    prompts = spoken_queries(random_frames([22, 9, 41, 4]), model.config, model.specials)
    rolled = rollout(model, prompts, group=8, sampling=sampling, seed=9, row_ids=torch.arange(32), limit=20)
    losses = next_token_losses(NativePolicy(model), prompts.repeat(8), rolled.answers)
    monkeypatch.setattr(scoring, "LOGITS", 500)
    monkeypatch.setattr(scoring, "TOKENS", 1)
    answers = rolled.answers
    streams = stream_logprobs(NativePolicy(model), prompts, answers, sampling)
    for found, given, free in zip(
        streams, (rolled.text_logprobs, rolled.audio_logprobs), (answers.text_free, answers.audio_free), strict=True
    ):
        assert ((found.logprobs.detach() - given).exp() - 1).abs()[free].mean() <= 1e-5
    for a, b in zip(next_token_losses(NativePolicy(model), prompts.repeat(8), answers)[:2], losses[:2], strict=True):
        torch.testing.assert_close(a, b)
