"""Bootstrap intervals that respect how a bench is made: rows share sentences, and a run shares its seed.

Rows of one text rise and fall together, so texts are resampled, never rows. With several training seeds the
two factors are crossed: texts and seeds are resampled independently and their weights multiply (the
pigeonhole bootstrap; Owen, 2007). Each factor draws n-1 of its n levels and rescales by n/(n-1) (Rao & Wu,
1988), so that the variance of a mean is unbiased even for three seeds, where the plain bootstrap would lose a
third of it. Percentiles of so few seeds still lie a little close together: read them with that in mind.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate over `n` rows in `clusters` texts; one text tells no spread: `low` = `high` = None."""

    mean: float
    low: float | None
    high: float | None
    n: int
    clusters: int


@dataclass(frozen=True, slots=True)
class Difference:
    """a minus b on the same rows, in points and in percent of b's mean; `unpaired` rows lacked one."""

    absolute: Interval
    relative: Interval
    unpaired: int


def ratio(sums: Floats) -> Floats:
    """Column 0 over column 1 of sums [..., 2]: a mean if column 1 counts rows, a rate if it counts words."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1], dtype=np.float64)


def pearson_of_sums(sums: Floats) -> Floats:
    """Pearson's r from weighted sums [..., 6] of (1, x, y, xx, yy, xy); NaN where x or y does not vary."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))
    return np.asarray(r, dtype=np.float64)


def resample_weights(rng: np.random.Generator, levels: int, draws: int) -> Floats:
    """Weights [draws, levels] of a rescaled bootstrap over one factor; all ones where there is one level."""
    if levels == 1:
        return np.ones((draws, 1))
    counts = rng.multinomial(levels - 1, np.full(levels, 1.0 / levels), size=draws)
    return np.asarray(counts * (levels / (levels - 1)), dtype=np.float64)


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    seeds: Sequence[Hashable] | None = None,
    statistic: Statistic = ratio,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """A statistic with its percentile bootstrap interval, resampling whole clusters (and seeds, crossed).

    values: [n] for the mean, or [n, K] columns whose weighted sums [..., K] `statistic` maps to [...].
    clusters, seeds: [n] labels. Only per-cluster sums are kept, so the cost does not grow with n.
    Raises ValueError for no rows, for lengths that differ and for values that are not finite.
    """
    columns = np.asarray(values, dtype=np.float64)
    if columns.ndim == 1:
        columns = np.stack([columns, np.ones_like(columns)], axis=1)  # [n, 2]
    n = len(columns)
    if n == 0 or len(clusters) != n or (seeds is not None and len(seeds) != n):
        raise ValueError(f"{n} values need as many cluster and seed labels, and at least one")
    if not np.isfinite(columns).all():
        raise ValueError("values must be finite: leave missing scores out")
    text, texts = _codes(clusters)
    run, runs = _codes(seeds if seeds is not None else [0] * n)
    sums = np.zeros((texts, runs, columns.shape[1]))
    np.add.at(sums, (text, run), columns)
    estimate = float(statistic(sums.sum(axis=(0, 1))))
    if texts < 2:
        return Interval(estimate, None, None, n, texts)
    rng = np.random.default_rng(seed)
    by_text = resample_weights(rng, texts, draws)  # [draws, texts]
    by_run = resample_weights(rng, runs, draws)  # [draws, runs]
    drawn = (by_text @ sums.reshape(texts, -1)).reshape(draws, runs, -1)  # [draws, runs, K]
    estimates = statistic(np.einsum("drk,dr->dk", drawn, by_run))
    estimates = estimates[np.isfinite(estimates)]  # a draw may miss every row of a sparse table
    if not estimates.size:
        return Interval(estimate, None, None, n, texts)
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(estimates, [tail, 100.0 - tail])
    return Interval(estimate, float(low), float(high), n, texts)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    seeds: Sequence[Hashable] | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference | None:
    """a minus b [n] row by row, resampled together; NaN in either drops the row. None if none is left."""
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or len(clusters) != len(left):
        raise ValueError(f"a paired difference needs equal lengths, not {left.shape} and {right.shape}")
    keep = np.flatnonzero(~(np.isnan(left) | np.isnan(right)))
    if not keep.size:
        return None
    gain, base = (left - right)[keep], right[keep]
    texts = [clusters[i] for i in keep]
    runs = None if seeds is None else [seeds[i] for i in keep]
    absolute = cluster_bootstrap(gain, texts, seeds=runs, draws=draws, seed=seed, level=level)
    percent = np.stack([100.0 * gain, base], axis=1)  # a ratio of sums: the gain in percent of b's mean
    relative = cluster_bootstrap(percent, texts, seeds=runs, draws=draws, seed=seed, level=level)
    return Difference(absolute, relative, len(left) - keep.size)


def correlation(
    x: ArrayLike,
    y: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """Pearson's r of x and y [n] with its interval, resampling clusters; None where it is not defined."""
    left, right = _pair(x, y)
    if pearson(left, right) is None:
        return None
    left, right = left - left.mean(), right - right.mean()  # centred, the moments below do not cancel
    moments = np.stack([np.ones_like(left), left, right, left**2, right**2, left * right], axis=1)
    statistic = pearson_of_sums
    return cluster_bootstrap(moments, clusters, statistic=statistic, draws=draws, seed=seed, level=level)


def pearson(x: ArrayLike, y: ArrayLike) -> float | None:
    """Pearson's correlation of x and y [n]; None for fewer than two rows or where one does not vary."""
    left, right = _pair(x, y)
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    left, right = left - left.mean(), right - right.mean()
    return float(left @ right / np.sqrt((left @ left) * (right @ right)))


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's rank correlation of x and y [n], ties at their mean rank; None where `pearson` is."""
    left, right = _pair(x, y)
    return pearson(_ranks(left), _ranks(right))


def _ranks(values: Floats) -> Floats:
    _, code, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[code]


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    left, right = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape:
        raise ValueError(f"a correlation needs two equally long rows, not {left.shape} and {right.shape}")
    return left, right


def _codes(labels: Sequence[Hashable]) -> tuple[NDArray[np.int64], int]:
    order = {label: code for code, label in enumerate(dict.fromkeys(labels))}
    return np.array([order[label] for label in labels], dtype=np.int64), len(order)
