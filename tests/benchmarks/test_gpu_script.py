"""gpu.sh leaves a report of what was measured, whatever became of the rest. A stand-in for the interpreter measures nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.conftest import pytest_benchmark_generate_json

ROOT = Path(__file__).parents[2]
ROUNDS = {"stats": {"data": [1e-3]}, "params": {"variant": "ours"}, "extra_info": {}}
# the first question is for a GPU; a bench leaves its report, half a report or none
PYTHON = f"""#!/bin/sh
test "$1" != -c || exit 0
test "$1" = -m || exec {sys.executable} "$@"
for word; do
  case $word in
    --benchmark-json=*roof.json) echo '{json.dumps({"benchmarks": [{"name": "test_roof", **ROUNDS}]})}' >"${{word#*=}}" ;;
    --benchmark-json=*engine.json) echo '{json.dumps({"benchmarks": [{"name": "test_engine", **ROUNDS}]})}' >"${{word#*=}}"; exit 1 ;;
    --benchmark-json=*token_logprob.json) echo '{{"benchmarks": [{{"na' >"${{word#*=}}"; exit 1 ;;
    --benchmark-json=*) exit 1 ;;
  esac
done
"""


def run(out: Path, python: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": str(python)}
    return subprocess.run(["sh", "benchmarks/gpu.sh", out], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_parts_that_fail_are_missing_and_no_more(tmp_path: Path) -> None:
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(PYTHON)
    python.chmod(0o755)
    out.mkdir()
    (out / "varlen_attention.json").write_text(json.dumps({"benchmarks": [{"name": "test_of_another_day", **ROUNDS}]}))
    done = run(out, python)
    assert done.returncode == 1 and "token_logprob.json was cut off" in done.stdout
    assert [bench["name"] for bench in json.loads((out / "bench.json").read_text())["benchmarks"]] == ["test_engine", "test_roof"]
    table = (out / "table.txt").read_text()
    assert "roof" in table and "engine" in table and "another_day" not in table


def test_a_bench_without_numbers_is_not_written_down() -> None:
    """pytest-benchmark has them as empty and asks for their least round."""
    benches: list[list[float]] = [[1.0], [], [2.0]]
    pytest_benchmark_generate_json(benches)
    assert benches == [[1.0], [2.0]]
