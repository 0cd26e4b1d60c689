"""Training on manifests of one's own: what they give, what they refuse, and that no embedded world is made for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from paras2s_cli.data import worlds
from paras2s_cli.errors import UsageError
from paras2s_cli.main import main
from paras2s_cli.train.metrics import read_metrics
from paras2s_cli.train.own_data import read_demonstrations, read_queries
from tests.checkpoint_qwen_audio import QWEN_AUDIO, write_qwen_audio
from tests.checkpoint_whisper import WHISPER, write_whisper
from tests.checkpoints import write_kimi_audio_that_hears
from tests.conftest import Speak
from tests.judge_lm import JUDGE_LM, write_judge_lm
from tests.voice_checkpoint import write_voice


def manifest(folder: Path, name: str, rows: list[dict]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


@pytest.fixture
def sounds(tmp_path: Path, speak: Speak) -> Path:
    for i, text in enumerate(("the museum opens", "it is late", "come with us", "the party was loud")):
        soundfile.write(tmp_path / f"{i}.wav", speak(text, "assistant", "calm"), 16000)
    return tmp_path


def test_a_share_is_kept_to_measure_on_and_the_seed_says_which(sounds: Path) -> None:
    rows = [{"query": f"{i}.wav", "audio": f"{(i + 1) % 4}.wav", "text": f"answer {i}"} for i in range(4)]
    path = manifest(sounds, "demonstrations.jsonl", rows)
    learnt, held = read_demonstrations(path, 0.25, 1)
    assert len(learnt) == 3 and len(held) == 1
    assert sorted(d.text for d in [*learnt, *held]) == [f"answer {i}" for i in range(4)]
    assert all(d.query.path.name == f"{d.text[-1]}.wav" and d.answer is not None and d.answer.path != d.query.path for d in learnt)
    assert [d.text for d in read_demonstrations(path, 0.25, 1)[1]] == [held[0].text]
    assert {read_demonstrations(path, 0.25, seed)[1][0].text for seed in range(8)} != {held[0].text}


def test_a_base_that_is_not_there_is_told_before_anything_is_made(
    sounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a judge of the world is made")

    monkeypatch.setattr("paras2s_cli.train.align.load_listener", never)
    words = ["sft.base.folder=nowhere", f"queries={manifest(sounds, 'queries.jsonl', [{'id': '0', 'audio': '0.wav'}])}"]
    assert main(["align", "kimi-audio-7b", *words, "--no-bench", "-o", str(sounds / "run")]) == 2
    assert "nowhere is neither a folder nor a model that the hub gives" in capsys.readouterr().err


def test_queries_of_other_splits_are_not_trained_on(sounds: Path) -> None:
    rows = [{"id": str(i), "audio": f"{i}.wav", "split": split, "requirement": "be kind"} for i, split in enumerate(("train", "test"))]
    (query,) = read_queries(manifest(sounds, "queries.jsonl", rows))
    assert query.id == "0" and query.row["requirement"] == "be kind" and query.path.name == "0.wav"


def test_what_is_refused(sounds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="holds 1 demonstrations"):
        read_demonstrations(manifest(sounds, "one.jsonl", [{"query": "0.wav", "audio": "1.wav", "text": "so"}]), 0.1, 1)
    with pytest.raises(UsageError, match="no queries to train on"):
        read_queries(manifest(sounds, "tests.jsonl", [{"id": "a", "audio": "0.wav", "split": "test"}]))
    with pytest.raises(UsageError, match="the id 'a' is there 2 times"):
        read_queries(manifest(sounds, "twice.jsonl", [{"id": "a", "audio": f"{i}.wav"} for i in range(2)]))
    assert main(["sft", "pocket", f"data={sounds / 'one.jsonl'}", "--dry-run"]) == 2
    assert "for a base that hears recordings" in capsys.readouterr().err


@pytest.mark.slow
def test_kimi_audio_is_aligned_and_measured_on_own_data_by_own_judge(
    sounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(worlds.MAKERS, "pocket", "nowhere:load")
    monkeypatch.chdir(sounds)
    kimi = write_kimi_audio_that_hears(sounds)
    write_voice(kimi)
    write_whisper(sounds / WHISPER)
    write_qwen_audio(sounds / QWEN_AUDIO)
    write_judge_lm(sounds / JUDGE_LM)
    (sounds / "judge.yaml").write_text(
        f"kind: judge\ntranscribe: {{model: {sounds / WHISPER}}}\ntone: {{backend: audio-lm, model: {sounds / QWEN_AUDIO}}}\n"
        f"score: {{backend: local, model: {sounds / JUDGE_LM}, floor: 0}}\n"
    )
    data = manifest(sounds, "demonstrations.jsonl", [{"query": f"{i}.wav", "audio": f"{i - 1}.wav", "text": "so it is"} for i in (1, 2, 3)])
    queries = manifest(sounds, "queries.jsonl", [{"id": str(i), "audio": f"{i}.wav"} for i in range(4)])
    small = "{audio_lm: null, answers: 8, digits: {steps: 1, lr: 0.1}, train: {steps: 1, lr: 0.1}}"
    few = ["sft.train.steps=2", "sft.train.batch=2", "sft.evaluate_every=2", "sft.checkpointing=false", f"reward={small}"]
    few += ["grpo.prompts=2", "grpo.group=2", "grpo.limit=16", "grpo.lora.r=2", "grpo.train.steps=2", "grpo.train.precision=fp32"]
    few += ["grpo.judge_every=1", "bench.draws=100", "bench.answer_limit=16"]
    words = [f"sft.base.folder={kimi}", f"sft.data={data}", f"queries={queries}", f"bench.queries={queries}"]
    words += ["judged_by=judge.yaml", "bench.judge=judge.yaml", "threads=1"]
    assert main(["align", "kimi-audio-7b", *words, *few, "--out", "run"]) == 0, capsys.readouterr().err
    rows = read_metrics(sounds / "run" / "grpo" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and all(1 <= row["reward"] <= 5 for row in rows)
    measured = [json.loads(line) for line in (sounds / "run" / "bench" / "rows.jsonl").read_text().splitlines()]
    assert {row["system"] for row in measured} == {"base", "sft", "aligned"} and {row["mode"] for row in measured} == {"as usual"}
    assert all(row["truth"] is None for row in measured)
