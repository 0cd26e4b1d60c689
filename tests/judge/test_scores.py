"""scores.jsonl: what is read back, what is refused, and what it adds up to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.scores import Tally, alone, already_judged, check_same_judge, check_writable, read_scores
from paras2s_cli.judge.stream import identity

ROW = {"query": "q", "system": "s", "score": 3, "answer": "a", "judge": {"listener": "1"}}
LINE = json.dumps(ROW) + "\n"


def test_a_torn_last_line_is_no_row_and_a_whole_one_is(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    assert read_scores(path) == []
    path.write_text(LINE + LINE[:20])
    assert read_scores(path) == [ROW]
    path.write_text(LINE + LINE.rstrip())
    assert read_scores(path) == [ROW, ROW]


@pytest.mark.parametrize("line", ["{torn\n", "[1]\n", '{"score": 3}\n', '{"query": "q", "system": "", "score": 9}'])
def test_what_is_no_judgement_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text(LINE + line)
    with pytest.raises(UsageError, match=r"scores\.jsonl:2: not a judgement"):
        read_scores(path)


def test_a_pair_that_is_listed_twice_is_judged_twice() -> None:
    a, b = identity(ROW), identity(ROW | {"id": "b"})
    assert already_judged(Path("s"), [ROW], [a, b, a]) == [True, False, False]
    assert already_judged(Path("s"), [ROW, ROW], [a, b, a]) == [True, False, True]


def test_other_pairs_and_another_judge_are_refused() -> None:
    with pytest.raises(UsageError, match="1 pairs that are not in the manifest"):
        already_judged(Path("s"), [ROW, ROW | {"id": "b"}], [identity(ROW)])
    check_same_judge(Path("s"), [ROW], {"listener": "1"})
    with pytest.raises(UsageError, match="another judge"):
        check_same_judge(Path("s"), [ROW], {"listener": "2"})


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tmp_path / "pairs.jsonl"
    manifest.write_text("")
    check_writable(tmp_path / "new" / "deep" / "s.jsonl", str(manifest))
    assert not (tmp_path / "new").exists()
    for path, why in [
        (manifest, "the manifest itself"),
        (tmp_path, "not a file"),
        (Path("/dev/full"), "not a file"),
        (manifest / "s", "a file stands"),
    ]:
        with pytest.raises(UsageError, match=why):
            check_writable(path, str(manifest))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UsageError, match="you may write to"):
        check_writable(tmp_path / "s", "-")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path / "s"), pytest.raises(UsageError, match="another process"), alone(tmp_path / "s"):
        pass
    with alone(tmp_path / "s"):
        pass


def test_the_bounds_of_a_mean() -> None:
    tally = Tally([{"score": 4}, {"score": 2, "failure": None}, {"score": None, "failure": "bad-row"}])
    tally.add(None, "judge-failed")
    assert tally.failed == 2
    assert str(tally) == (
        "scored 2 of 4, mean 3.00 (2.00 if the missing were all 1, 4.00 if all 5); without a score: 1 bad-row, 1 judge-failed"
    )
    assert str(Tally([{"score": 4}])) == "scored 1 of 1, mean 4.00"
