"""What a bench says of its systems: means with intervals, word errors, who is better on the same queries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from numpy.typing import ArrayLike

from paras2s_cli.bench.intervals import (
    Difference,
    Interval,
    cluster_bootstrap,
    correlation,
    paired_difference,
    pearson,
    spearman,
)
from paras2s_cli.bench.words import normalise, text_agreement, word_errors
from paras2s_cli.data.rows import Failure

__all__ = [
    "Comparison",
    "Difference",
    "Interval",
    "Measure",
    "Scored",
    "Summary",
    "SystemSummary",
    "cluster_bootstrap",
    "correlation",
    "normalise",
    "paired_difference",
    "pearson",
    "spearman",
    "summarise",
    "text_agreement",
    "word_errors",
]

ALL = "all"
DIMENSIONS = ("emotion", "sarcasm", "age", "gender")
LOWEST, HIGHEST = 1.0, 5.0  # the Likert scale's ends

MeasureName = Literal["score", "truth"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One answer of one system to one query, as judged. `text`, the sentence, is the statistics' cluster."""

    system: str
    mode: str  # "greedy" | "T=1"
    query: str
    text: str
    dimension: str
    style: str
    seed: int
    score: float | None  # the judge's 1..5; None is a failure, never a number
    truth: float | None  # the renderer's own 1..5, where there is one
    heard_text: str
    written_text: str | None  # what the text stream says; None for systems without one
    tone_in: str
    tone_out: str
    reason: str
    query_audio: Path
    answer_audio: Path | None
    failure: Failure | None = None  # why there is no score


@dataclass(frozen=True, slots=True)
class Measure:
    """A mean over the `scored` of `total` rows, and where it would lie if the missing were all 1 or all 5."""

    interval: Interval | None
    scored: int
    total: int
    if_lowest: float
    if_highest: float

    @property
    def missing(self) -> int:
        return self.total - self.scored


@dataclass(frozen=True, slots=True)
class SystemSummary:
    """One system in one decoding mode; `score` and `truth` are keyed by "all" and by dimension."""

    system: str
    mode: str
    score: dict[str, Measure]
    truth: dict[str, Measure]
    word_error: Interval | None  # corpus-level rate, 0..1 (and above), of heard against written words
    text_heard: Interval | None  # share of answers whose heard words are the written ones, of those with any
    seeds: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """`system` minus `baseline` on the same queries, keyed by "all" and by dimension."""

    system: str
    baseline: str
    mode: str
    measure: MeasureName
    differences: dict[str, Difference]


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything the table and the page print, in the order the systems were given."""

    systems: list[SystemSummary]
    comparisons: list[Comparison]
    dimensions: tuple[str, ...]
    judge_truth: dict[str, Interval]  # Pearson's r of judge and truth, by "all" and by dimension
    draws: int
    level: float
    texts: int
    queries: int
    seeds: tuple[int, ...] = field(default=())

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.mode for s in self.systems))


def summarise(
    rows: Iterable[Scored],
    *,
    compare: Sequence[tuple[str, str]] = (),
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Summary:
    """Means, intervals and paired comparisons of `rows`; `compare` holds (system, baseline) names.

    Pairs whose systems are not both there in a mode are passed over: a bench may be run on fewer systems.
    """
    table = list(rows)
    dimensions = _dimensions(table)
    boot = _Bootstrap(draws, seed, level)
    groups: dict[tuple[str, str], list[Scored]] = {}
    for row in table:
        groups.setdefault((row.system, row.mode), []).append(row)
    systems = [_system(name, mode, group, dimensions, boot) for (name, mode), group in groups.items()]
    comparisons = []
    measures: tuple[MeasureName, ...] = ("score", "truth")
    for mode in dict.fromkeys(row.mode for row in table):
        for name, baseline in compare:
            a, b = groups.get((name, mode)), groups.get((baseline, mode))
            for measure in measures if a and b else ():
                found = _compare(a or [], b or [], measure, dimensions, boot)
                if found:
                    comparisons.append(Comparison(name, baseline, mode, measure, found))
    return Summary(
        systems=systems,
        comparisons=comparisons,
        dimensions=dimensions,
        judge_truth=_judge_truth(table, dimensions, boot),
        draws=draws,
        level=level,
        texts=len({row.text for row in table}),
        queries=len({row.query for row in table}),
        seeds=tuple(sorted({row.seed for row in table})),
    )


@dataclass(frozen=True, slots=True)
class _Bootstrap:
    draws: int
    seed: int
    level: float

    def interval(self, rows: Sequence[Scored], values: ArrayLike) -> Interval | None:
        """`values`: one number a row, or (numerator, denominator) a row."""
        if not rows:
            return None
        texts, seeds = [r.text for r in rows], [r.seed for r in rows]
        return cluster_bootstrap(values, texts, seeds=seeds, draws=self.draws, seed=self.seed, level=self.level)


def _system(name: str, mode: str, rows: list[Scored], dimensions: tuple[str, ...], boot: _Bootstrap) -> SystemSummary:
    parts = {part: _part(rows, part) for part in (ALL, *dimensions)}
    written = [row for row in rows if row.written_text is not None]
    errors = [word_errors(row.written_text or "", row.heard_text) for row in written]
    # nothing written beside nothing heard agrees with nothing
    worded = [row for row in written if normalise(row.written_text or "") or normalise(row.heard_text)]
    same = [float(normalise(row.written_text or "") == normalise(row.heard_text)) for row in worded]
    return SystemSummary(
        system=name,
        mode=mode,
        score={part: _measure(group, "score", boot) for part, group in parts.items() if group},
        truth={part: _measure(group, "truth", boot) for part, group in parts.items() if group},
        word_error=boot.interval(written, errors) if sum(words for _, words in errors) else None,
        text_heard=boot.interval(worded, same),
        seeds=len({row.seed for row in rows}),
    )


def _measure(rows: list[Scored], measure: MeasureName, boot: _Bootstrap) -> Measure:
    kept = [row for row in rows if getattr(row, measure) is not None]
    values = [float(getattr(row, measure)) for row in kept]
    missing = len(rows) - len(kept)
    low = (math.fsum(values) + missing * LOWEST) / len(rows)
    high = (math.fsum(values) + missing * HIGHEST) / len(rows)
    return Measure(boot.interval(kept, values), len(kept), len(rows), low, high)


def _compare(
    a: list[Scored], b: list[Scored], measure: MeasureName, dimensions: tuple[str, ...], boot: _Bootstrap
) -> dict[str, Difference]:
    """Rows are paired by query and seed; a baseline that was run under one seed stands beside every seed."""
    one_seed = len({row.seed for row in b}) == 1
    base = {(row.query, None if one_seed else row.seed): row for row in b}
    pairs = [(row, base.get((row.query, None if one_seed else row.seed))) for row in a]
    found: dict[str, Difference] = {}
    for part in (ALL, *dimensions):
        chosen = [(x, y) for x, y in pairs if part in (ALL, x.dimension)]
        difference = paired_difference(
            [_number(x, measure) for x, _ in chosen],
            [_number(y, measure) for _, y in chosen],
            [x.text for x, _ in chosen],
            seeds=[x.seed for x, _ in chosen],
            draws=boot.draws,
            seed=boot.seed,
            level=boot.level,
        )
        if difference is not None:
            found[part] = difference
    return found


def _judge_truth(rows: list[Scored], dimensions: tuple[str, ...], boot: _Bootstrap) -> dict[str, Interval]:
    both = [row for row in rows if row.score is not None and row.truth is not None]
    found = {}
    for part in (ALL, *dimensions):
        group = _part(both, part)
        x, y = [_number(row, "score") for row in group], [_number(row, "truth") for row in group]
        texts = [row.text for row in group]
        r = correlation(x, y, texts, draws=boot.draws, seed=boot.seed, level=boot.level)
        if r is not None:
            found[part] = r
    return found


def _part(rows: list[Scored], part: str) -> list[Scored]:
    return [row for row in rows if part in (ALL, row.dimension)]


def _number(row: Scored | None, measure: MeasureName) -> float:
    value = getattr(row, measure, None)
    return math.nan if value is None else float(value)


def _dimensions(rows: list[Scored]) -> tuple[str, ...]:
    found = dict.fromkeys(row.dimension for row in rows)
    return (*(d for d in DIMENSIONS if d in found), *(d for d in found if d not in DIMENSIONS))
