"""The generator looks uniform, and the draw follows it: chi-square tests with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paras2s_cli.rollout.sampling import draw, uniforms, warp


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Deviations of the statistic from its mean; a right sampler stays below 5."""
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(counts) - 1
    return (statistic - freedom) / np.sqrt(2 * freedom)


def table(seed: int = 7, rows: int = 500, steps: int = 40) -> np.ndarray:
    """[stream, step, row]"""
    ids = torch.arange(rows)
    return np.stack([np.stack([uniforms(seed, ids, step, stream).numpy() for step in range(steps)]) for stream in (0, 1)])


def test_uniforms_are_uniform_and_all_distinct() -> None:
    u = table()
    assert u.dtype == np.float64 and u.min() >= 0 and u.max() < 1
    assert len(np.unique(u)) == u.size
    for part in (u.ravel(), u[0, 0], u[:, :, 3].ravel(), u[1].ravel(), table(8).ravel()):
        counts = np.histogram(part, 20, (0, 1))[0]
        assert abs(chi_square(counts, np.full(20, len(part) / 20))) < 5


def test_neighbouring_rows_steps_streams_and_seeds_are_independent() -> None:
    u = table()
    pairs = [
        (u[0], u[1]),
        (u[:, 1:], u[:, :-1]),
        (u[:, :, 1:], u[:, :, :-1]),
        (u, table(8)),
        (u[0, 1:], u[1, :-1]),
        (u, table(1_000_010)),
    ]
    for left, right in pairs:
        counts = np.histogram2d(left.ravel(), right.ravel(), 8, ((0, 1), (0, 1)))[0].ravel()
        assert abs(chi_square(counts, np.full(64, left.size / 64))) < 5


def test_uniforms_depend_on_the_row_and_not_on_its_place() -> None:
    ids = torch.tensor([900, 3, 2**40])
    u = uniforms(5, ids, 2, 1)
    assert torch.equal(uniforms(5, ids[[2, 0]], 2, 1), u[[2, 0]])
    assert torch.equal(uniforms(2**31 * 1_000_003, ids, 2, 1), uniforms(2**31 * 1_000_003, ids, 2, 1))


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.8, 0), (0.8, 10), (1.5, 3)])
def test_draws_follow_the_probabilities(temperature: float, top_k: int) -> None:
    logits = 1.5 * torch.randn(22, generator=torch.Generator().manual_seed(3), dtype=torch.float64).float()
    p = np.exp(logits.double().numpy() / temperature)
    if top_k:
        p[np.argsort(p)[:-top_k]] = 0
    p /= p.sum()
    n = 100_000
    columns, logprobs = draw(logits.expand(n, -1), uniforms(11, torch.arange(n), 0, 0), temperature, top_k)
    counts = np.bincount(columns.numpy(), minlength=22)
    assert not counts[p == 0].any()
    assert abs(chi_square(counts[p > 0], n * p[p > 0])) < 5
    np.testing.assert_allclose(logprobs.numpy(), np.log(p[columns.numpy()]), atol=1e-5)


def test_a_draw_is_the_inverse_of_the_distribution_function() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(6, 4)
    columns, _ = draw(logits, torch.tensor([0.0, 0.09, 0.11, 0.29, 0.31, 0.61], dtype=torch.float64), 1.0, 0)
    assert columns.tolist() == [0, 0, 1, 1, 2, 3]


def test_an_impossible_column_is_never_drawn() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2000, 30, generator=generator) * 8
    illegal = torch.rand(2000, 30, generator=generator) < 0.5
    illegal[:, 4] = False
    logits[illegal] = -torch.inf
    for edge in (0.0, 1 - 2.0**-53, 2.0**-60):
        columns, logprobs = draw(logits, torch.full((2000,), edge, dtype=torch.float64), 1.0, 0)
        assert not illegal[torch.arange(2000), columns].any() and logprobs.isfinite().all()


def test_a_rare_last_column_keeps_its_share() -> None:
    logits = torch.tensor([[0.6, 0.4, 1e-9]]).log()  # in fp32 the sum has reached 1 before it
    columns, _ = draw(logits.expand(2, 3), torch.tensor([1 - 2e-10, 1 - 1e-7], dtype=torch.float64), 1.0, 0)
    assert columns.tolist() == [2, 1]


def test_greedy_and_warp() -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(2))
    columns, logprobs = draw(logits, torch.zeros(50, dtype=torch.float64), 0.0, 0)
    assert torch.equal(columns, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))
    kept = warp(logits, 0.5, 4)
    assert (kept.isfinite().sum(-1) == 4).all()
    torch.testing.assert_close(kept.exp().sum(-1), torch.ones(50))
    torch.testing.assert_close(warp(logits, 0.5, 9), (logits * 2).log_softmax(-1))
