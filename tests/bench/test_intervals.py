"""Intervals against hand-made cases, a slow loop of another shape, and simulated benches of known truth."""

import numpy as np
import pytest

from paras2s_cli.bench.intervals import (
    cluster_bootstrap,
    correlation,
    paired_difference,
    pearson,
    resample_weights,
    spearman,
)


def simulated(rng, texts=40, rows=6, seeds=1, text_sd=0.7, seed_sd=0.0, noise=0.4):
    """Values with a shared effect a text (and a seed) around a true mean of 3."""
    by_text, by_seed = rng.normal(0, text_sd, texts), rng.normal(0, seed_sd, seeds)
    text = np.repeat(np.arange(texts), rows * seeds)
    seed = np.tile(np.repeat(np.arange(seeds), rows), texts)
    values = 3 + by_text[text] + by_seed[seed] + rng.normal(0, noise, len(text))
    return values, text.tolist(), seed.tolist()


def covers(interval, truth=3.0):
    return interval.low <= truth <= interval.high


def test_the_mean_is_of_rows_and_counts_are_told():
    found = cluster_bootstrap([1, 1, 1, 5], ["a", "a", "a", "b"], seed=1)
    assert (found.mean, found.n, found.clusters) == (2.0, 4, 2)
    # n-1 = 1 of 2 texts is drawn and doubled: every draw is text a alone or text b alone
    assert (found.low, found.high) == (1.0, 5.0)


def test_the_same_seed_gives_the_same_interval():
    values, texts, _ = simulated(np.random.default_rng(0))
    assert cluster_bootstrap(values, texts, seed=3) == cluster_bootstrap(values, texts, seed=3)
    assert cluster_bootstrap(values, texts, seed=3) != cluster_bootstrap(values, texts, seed=4)


def test_one_text_has_no_interval():
    found = cluster_bootstrap([2, 4], ["a", "a"])
    assert (found.mean, found.low, found.high) == (3.0, None, None)


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], ["a", "b"]), ([1.0, np.nan], ["a", "b"])])
def test_rows_that_make_no_sense_are_refused(values, clusters):
    with pytest.raises(ValueError, match=r"values"):
        cluster_bootstrap(values, clusters)


def test_a_loop_over_rows_with_the_same_weights_gives_the_same_interval():
    rng = np.random.default_rng(5)
    values, texts, seeds = simulated(rng, texts=7, rows=3, seeds=3, seed_sd=0.3)
    keep = rng.random(len(values)) > 0.2  # unequal clusters
    values = values[keep]
    texts = [t for t, k in zip(texts, keep, strict=True) if k]
    seeds = [s for s, k in zip(seeds, keep, strict=True) if k]
    found = cluster_bootstrap(values, texts, seeds=seeds, draws=200, seed=9)
    rng = np.random.default_rng(9)
    by_text, by_seed = resample_weights(rng, 7, 200), resample_weights(rng, 3, 200)
    text_order, seed_order = list(dict.fromkeys(texts)), list(dict.fromkeys(seeds))
    means = []
    for draw in range(200):
        total = weight = 0.0
        for value, text, seed in zip(values, texts, seeds, strict=True):
            w = by_text[draw, text_order.index(text)] * by_seed[draw, seed_order.index(seed)]
            total, weight = total + w * value, weight + w
        means.append(total / weight)
    low, high = np.percentile(means, [2.5, 97.5])
    assert found.low == pytest.approx(low) and found.high == pytest.approx(high)


def test_a_plain_resampling_of_whole_texts_agrees():
    values, texts, _ = simulated(np.random.default_rng(6), texts=50)
    found = cluster_bootstrap(values, texts, draws=4000, seed=0)
    rng = np.random.default_rng(1)
    groups = [values[np.array(texts) == text] for text in range(50)]
    drawn = (np.concatenate([groups[i] for i in rng.integers(0, 50, 50)]) for _ in range(2000))
    low, high = np.percentile([each.mean() for each in drawn], [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.025) and found.high == pytest.approx(high, abs=0.025)


def test_weights_keep_the_mean_and_the_variance_of_a_mean():
    weights = resample_weights(np.random.default_rng(0), 3, 200_000)
    assert np.allclose(weights.sum(axis=1), 3)
    values = np.array([0.0, 1.0, 5.0])
    means = weights @ values / 3
    assert means.mean() == pytest.approx(2.0, abs=0.02)
    assert means.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.02)  # the unbiased variance of a mean


def test_coverage_with_texts_and_without():
    """Over simulated benches the 95 % interval holds the truth as often as it says; rows alone do not."""
    rng = np.random.default_rng(11)
    clustered = naive = 0
    for trial in range(300):
        values, texts, _ = simulated(rng)
        clustered += covers(cluster_bootstrap(values, texts, draws=500, seed=trial))
        naive += covers(cluster_bootstrap(values, range(len(values)), draws=500, seed=trial))
    assert 0.90 <= clustered / 300 <= 0.99, clustered / 300
    assert naive / 300 < 0.75, naive / 300


def test_coverage_when_seeds_differ_too():
    """Ten seeds with an effect of their own: only the crossed bootstrap covers."""
    rng = np.random.default_rng(12)
    crossed = texts_only = 0
    for trial in range(300):
        values, texts, seeds = simulated(rng, rows=2, seeds=10, text_sd=0.3, seed_sd=0.3)
        crossed += covers(cluster_bootstrap(values, texts, seeds=seeds, draws=500, seed=trial))
        texts_only += covers(cluster_bootstrap(values, texts, draws=500, seed=trial))
    assert 0.88 <= crossed / 300 <= 0.99, crossed / 300
    assert texts_only / 300 < 0.80, texts_only / 300


def test_pairing_takes_the_text_out_of_a_difference():
    values, texts, _ = simulated(np.random.default_rng(13), noise=0.0)
    found = paired_difference(values + 0.5, values, texts)
    assert found.absolute.mean == pytest.approx(0.5)
    assert found.absolute.high - found.absolute.low < 1e-9  # though each of the two spreads widely
    assert found.relative.mean == pytest.approx(50 / values.mean())
    assert found.relative.low < found.relative.mean < found.relative.high


def test_a_pair_lacking_a_score_is_left_out_and_counted():
    found = paired_difference([4, np.nan, 5, 3], [3, 2, np.nan, 2], ["a", "b", "c", "d"])
    assert (found.absolute.mean, found.absolute.n, found.unpaired) == (1.0, 2, 2)
    assert found.relative.mean == pytest.approx(40.0)
    assert paired_difference([np.nan], [1.0], ["a"]) is None
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([1.0], [1.0, 2.0], ["a"])


def test_correlations():
    x, y = [1, 2, 3, 4, 5], [2, 1, 4, 3, 5]
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert spearman(x, y) == pytest.approx(0.8)
    assert spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1.0)
    assert spearman([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3, 4])[0, 1])
    assert pearson([1, 1], [1, 2]) is None and pearson([1], [1]) is None
    with pytest.raises(ValueError, match="equally long"):
        pearson([1, 2], [1, 2, 3])


def test_a_correlation_has_an_interval_around_it():
    rng = np.random.default_rng(3)
    x = rng.normal(1e8, 1, 400)  # far from zero: moments that are not centred would lose r to rounding
    y = x + rng.normal(0, 1, 400)
    found = correlation(x, y, list(range(400)))
    assert found.mean == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.low < 2**-0.5 < found.high and found.high - found.low < 0.15
    assert correlation([1, 1], [1, 2], ["a", "b"]) is None
