"""`paras2s judge`: what it prints, that a killed run goes on to the same file, and that nothing is heard twice.

The networks are a stand-in; everything around them is real.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from paras2s_cli.audio.write import write_wav
from paras2s_cli.judge import auto, backends
from paras2s_cli.main import main

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "judge" / "support"
sys.path.insert(0, str(SUPPORT))

from stand_in_judge import ALIEN, MAKER, make_pairs, rows_of  # noqa: E402

COUNT = 20


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a manifest with COUNT pairs, the working folder."""
    monkeypatch.setitem(backends.MAKERS, "pocket", MAKER)
    monkeypatch.setattr(auto, "MODELS", {})  # whatever this machine has
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "listened"))
    make_pairs(tmp_path / "data", COUNT)
    monkeypatch.chdir(tmp_path / "data")
    return tmp_path / "data"


def listened(folder: Path) -> int:
    """Calls of the listener so far."""
    log = folder.parent / "listened"
    return len(log.read_text().splitlines()) if log.exists() else 0


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, str(SUPPORT / "stand_in_judge.py"), "judge", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=env, text=True, preexec_fn=heed_interrupts, **pipes)  # type: ignore[call-overload]


def heed_interrupts() -> None:
    """A shell's background jobs, and so their children, are started with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr says, which must be one line, with nothing on stdout."""
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("paras2s: "), (out, err)
    return err


def test_a_pair_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "q0.wav", "a3.wav"]) == 0
    out = capsys.readouterr().out
    for words in ('"200 samples"', '"330 samples"', "happy answer", "[angry] 0.10", "adult 0.90", "female 0.80"):
        assert words in out
    assert "content 5, style 4, overall 4" in out and "It [almost] fits." in out


def test_a_pair_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "q0.wav", "a3.wav", "--output", "json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["score"], row["query"], row["answer"], row["failure"]) == (4, "q0.wav", "a3.wav", None)
    assert row["judge"] == {"listener": "ears/1", "scorer": "rubric/1", "closed": False}
    assert list(row["tones_in"]) == ["happy", "sad", "[angry]"]
    assert row["voice_out"] == {"adult": 0.9, "female": 0.8}
    assert main(["judge", "q0.wav", "a3.wav", "--output", "jsonl"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_what_the_rubric_does_not_know_has_no_score(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wav("alien.wav", np.full(ALIEN, 0.1))
    assert main(["judge", "q0.wav", "alien.wav"]) == 0
    out = capsys.readouterr().out
    assert "overall -" in out and "Unknown. [outside-world]" in out and f'"{ALIEN} samples"' in out
    assert main(["judge", "q0.wav", "alien.wav", "--closed", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 1


def test_silence_is_judged_and_has_no_tone(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wav("silence.wav", np.zeros(400))
    assert main(["judge", "q0.wav", "silence.wav"]) == 0
    out = capsys.readouterr().out
    assert "(no speech)" in out and "No speech (silence)." in out and "happy answer" not in out
    assert main(["judge", "q0.wav", "silence.wav", "--output", "json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["score"], row["tone_out"], row["tones_out"], row["voice_out"]) == (1, None, {}, {})


def test_a_manifest_runs_to_stdout_in_order(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "pairs.jsonl", "--batch", "6"]) == 0
    out, err = capsys.readouterr()
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(COUNT)]
    assert rows[4] | {"tones_in": 0, "tones_out": 0} == {
        "query": "q1.wav", "system": "kimi", "answer": "a4.wav", "id": "p4", "extra": [1],
        "content_in": "210 samples", "content_out": "340 samples", "tone_in": "happy query",
        "tone_out": "happy answer", "content_score": 5, "style_score": 5, "score": 5, "failure": None,
        "reason": "It [almost] fits.", "judge": {"listener": "ears/1", "scorer": "rubric/1", "closed": False},
        "cost": 0.0, "tones_in": 0, "tones_out": 0,
        "voice_in": {"adult": 0.9, "female": 0.8}, "voice_out": {"adult": 0.9, "female": 0.8},
    }  # fmt: skip
    assert f"0 of {COUNT + 3} utterances from the cache" in err
    assert f"scored {COUNT} of {COUNT}, mean 3.00\n" in err


def test_stdin_and_the_other_forms(stand_in: Path, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    data = (stand_in / "pairs.jsonl").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert main(["judge", "-", "--output", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == COUNT
    assert main(["judge", "pairs.jsonl", "--output", "table"]) == 0
    assert capsys.readouterr().out.count("kimi") == COUNT


def test_rows_come_as_batches_are_done(stand_in: Path) -> None:
    run = start("pairs.jsonl", "--batch", "4", STAND_IN_SLEEP="0.4")
    assert run.stdout is not None
    assert json.loads(run.stdout.readline())["id"] == "p0"
    assert listened(stand_in) <= 4, "the first row came before the last batch was heard"
    run.communicate()


def test_a_second_run_listens_to_nothing(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "pairs.jsonl", "-o", "one.jsonl", "--batch", "6"]) == 0
    assert capsys.readouterr().out == ""
    calls = listened(stand_in)
    assert calls > 0
    assert main(["judge", "pairs.jsonl", "-o", "two.jsonl", "--batch", "7"]) == 0
    assert listened(stand_in) == calls
    assert f"{COUNT + 3} of {COUNT + 3} utterances from the cache" in capsys.readouterr().err
    assert rows_of(stand_in / "one.jsonl") == rows_of(stand_in / "two.jsonl")


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_goes_on_to_the_same_file(stand_in: Path, tmp_path: Path, torn: bool) -> None:
    arguments = ("pairs.jsonl", "--batch", "6", "-o")
    whole = start(*arguments, "whole.jsonl", PARAS2S_CACHE=str(tmp_path / "other"))
    assert whole.communicate() and whole.returncode == 0
    killed = start(*arguments, "new/scores.jsonl", STAND_IN_SLEEP="0.3")
    scores, until = stand_in / "new" / "scores.jsonl", time.monotonic() + 60
    while not (scores.exists() and scores.read_bytes().count(b"\n") >= 6):
        assert killed.poll() is None and time.monotonic() < until, killed.communicate()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    lines = scores.read_text().splitlines(keepends=True)
    assert 6 <= len(lines) < COUNT
    if torn:  # in the middle of a window, in the middle of a line
        scores.write_text("".join(lines[:4]) + lines[4][:50])
        lines = lines[:4]
    resumed = start(*arguments, "new/scores.jsonl")
    out, err = resumed.communicate()
    assert (resumed.returncode, out) == (0, "")
    where = f"new/scores.jsonl holds {len(lines)} of {COUNT} judgements; going on from row {len(lines) + 1}"
    assert where in err and f"scored {COUNT} of {COUNT}" in err
    assert rows_of(scores) == rows_of(stand_in / "whole.jsonl")
    again = start(*arguments, "new/scores.jsonl")
    assert f"holds all {COUNT} judgements already" in again.communicate()[1]
    assert len(rows_of(scores)) == COUNT


def test_an_interrupt_leaves_whole_rows(stand_in: Path) -> None:
    run = start("pairs.jsonl", "--batch", "6", "-o", "scores.jsonl", STAND_IN_SLEEP="0.3")
    while not (Path("scores.jsonl").exists() and Path("scores.jsonl").stat().st_size):
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    assert "the same command resumes" in run.communicate()[1]
    assert run.returncode == 130
    assert Path("scores.jsonl").read_bytes().endswith(b"\n")


def test_a_bad_row_is_a_null_and_the_rest_go_on(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a1.wav").write_text("no sound")
    Path("a2.wav").unlink()
    write_wav("a3.wav", np.zeros(16000 * 2))
    with open("pairs.jsonl", "a") as file:
        file.write('{"query": "q0.wav", "answer": "a0.wav", "id": 7, "answer_text": ["x"]}\n')
    assert main(["judge", "pairs.jsonl", "-o", "scores.jsonl", "--max-seconds", "1"]) == 0
    rows = rows_of(stand_in / "scores.jsonl")
    bad = {row["id"]: (row["failure"], row["reason"]) for row in rows if row["score"] is None}
    assert {name: failure for name, (failure, _) in bad.items()} == {
        "p1": "unreadable-audio", "p2": "unreadable-audio", "p3": "unreadable-audio", "7": "bad-row"
    }  # fmt: skip
    assert "a1.wav is not audio" in bad["p1"][1] and "--max-seconds 3" in bad["p3"][1]
    assert "without a score: 1 bad-row, 3 unreadable-audio" in capsys.readouterr().err
    assert main(["judge", "pairs.jsonl", "-o", "scores.jsonl", "--max-seconds", "1", "--max-fail", "0.1"]) == 3
    assert "4 of 21 pairs have no score, more than --max-fail 0.1" in capsys.readouterr().err
    assert rows_of(stand_in / "scores.jsonl") == rows, "bad rows are done as well"


def test_too_many_failures_come_after_all_rows(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in stand_in.glob("a1*.wav"):
        path.unlink()
    assert main(["judge", "pairs.jsonl"]) == 3
    assert len(rows_of(capsys.readouterr().out)) == COUNT


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{oops\n", f"pairs.jsonl:{COUNT + 1}: not JSON"),
        ('{"query": "q0.wav"}\n', '"answer" is missing'),
        ('{"query": "q0.wav", "answer": "../listened"}\n', "leaves the manifest's folder"),
    ],
)
def test_a_doubtful_manifest_writes_nothing(stand_in: Path, capsys, line: str, why: str) -> None:  # type: ignore[no-untyped-def]
    with open("pairs.jsonl", "a") as file:
        file.write(line)
    assert main(["judge", "pairs.jsonl", "-o", "new/scores.jsonl"]) == 2
    assert why in one_sentence(capsys)
    assert not Path("new").exists() and listened(stand_in) == 0 and not (stand_in.parent / "cache").exists()


def test_outside_on_request(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wav("../outside.wav", np.full(400, 0.1))
    Path("pairs.jsonl").write_text('{"query": "q0.wav", "answer": "../outside.wav"}\n')
    assert main(["judge", "pairs.jsonl", "--allow-outside"]) == 0
    assert rows_of(capsys.readouterr().out)[0]["answer"] == str(stand_in.parent / "outside.wav")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "name two audio files"),
        (["q0.wav"], "1 file was given: name two audio files"),
        (["q0.wav", "a0.wav", "a1.wav"], "one manifest of pairs"),
        (["pairs.jsonl", "pairs.jsonl"], "one manifest of pairs"),
        (["nothing.jsonl"], "nothing.jsonl does not exist"),
        (["q0.wav", "nothing.wav"], "nothing.wav does not exist"),
        (["q0.wav", "pairs.jsonl"], "pairs.jsonl is not audio"),
        (["q0.wav", "a0.wav", "--max-seconds", "0.001"], "--max-seconds 1 raises it"),
        (["q0.wav", "a0.wav", "-o", "x.jsonl"], "-o goes with a manifest"),
        (["pairs.jsonl", "-o", "x.jsonl", "--output", "table"], "leave out --output"),
        (["pairs.jsonl", "-o", "pairs.jsonl"], "is the manifest itself"),
        (["pairs.jsonl", "-o", "/dev/full"], "cannot write /dev/full"),
        (["pairs.jsonl", "-o", "q0.wav/x.jsonl"], "a file stands where a folder is needed"),
        (["pairs.jsonl", "-o", "a0.wav"], "a0.wav:1: not a judgement"),
        (["pairs.jsonl", "--judge", "pockte"], "pockte"),
        (["pairs.jsonl", "--agree", "no.csv", "-o", "x"], "--agree compares one file"),
        (["nothing.jsonl", "--agree", "no.csv"], "nothing.jsonl does not exist"),
    ],
)
def test_an_error_is_one_sentence_and_writes_nothing(stand_in, capsys, arguments, why) -> None:  # type: ignore[no-untyped-def]
    before = {path: path.read_bytes() for path in stand_in.rglob("*")}
    assert main(["judge", *arguments]) == 2
    assert why in one_sentence(capsys)
    assert {path: path.read_bytes() for path in stand_in.rglob("*")} == before
    assert not (stand_in.parent / "cache").exists()


def test_a_full_disk_under_stdout(stand_in: Path) -> None:
    for arguments in (["pairs.jsonl", "--judge", "pocket"], ["q0.wav", "a0.wav", "--judge", "pocket"]):
        with open("/dev/full", "w") as full:
            run = subprocess.run(
                [sys.executable, str(SUPPORT / "stand_in_judge.py"), "judge", *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert run.returncode == 2
        assert run.stderr.startswith("paras2s: cannot write the standard output: No space left")
        assert run.stderr.count("\n") == 1


def test_scores_of_another_judge_or_of_other_pairs_are_not_mixed(stand_in: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["judge", "pairs.jsonl", "-o", "scores.jsonl"]) == 0
    before = Path("scores.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["judge", "pairs.jsonl", "-o", "scores.jsonl", "--closed"]) == 2
    assert "begun by another judge" in one_sentence(capsys)
    Path("fewer.jsonl").write_text("".join(Path("pairs.jsonl").read_text().splitlines(keepends=True)[1:]))
    assert main(["judge", "fewer.jsonl", "-o", "scores.jsonl"]) == 2
    assert "1 pairs that are not in the manifest" in one_sentence(capsys)
    assert Path("scores.jsonl").read_bytes() == before


def test_a_dash_is_no_file_to_write_to(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "pairs.jsonl", "-o", "-"]) == 2
    assert "standard output" in one_sentence(capsys) and not Path("-").exists()


def test_a_dry_run_prints_and_does_nothing(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "pairs.jsonl", "-o", "scores.jsonl", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "kind: polytone" in out and f"{COUNT} pairs, {COUNT} to judge, 0.0 minutes of sound" in out
    assert main(["judge", "q0.wav", "a0.wav", "--dry-run"]) == 0
    assert not Path("scores.jsonl").exists() and listened(stand_in) == 0


def test_responses_are_joined_to_their_queries(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries = [{"id": f"q/{i}", "audio": f"q{i}.wav", "dimension": "age", "style": "child", "text": "Hello?"} for i in range(3)]
    answers = [{"query": f"q/{i % 3}", "system": "kimi", "audio": f"a{i}.wav"} for i in (4, 2, 0)]
    Path("queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    assert main(["judge", "answers.jsonl", "--queries", "queries.jsonl", "-o", "scores.jsonl"]) == 0
    assert main(["judge", "answers.jsonl", "--queries", "queries.jsonl", "-o", "scores.jsonl"]) == 0
    names = ("id", "query", "answer", "system", "dimension", "style", "content_in", "content_out")
    assert [[row[name] for name in names] for row in rows_of(Path("scores.jsonl"))] == [
        ["q/1", "q1.wav", "a4.wav", "kimi", "age", "child", "210 samples", "340 samples"],
        ["q/2", "q2.wav", "a2.wav", "kimi", "age", "child", "220 samples", "320 samples"],
        ["q/0", "q0.wav", "a0.wav", "kimi", "age", "child", "200 samples", "300 samples"],
    ]
    capsys.readouterr()
    Path("answers.jsonl").write_text('{"query": "q/9", "system": "kimi", "audio": "a1.wav"}\n')
    assert main(["judge", "answers.jsonl", "--queries", "queries.jsonl"]) == 2
    assert "the query 'q/9' is not in queries.jsonl" in one_sentence(capsys)
    assert main(["judge", "q0.wav", "a0.wav", "--queries", "queries.jsonl"]) == 2
    assert "paras2s judge responses.jsonl --queries" in one_sentence(capsys)


def test_agreement_with_people(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "pairs.jsonl", "-o", "scores.jsonl"]) == 0
    rows = rows_of(stand_in / "scores.jsonl")
    lines = [f"{row['id']},{row['score'] + (i % 2)}" for i, row in enumerate(rows)]
    Path("humans.csv").write_text("\n".join(["id,score", *lines, "p99,1"]) + "\n")
    capsys.readouterr()
    assert main(["judge", "scores.jsonl", "--agree", "humans.csv"]) == 0
    out = capsys.readouterr().out
    assert "Pearson" in out and "Spearman" in out and "[0.9" in out and "not among the scores: 1" in out
    assert main(["judge", "scores.jsonl", "--agree", "humans.csv", "--output", "json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["pairs"], figures["queries"], figures["unmatched"]) == (COUNT, 3, 1)
    assert 0.9 < figures["pearson"]["mean"] < 1
