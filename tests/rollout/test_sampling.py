"""The generator looks uniform, and the draw follows it: chi-square tests with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paras2s_cli.rollout.sampling import Warp, draw, inverse, restrict, row_keys, uniforms

GREEDY = Warp(0.0)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Deviations of the statistic from its mean; a right sampler stays below 5."""
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(counts) - 1
    return (statistic - freedom) / np.sqrt(2 * freedom)


def table(seed: int = 7, rows: int = 500, steps: int = 40) -> np.ndarray:
    """[stream, step, row]"""
    ids = torch.arange(rows)
    keys = row_keys(seed, ids)
    return np.stack([np.stack([uniforms(keys, step, stream).numpy() for step in range(steps)]) for stream in (0, 1)])


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
    u = uniforms(row_keys(5, ids), 2, 1)
    assert torch.equal(uniforms(row_keys(5, ids[[2, 0]]), 2, 1), u[[2, 0]])
    mixed = uniforms(row_keys(5, ids), torch.tensor([7, 2, 0]), 1)  # rows at different steps
    assert mixed[1] == u[1] and mixed[0] == uniforms(row_keys(5, ids), 7, 1)[0] and mixed[2] != u[2]
    assert len(row_keys(2**31 * 1_000_003, ids).unique()) == 3


@pytest.mark.parametrize(
    "warp", [Warp(), Warp(0.8), Warp(0.8, 10), Warp(1.5, 3), Warp(1.0, 0, 0.7), Warp(0.8, 12, 0.9), Warp(1.5, 22, 0.5)]
)
def test_draws_follow_the_probabilities(warp: Warp) -> None:
    logits = 1.5 * torch.randn(22, generator=torch.Generator().manual_seed(3), dtype=torch.float64).float()
    p = np.exp(logits.double().numpy() / warp.temperature)
    order = np.argsort(-p)
    if warp.top_k:
        p[order[warp.top_k :]] = 0
    p /= p.sum()
    if warp.top_p < 1:
        p[order[np.searchsorted(np.cumsum(p[order]), warp.top_p) + 1 :]] = 0
    p /= p.sum()
    n = 100_000
    columns, logprobs = draw(logits.expand(n, -1), row_keys(11, torch.arange(n)), 0, 0, warp)
    counts = np.bincount(columns.numpy(), minlength=22)
    assert not counts[p == 0].any()
    assert abs(chi_square(counts[p > 0], n * p[p > 0])) < 5
    np.testing.assert_allclose(logprobs.numpy(), np.log(p[columns.numpy()]), atol=1e-5)


def test_a_draw_is_the_inverse_of_the_distribution_function() -> None:
    columns = inverse(torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(6, 4), torch.tensor([0.0, 0.09, 0.11, 0.29, 0.31, 0.61]).double())
    assert columns.tolist() == [0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 1026])
def test_the_inverse_by_blocks_is_the_plain_one(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    weights = torch.rand(3000, vocab, generator=generator).pow(4)
    weights[:, ::3] *= (torch.rand(3000, 1, generator=generator) < 0.5) | (vocab == 1)
    uniform = torch.rand(3000, generator=generator, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 2.0**-60])
    columns = inverse(weights, uniform)
    sums = weights.double().cumsum(-1)
    plain = torch.searchsorted(sums, (uniform * sums[:, -1])[:, None], right=True)[:, 0]
    assert torch.equal(columns, plain)


def test_an_impossible_column_is_never_drawn() -> None:
    generator = torch.Generator().manual_seed(1)
    for vocab in (30, 100):
        weights = torch.randn(2000, vocab, generator=generator).mul(8).exp()
        illegal = torch.rand(2000, vocab, generator=generator) < 0.5
        illegal[:, 4] = False
        weights[illegal] = 0
        for edge in (0.0, 1 - 2.0**-53, 2.0**-60):
            columns = inverse(weights, torch.full((2000,), edge, dtype=torch.float64))
            assert not illegal[torch.arange(2000), columns].any()


def test_a_rare_last_column_keeps_its_share() -> None:
    weights = torch.tensor([[0.6, 0.4, 1e-9]])  # in fp32 the sum has reached 1 before it
    columns = inverse(weights.expand(2, 3), torch.tensor([1 - 2e-10, 1 - 1e-7], dtype=torch.float64))
    assert columns.tolist() == [2, 1]


def test_greedy() -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(2))
    columns, logprobs = draw(logits, row_keys(1, torch.arange(50)), 0, 0, GREEDY)
    assert torch.equal(columns, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))


def test_what_is_kept() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0, -1.0]]).expand(2, 5)

    def kept(warp: Warp, drawn: torch.Tensor | None = None) -> list[list[int]]:
        return [row.isfinite().nonzero()[:, 0].tolist() for row in restrict(logits, warp, drawn)]

    assert kept(Warp(top_k=1)) == [[0]] * 2 and kept(Warp(top_k=2)) == [[0, 1, 2]] * 2  # equals are kept
    assert kept(Warp(top_k=5)) == kept(Warp()) == [[0, 1, 2, 3, 4]] * 2
    # shares at temperature 1: .54 .20 .20 .07 .03 (rounded); at 4 they are nearly even
    assert kept(Warp(top_p=0.5)) == [[0]] * 2 and kept(Warp(top_p=0.6)) == [[0, 1, 2]] * 2 and kept(Warp(top_p=0.95)) == [[0, 1, 2, 3]] * 2
    assert kept(Warp(4.0, top_p=0.5)) == [[0, 1, 2]] * 2 and kept(Warp(4.0, top_p=0.25)) == [[0]] * 2
    # the nucleus is that of what top k left
    assert kept(Warp(top_k=3, top_p=0.57)) == [[0]] * 2
    assert kept(Warp(top_k=1), torch.tensor([0, 3])) == [[0], [0, 1, 2, 3]]


def test_fewer_legal_columns_than_the_top_k() -> None:
    logits = torch.full((50, 30), -torch.inf)
    logits[:, [3, 8, 20]] = torch.tensor([0.5, 1.0, -2.0])
    columns, logprobs = draw(logits, row_keys(1, torch.arange(50)), 0, 0, Warp(0.9, 10))
    assert set(columns.tolist()) <= {3, 8, 20} and len(set(columns.tolist())) > 1
    wanted = (logits / 0.9).log_softmax(-1).gather(1, columns[:, None])[:, 0]
    torch.testing.assert_close(logprobs, wanted)
