"""`paras2s doctor`: what is there, what is not, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paras2s_cli import machine
from paras2s_cli.main import main


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_json_has_every_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "clip").write_bytes(bytes(3 << 20))
    assert main(["doctor", "--output", "json"]) == 0
    found = rows(capsys)
    assert {"python", "torch", "bf16 on the CPU", "triton", "flash-attn", "espeakng-loader"} <= found.keys()
    assert "by transformers' forward" in found["Qwen2.5-Omni"]["detail"]
    assert found["cache"]["detail"] == f"{tmp_path / 'cache'}, 3 MiB"
    assert any(name.startswith("GPU") for name in found)
    assert any(name.startswith("kernel") for name in found)
    assert {row["status"] for row in found.values()} <= {"ok", "absent"}
    assert all(row["way_out"] for row in found.values() if row["name"] in ("flash-attn", "matplotlib") and row["status"] == "absent")


def test_what_is_required_and_missing_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = machine.installed
    monkeypatch.setattr(machine, "installed", lambda name: None if name == "soxr" else real(name))
    assert main(["doctor", "--output", "json"]) == 1
    assert rows(capsys)["soxr"] == {
        "name": "soxr",
        "status": "missing",
        "detail": "not installed",
        "way_out": "pip install soxr",
    }


def test_an_absent_extra_does_not_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = machine.installed
    monkeypatch.setattr(machine, "installed", lambda name: None if name == "pocketsphinx" else real(name))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("pocketsphinx"))
    assert "absent" in line


def test_a_cache_that_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")  # a file where the folder should be: not writable even for root
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path / "file"))
    assert main(["doctor", "--output", "json"]) == 1
    assert rows(capsys)["cache"]["status"] == "missing"
