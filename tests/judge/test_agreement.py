"""Judge and people, pair by pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.agreement import correlate, match_humans

SCORES = [
    {"query": f"q{i // 2}", "system": "ab"[i % 2], "id": f"p{i}", "score": score} for i, score in enumerate([1, 2, 3, 4, 5, None, 2, 5])
]


def humans(folder: Path, text: str) -> Path:
    path = folder / "humans.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_people_are_averaged_and_the_rest_is_counted(tmp_path: Path) -> None:
    text = "system,score,query\na,1,q0\na,2,q0\nb,3,q0\nb,4,q2\nb,2,q9\na,,q3\n"
    found = match_humans(SCORES, humans(tmp_path, text))
    assert (found.judge, found.human, found.queries) == ([1.0, 2.0], [1.5, 3.0], ["q0", "q0"])
    assert (found.unscored, found.unmatched) == (1, 1)


def test_correlations_with_intervals(tmp_path: Path) -> None:
    rows = [f"p{i},{score}" for i, score in enumerate([1, 2, 3, 4, 100, 3, 2, 90])]
    figures = correlate(match_humans(SCORES, humans(tmp_path, "\n".join(["id,score", *rows]))))
    assert (figures["pairs"], figures["queries"], figures["unscored"]) == (7, 4, 1)
    spearman, pearson = figures["spearman"], figures["pearson"]
    assert spearman["mean"] == pytest.approx(27 / (27 * 27.5) ** 0.5) and 0.6 < pearson["mean"] < 0.9
    assert -1 <= spearman["low"] <= spearman["mean"] <= spearman["high"] <= 1
    flat = humans(tmp_path, "\n".join(["id,score", *(f"p{i},3" for i in range(4))]))
    assert correlate(match_humans(SCORES, flat))["spearman"] is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("id,scores\np0,1\n", r"humans\.csv:1: no column score \(there is scores\)"),
        ("quer,system,score\nq,a,1\n", r"no column query \(there is quer\)"),
        ("id,score\np0,good\n", r"humans\.csv:2: the score 'good'"),
        ("id,score\np0,nan\n", "not a number"),
        ("id,score\np0,\n", "holds no scores"),
        ("id,score\nzz,1\n", "no id is one of the scores"),
        ("", "no column score"),
    ],
)
def test_what_is_wrong_with_a_csv(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        match_humans(SCORES, humans(tmp_path, text))


def test_an_ambiguous_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="more than one row"):
        match_humans([*SCORES, SCORES[0]], humans(tmp_path, "query,system,score\nq0,a,1\n"))
