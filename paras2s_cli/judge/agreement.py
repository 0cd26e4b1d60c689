"""Scores of the judge beside scores of people, pair by pair."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

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

    def __len__(self) -> int:
        return len(self.judge)


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
    kept = [(row, given) for row, given in both if row["score"] is not None]
    return Agreement(
        judge=[float(row["score"]) for row, _ in kept],
        human=[math.fsum(given) / len(given) for _, given in kept],
        queries=[str(row["query"]) for row, _ in kept],
        unscored=len(both) - len(kept),
        unmatched=len(by_pair) - len(both),
    )


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
