"""`paras2s judge` with models for its first two stages: small random checkpoints on real files; the score's server is a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paras2s_cli.audio.read import read_audio
from paras2s_cli.audio.write import write_wav
from paras2s_cli.judge import auto, backends
from paras2s_cli.judge.hearing.tone import AudioLMDescriber
from paras2s_cli.judge.hearing.whisper import WhisperTranscriber
from paras2s_cli.main import main
from paras2s_cli.recipe.judging import AudioLM, Whisper
from tests.checkpoint_qwen_audio import write_qwen_audio
from tests.checkpoint_whisper import write_whisper

sys.path.insert(0, str(Path(__file__).parents[1] / "judge" / "support"))

from chat_server import ChatServer, heard_in
from stand_in_judge import MAKER, rows_of

ROOT = Path(__file__).parents[2]
RATES = (16000, 8000, 44100)
"""Of the files, Hz."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_whisper(root / "whisper", seed=1)
    write_qwen_audio(root / "qwen")
    return root


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pairs of files in the working folder, of which the last answer is silent."""
    monkeypatch.setitem(backends.MAKERS, "pocket", MAKER)
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for place, rate in enumerate(RATES):
        for side, seconds in (("q", 0.6 + place), ("a", 1.4)):
            hertz = 150 + 130 * place + 300 * (side == "a")
            sound = np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate) * (0.2 + 0.05 * rng.random(int(seconds * rate)))
            write_wav(f"{side}{place}.wav", np.zeros(rate) if (side, place) == ("a", 2) else sound, rate)
    rows = [{"id": f"p{place}", "query": f"q{place}.wav", "answer": f"a{place}.wav"} for place in range(len(RATES))]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as running:
        yield running


def recipe(server: ChatServer, *sections: str) -> str:
    score = f"score:\n  base_url: {server.url}\n  model: tiny\n  key_env: ''\n"
    Path("judge.yaml").write_text("kind: judge\n" + "".join(section + "\n" for section in sections) + score)
    return "judge.yaml"


def whisper(models: Path) -> str:
    return f"transcribe:\n  backend: whisper\n  model: {models / 'whisper'}"


def qwen(models: Path) -> str:
    return f"tone:\n  backend: audio-lm\n  model: {models / 'qwen'}\n  query_tones: [happy, sad, flat]\n  answer_tones: [calm, cheerful]"


def test_a_manifest_is_heard_by_models(models: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--judge", recipe(server, whisper(models), qwen(models))]
    assert main(["judge", "pairs.jsonl", "-o", "scores.jsonl", *options]) == 0
    rows = rows_of(Path("scores.jsonl"))
    transcriber = WhisperTranscriber(Whisper(model=str(models / "whisper")))
    describer = AudioLMDescriber(
        AudioLM(model=str(models / "qwen"), query_tones=["happy", "sad", "flat"], answer_tones=["calm", "cheerful"])
    )
    for row in rows:
        for side, role, where in (("query", "query", "in"), ("answer", "answer", "out")):
            wave = read_audio(row[side])
            if not wave.any():
                continue
            heard, toned = transcriber.transcribe([wave])[0], describer.describe([wave], role)[0]
            assert row[f"content_{where}"] == heard.text != ""
            assert [word for word, *_ in row[f"times_{where}"]] == [span.text for span in heard.spans]
            assert row[f"tone_{where}"] == toned.in_words(role)
            assert row[f"tones_{where}"] == pytest.approx(toned.tones, abs=1e-3)
    assert len({row["content_in"] for row in rows}) == 3
    assert rows[0]["judge"]["listener"] == f"{transcriber.name} | {describer.name}"
    assert (rows[2]["score"], rows[2]["content_out"], rows[2]["tone_out"]) == (1, "", None), "silence"
    given = {a.words: heard_in(a.body) for a in server.arrivals}
    assert {row["content_in"]: row["content_out"] for row in rows[:2]} == {q: data["answer"]["words"] for q, data in given.items()}
    capsys.readouterr()
    assert main(["judge", "pairs.jsonl", *options]) == 0
    out, err = capsys.readouterr()
    assert rows_of(out) == rows
    assert "6 of 6 utterances from the cache" in err


def test_one_stage_by_a_model_and_the_other_by_the_ears(models: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "q0.wav", "a0.wav", "--output", "json", "--judge", recipe(server, "ears: pocket/polytone", whisper(models))]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["tone_out"].startswith("happy") and " samples" not in row["content_in"]
    assert row["judge"]["listener"].startswith("whisper ") and row["judge"]["listener"].endswith(" | ears/1")
    assert main(["judge", "q0.wav", "a0.wav", "--output", "json", "--judge", recipe(server, "ears: pocket/polytone", qwen(models))]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["content_in"] == "9600 samples" and set(row["tones_out"]) == {"calm", "cheerful"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kind: judge\n", "name both transcribe and tone, or ears"),
        ("kind: judge\nears: pocket/polytone\ntranscribe:\n  model: x\n", "name score"),
        ("kind: judge\nears: pocket/polytone\ntone:\n  model: x\n  query_tones: [sad, very very sad]\n", "one or two words each"),
        ("kind: judge\nears: pocket/polytone\ntone:\n  modle: x\n", "did you mean tone.model?"),
    ],
)
def test_a_recipe_that_is_at_fault(capsys: pytest.CaptureFixture[str], text: str, why: str) -> None:
    Path("judge.yaml").write_text(text)
    assert main(["judge", "pairs.jsonl", "--judge", "judge.yaml"]) == 2
    assert why in capsys.readouterr().err


def test_the_recipe_of_models_is_sound() -> None:
    assert main(["recipes", "--check", "models/judge"]) == 0


def test_auto_takes_the_models_that_are_here(
    models: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(auto.FOLDER, str(models))
    monkeypatch.setenv(auto.URL, server.url)
    monkeypatch.setenv(auto.NAME, "tiny")
    monkeypatch.setattr(auto, "MODELS", {"transcribe": ("hub/whisper",), "tone": ("hub/qwen",), "score": ()})
    assert main(["judge", "q0.wav", "a0.wav", "--output", "json"]) == 0
    out, err = capsys.readouterr()
    row = json.loads(out)
    assert row["judge"]["listener"].startswith("whisper whisper@") and row["judge"]["scorer"].startswith("endpoint tiny")
    assert f"paras2s: judge auto: transcribe by hub/whisper, tone by hub/qwen, score by tiny at {server.url}\n" in err


def test_the_pocket_judge_loads_no_library_of_models_or_ranks() -> None:
    program = (
        "import sys\nfrom paras2s_cli.recipe.load import load_recipe\nfrom paras2s_cli.recipe.judging import JudgeRecipe\n"
        "import paras2s_cli.judge.run, paras2s_cli.train.polytone, paras2s_cli.pocket.embedded\n"
        "from paras2s_cli.judge.backends import assemble_judge, MAKERS\nfrom paras2s_cli.judge.endpoint.asking import Asking\n"
        f"sys.path.insert(0, {str(ROOT / 'tests' / 'judge' / 'support')!r})\nMAKERS['pocket'] = {MAKER!r}\n"
        "assemble_judge(load_recipe('pocket', [], JudgeRecipe), print, None, Asking())\n"
        "assert not {'transformers', 'peft', 'torch.distributed.fsdp', 'torch.distributed.tensor'} & set(sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
