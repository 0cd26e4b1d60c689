"""`paras2s judge` with a language model on this machine: the networks of the ears are a stand-in, the model is real, its weights random."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from paras2s_cli.judge import backends
from paras2s_cli.main import main
from tests.judge_lm import write_judge_lm

sys.path.insert(0, str(Path(__file__).parents[1] / "judge" / "support"))

from stand_in_judge import MAKER, make_pairs, rows_of

COUNT = 12


@pytest.fixture(scope="module")
def judge_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judge_lm(tmp_path_factory.mktemp("judge_lm"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of COUNT pairs in the working folder."""
    monkeypatch.setitem(backends.MAKERS, "pocket", MAKER)
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path / "cache"))
    make_pairs(tmp_path / "data", COUNT)
    monkeypatch.chdir(tmp_path / "data")
    return tmp_path / "data"


def recipe(model: object, *more: str) -> str:
    keys = {"backend": "local", "model": str(model)} | dict(line.split(": ", 1) for line in more)
    lines = "".join(f"  {key}: {value}\n" for key, value in keys.items())
    Path("local.yaml").write_text(f"kind: judge\nears: pocket/polytone\nscore:\n{lines}")
    return "local.yaml"


def test_a_manifest_is_judged_and_gone_on_with(judge_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--judge", recipe(judge_lm, "revision: r1", "tokens: 900")]
    assert main(["judge", "pairs.jsonl", "-o", "scores.jsonl", *options]) == 0
    out, err = capsys.readouterr()
    rows = rows_of(Path("scores.jsonl"))
    assert out == "" and f"12 pairs scored by {judge_lm}: " in err and "tokens of rubric read once" in err and "scored 12 of 12" in err
    for row in rows:
        expected = sum(int(label) * value for label, value in row["labels"].items())
        assert row["score"] == pytest.approx(expected, abs=1e-5) and row["failure"] is row["content_score"] is None
        assert row["labels"][str(row["label"])] == max(row["labels"].values()) and row["label_mass"] > 0.9
    assert len({row["score"] for row in rows}) == COUNT
    name = rows[0]["judge"]["scorer"]
    assert name.startswith(f"local {judge_lm}@r1 float32 rubric ")
    Path("scores.jsonl").write_text("".join(Path("scores.jsonl").read_text().splitlines(keepends=True)[:5]))
    assert main(["judge", "pairs.jsonl", "-o", "scores.jsonl", *options]) == 0
    again = rows_of(Path("scores.jsonl"))
    assert [row["score"] for row in again] == pytest.approx([row["score"] for row in rows], abs=1e-5)
    capsys.readouterr()
    assert main(["judge", "pairs.jsonl", "-o", "scores.jsonl", "--judge", recipe(judge_lm, "revision: r2")]) == 2
    assert "begun by another judge" in capsys.readouterr().err


def test_a_pair(judge_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "q0.wav", "a3.wav", "--judge", recipe(judge_lm)]) == 0
    out = capsys.readouterr().out
    assert "\noverall " in out and "content -" not in out  # a model that tells one digit


def test_a_model_that_does_not_follow_is_counted(judge_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "pairs.jsonl", "--judge", recipe(judge_lm, "floor: 1.0")]) == 3
    out, err = capsys.readouterr()
    assert {row["failure"] for row in rows_of(out)} == {"wrong-schema"} and "12 wrong-schema" in err
    assert all(row["score"] is None and row["label_mass"] > 0.9 for row in rows_of(out))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["model: ./gone"], "./gone is no folder"),
        (["device: tpu"], "local.yaml:6: score.device: must be auto, cpu, cuda"),
        (["dtype: bfloat"], "local.yaml:6: score.dtype: must be"),
        (["floor: 1.5"], "local.yaml:6: score.floor"),
        (["toekns: 5"], "did you mean score.tokens?"),
        (["backend: remote"], "local.yaml:3: score: backend must be endpoint or local"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(judge_lm: Path, capsys: pytest.CaptureFixture[str], keys: list[str], said: str) -> None:
    assert main(["judge", "pairs.jsonl", "--judge", recipe(judge_lm, *keys), "-o", "scores.jsonl"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and "Traceback" not in err and not Path("scores.jsonl").exists()


def test_options_of_an_endpoint_are_refused(judge_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "pairs.jsonl", "--judge", recipe(judge_lm), "--max-cost", "1"]) == 2
    assert "'local.yaml' has none" in capsys.readouterr().err


def test_the_installed_recipe_is_sound_and_a_dry_run_loads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--check", "local/judge"]) == 0
    assert main(["judge", "pairs.jsonl", "--judge", "local", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "backend: local" in out and "12 pairs, 12 to judge" in out
