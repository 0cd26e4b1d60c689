"""Scores of the judge beside scores of people, pair by pair."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from paras2s_cli.bench.stats import Interval, correlation, spearman
from paras2s_cli.errors import UsageError


@dataclass(frozen=True)
class Agreement:
    """Matched scores; `human` is the mean of those who scored the pair, `queries` are what intervals resample."""

    judge: list[float]
    human: list[float]
    queries: list[str]
    unscored: int
    """Pairs that people scored and the judge could not."""
    unmatched: int
    """Pairs that people scored and that the judge was not given."""


def match_humans(scores: Sequence[Mapping[str, Any]], humans: Path) -> Agreement:
    """The judge's rows beside those of a CSV with a column `score` and either `id`, or `query` and `system`.

    Several lines for one pair are averaged; a line without a score is left out. Raises UsageError for a CSV
    that is not so, and where nothing matches.
    """
    key, by_pair = _read_humans(humans)
    judged: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for row in scores:
        name = tuple(str(row.get(column)) for column in key)
        if name in judged and name in by_pair:
            raise UsageError(
                f"{humans}: {' '.join(key)} = {' '.join(name)} is more than one row of the scores;"
                " give the pairs ids, and the CSV a column id"
            )
        judged[name] = row
    both = [(judged[name], given) for name, given in by_pair.items() if name in judged]
    if not both:
        raise UsageError(f"{humans}: no {' and '.join(key)} is one of the scores; they must be spelled alike")
    kept = [(row, given) for row, given in both if row.get("score") is not None]
    return Agreement(
        judge=[float(row["score"]) for row, _ in kept],
        human=[math.fsum(given) / len(given) for _, given in kept],
        queries=[str(row["query"]) for row, _ in kept],
        unscored=len(both) - len(kept),
        unmatched=len(by_pair) - len(both),
    )


def correlate(found: Agreement, *, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Pearson's and Spearman's correlation with 95 % intervals (None where undefined), and the counts."""
    pearson = correlation(found.judge, found.human, found.queries, draws=draws, seed=seed)
    ranks = rank_correlation(found, draws=draws, seed=seed)
    return {
        "pearson": asdict(pearson) if pearson else None,
        "spearman": asdict(ranks) if ranks else None,
        "pairs": len(found.judge),
        "queries": len(set(found.queries)),
        "unscored": found.unscored,
        "unmatched": found.unmatched,
    }


def rank_correlation(found: Agreement, *, draws: int, seed: int, level: float = 0.95) -> Interval | None:
    """Spearman's with its percentile interval: whole queries are drawn, and ranked anew in every draw."""
    estimate = spearman(found.judge, found.human)
    if estimate is None:
        return None
    judge, human = np.asarray(found.judge), np.asarray(found.human)
    groups = [np.flatnonzero(np.asarray(found.queries) == query) for query in dict.fromkeys(found.queries)]
    if len(groups) < 2:
        return Interval(estimate, None, None, len(judge), len(groups))
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        rows = np.concatenate([groups[index] for index in rng.integers(len(groups), size=len(groups))])
        drawn.append(spearman(judge[rows], human[rows]))
    defined = [value for value in drawn if value is not None]
    tail = 50.0 * (1.0 - level)
    if not defined:
        return Interval(estimate, None, None, len(judge), len(groups))
    low, high = np.percentile(defined, [tail, 100.0 - tail])
    return Interval(estimate, float(low), float(high), len(judge), len(groups))


def _read_humans(path: Path) -> tuple[tuple[str, ...], dict[tuple[str, ...], list[float]]]:
    """The key columns, and the scores by their values."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            key = _key_columns(path, reader.fieldnames or [])
            by_pair: dict[tuple[str, ...], list[float]] = {}
            for row in reader:
                score = (row["score"] or "").strip()
                if score:
                    name = tuple((row[column] or "").strip() for column in key)
                    by_pair.setdefault(name, []).append(_number(score, f"{path}:{reader.line_num}"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as CSV ({error}); save it as comma-separated UTF-8") from None
    if not by_pair:
        raise UsageError(f"{path} holds no scores; fill its column score")
    return key, by_pair


def _key_columns(path: Path, columns: Sequence[str]) -> tuple[str, ...]:
    key = ("id",) if "id" in columns else ("query", "system")
    for wanted in ("score", *key):
        if wanted not in columns:
            near = get_close_matches(wanted, columns, n=1)
            hint = f" (there is {near[0]})" if near else ""
            raise UsageError(f"{path}:1: no column {wanted}{hint}; it needs score, and id or query and system")
    return key


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{place}: the score {text!r} is not a number; leave it empty if there is none")
    return value
