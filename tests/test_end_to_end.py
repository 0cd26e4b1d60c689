"""The real commands in processes of their own, on the real world and judge, at the smallest size."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from paras2s_cli.main import main
from tests.commands import TINY, command, environment, run

pytestmark = pytest.mark.slow


def lines_of(path: Path) -> list[dict]:
    """Metrics without what differs between runs: times, and where a wave was cached."""
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, pocket_judge: object) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, "align", "pocket", *TINY)
    return folder


def test_align_makes_every_stage_and_a_report(unbroken: Path) -> None:
    out = unbroken / "runs" / "pocket"
    for stage in ("sft", "reward", "grpo"):
        assert (out / stage / "model" / "COMPLETE").exists()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (out / "grpo" / "model" / name).exists()
    rows = [json.loads(line) for line in (out / "bench" / "rows.jsonl").read_text().splitlines()]
    assert {r["system"] for r in rows} == {"base", "sft", "aligned", "cascade", "topline"}
    topline = [r["score"] for r in rows if r["system"] == "topline" and r["score"] is not None]
    assert sum(topline) / len(topline) > 4.5
    page = (out / "bench" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "data:audio/" in page
    monitors = {"reward", "reward_deviation", "kl_text", "kl_audio", "entropy_text", "entropy_audio", "clipped_audio", "codes", "silent"}
    metrics = lines_of(out / "grpo" / "metrics.jsonl")
    assert [m["step"] for m in metrics] == list(range(1, 7)) and monitors <= metrics[0].keys()
    assert {"judge_score", "judge_gap", "judge_pearson", "text_heard"} <= metrics[1].keys()


def test_a_second_run_makes_nothing_again(unbroken: Path) -> None:
    said = run(unbroken, "align", "pocket", *TINY, "--no-bench").stderr
    assert "not there" not in said and "not in the cache" not in said


def test_a_killed_run_ends_with_the_same_losses(unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken / "runs", tmp_path / "runs", ignore=lambda folder, _: ["grpo", "bench"] if folder.endswith("pocket") else [])
    process = subprocess.Popen(
        command("align", "pocket", *TINY, "--no-bench"), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "runs" / "pocket" / "grpo" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = run(tmp_path, "align", "pocket", *TINY, "--no-bench").stderr
    assert "resuming grpo after step" in said
    assert lines_of(metrics) == lines_of(unbroken / "runs" / "pocket" / "grpo" / "metrics.jsonl")


def test_another_recipe_does_not_take_over_a_run(
    unbroken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(unbroken)
    assert main(["align", "pocket", "seed=7"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and "seed" in said


def test_bench_measures_a_finished_run(unbroken: Path) -> None:
    done = run(unbroken, "bench", "topline", "cascade", "split=validation", "limit=6", "draws=100", "--out", "measured")
    assert "topline" in done.stdout and (unbroken / "measured" / "rows.jsonl").exists()


def test_bench_without_a_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "sft"]) == 2 and "paras2s align" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_dry_runs_write_nothing(tmp_path: Path) -> None:
    assert "# grpo" in run(tmp_path, "align", "--dry-run").stdout
    assert "train" in run(tmp_path, "sft", "pocket", "--dry-run").stdout
    assert not list(tmp_path.iterdir())
