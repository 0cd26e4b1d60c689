"""`paras2s judge` and `bench` end to end in one audio language model: a small random checkpoint on real files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from paras2s_cli.audio.read import audio_info, read_audio
from paras2s_cli.audio.write import write_wav
from paras2s_cli.data import worlds
from paras2s_cli.judge import backends
from paras2s_cli.main import main
from tests.checkpoint_qwen_audio import write_qwen_audio
from tests.pair_forward import Slow

sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "judge" / "support"))

from stand_in_judge import MAKER, rows_of

RATES = (16000, 8000, 44100)
"""Of the files, Hz."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen_audio(tmp_path_factory.mktemp("model") / "qwen")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """Three pairs of files in the working folder, of which the last answer is silent."""
    monkeypatch.setitem(backends.MAKERS, "pocket", MAKER)
    monkeypatch.setitem(worlds.MAKERS, "pocket", "stand_in_world:load")
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for place, rate in enumerate(RATES):
        for side, seconds in (("q", 0.6 + place / 4), ("a", 0.9)):
            sound = 0.3 * np.sin(2 * np.pi * (150 + 130 * place + 300 * (side == "a")) * np.arange(int(seconds * rate)) / rate)
            write_wav(f"{side}{place}.wav", np.zeros(rate) if (side, place) == ("a", 2) else sound, rate)
    rows = [{"id": f"p{place}", "query": f"q{place}.wav", "answer": f"a{place}.wav"} for place in range(len(RATES))]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("e2e.yaml").write_text(f"kind: judge\ne2e:\n  model: {model}\n  device: cpu\n  floor: 0\n")


@pytest.fixture(scope="module")
def slow(model: Path) -> Slow:
    return Slow("qwen2_audio", model)


def expected(slow: Slow, asked: str, said: str) -> float:
    """The expected digit. What is shorter than 0.1 s is heard with silence behind it."""
    labels, _ = slow.digits(*(np.pad(wave, (0, max(0, 1600 - len(wave)))) for wave in map(read_audio, (asked, said))))
    return sum(k * p for k, p in enumerate(labels, 1))


def test_a_manifest_is_judged_and_gone_on_with(model: Path, slow: Slow, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["judge", "pairs.jsonl", "-o", "scores.jsonl", "--judge", "e2e.yaml"]
    assert main(words) == 0
    err = capsys.readouterr().err
    rows = rows_of(Path("scores.jsonl"))
    assert f"2 pairs heard end to end by {model}, 0 of them from the cache" in err and "utterances" not in err
    for row in rows[:2]:
        assert row["score"] == pytest.approx(expected(slow, row["query"], row["answer"]), abs=1e-4)
        unknown = [row[key] for key in ("content_in", "content_out", "tone_in", "tone_out", "content_score", "style_score", "failure")]
        assert unknown == [None] * 7 and set(row["labels"]) == set("12345") and 0 < row["label_mass"] < 1
    assert (rows[2]["score"], rows[2]["content_in"], rows[2]["content_out"]) == (1, None, ""), "silence"
    assert rows[0]["judge"]["listener"] == "none" and rows[0]["judge"]["scorer"].startswith("end-to-end audio-lm qwen@")
    Path("scores.jsonl").write_text("".join(Path("scores.jsonl").read_text().splitlines(keepends=True)[:1]))
    assert main(words) == 0
    assert rows_of(Path("scores.jsonl")) == rows
    err = capsys.readouterr().err
    assert "going on from row 2" in err and f"1 pairs heard end to end by {model}, 1 of them from the cache" in err


def test_a_pair_is_shown_without_what_was_not_heard(slow: Slow, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "q1.wav", "a1.wav", "--judge", "e2e.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"overall {expected(slow, 'q1.wav', 'a1.wav'):.3g} ") and len(out.splitlines()) == 2
    assert main(["judge", "q1.wav", "a2.wav", "--judge", "e2e.yaml"]) == 0
    assert "(no speech)" in capsys.readouterr().out


def test_a_bench_whose_cascade_has_the_pocket_judges_ears(slow: Slow) -> None:
    Path("llm.py").write_text("import sys\nprint('answer to', sys.argv[1])\n")
    Path("tts.py").write_text(
        "import math, sys, wave\nout = wave.open(sys.argv[2], 'wb')\nout.setparams((1, 2, 16000, 0, 'NONE', ''))\n"
        "sound = (int(9000 * math.sin(i / 5)) for i in range(1000 + 10 * len(sys.argv[1])))\n"
        "out.writeframes(b''.join(x.to_bytes(2, 'little', signed=True) for x in sound))\n"
    )
    stages = [f"cascade.llm=cmd:{sys.executable} -IS llm.py {{text}}", f"cascade.tts=cmd:{sys.executable} -IS tts.py {{text}} {{answer}}"]
    assert main(["bench", "cascade", "topline", *stages, "limit=1", "draws=100", "judge=e2e.yaml"]) == 0
    rows = [json.loads(line) for line in Path("runs/bench/rows.jsonl").read_text().splitlines()]
    assert [row["system"] for row in rows] == ["cascade"] * 2 + ["topline"] * 2
    for row in rows:
        assert row["score"] == pytest.approx(expected(slow, row["query_audio"], row["answer_audio"]), abs=1e-4)
        assert row["written_text"] is None and row["heard_text"] == "(not transcribed)", "no word errors of what nobody wrote down"
    assert {audio_info(row["answer_audio"]).seconds for row in rows[:2]} == {(1000 + 10 * len("answer to 1000 samples")) / 16000}
    assert "end-to-end audio-lm qwen@" in Path("runs/bench/report.html").read_text()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kind: judge\nears: pocket/polytone\ne2e:\n  model: x\n", "e2e hears and scores by itself: leave out ears"),
        ("kind: judge\ne2e:\n  model: ./gone\n", "./gone is no folder; e2e.model"),
        ("kind: judge\ne2e:\n  modle: x\n", "did you mean e2e.model?"),
    ],
)
def test_a_recipe_that_is_at_fault(capsys: pytest.CaptureFixture[str], text: str, why: str) -> None:
    Path("e2e.yaml").write_text(text)
    assert main(["judge", "pairs.jsonl", "--judge", "e2e.yaml"]) == 2
    assert why in capsys.readouterr().err


def test_the_installed_recipe_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--check", "models/e2e"]) == 0
    assert main(["judge", "pairs.jsonl", "--judge", "models/e2e", "--dry-run"]) == 0
    assert "e2e:" in capsys.readouterr().out
