"""The contracts of the rows."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from paras2s_cli.data.rows import FAILURES, Demonstration, Judgement, Query


def test_unknown_keys_are_kept() -> None:
    row = Query.model_validate({"id": 7, "audio": "a.wav", "mood": {"x": 1}})
    assert row.id == "7" and row.model_dump()["mood"] == {"x": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"score": 3, "failure": "judge-failed"},
        {},
        {"score": 0.5},
        {"score": 5.01},
        {"score": float("nan")},
        {"failure": "because"},
        {"score": 3, "style_score": 6},
    ],
)
def test_a_score_or_a_failure(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Judgement.model_validate({"query": "q", "system": "s", **fields})


def test_scores() -> None:
    assert Judgement(query="q", system="s", score=1).score == 1
    assert Judgement(query="q", system="s", score=4.25).score == 4.25
    for failure in FAILURES:
        assert Judgement(query="q", system="s", failure=failure).score is None


def test_a_demonstration_names_its_query_by_path_or_in_full() -> None:
    short = Demonstration.model_validate({"query": "q.wav", "audio": "a.wav", "text": "Hi."})
    full = Demonstration.model_validate({"query": {"id": "q.wav", "audio": "q.wav"}, "audio": "a.wav", "text": "Hi."})
    assert short == full and str(short.query.audio) == "q.wav"
