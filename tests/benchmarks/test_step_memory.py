"""The two ways of `step_memory.py` compute the same step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, environment


def alone(way: str, folder: Path) -> dict[str, float]:
    words = ["--alone", way, "10", "--codes", "64", "--answers", "8"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "step_memory.py", *words], cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_both_ways_have_one_loss(tmp_path: Path) -> None:
    fused, plain = alone("fused", tmp_path), alone("plain", tmp_path)
    assert fused["loss"] == pytest.approx(plain["loss"], abs=1e-5) and min(fused["tensors"], plain["tensors"]) > 1
