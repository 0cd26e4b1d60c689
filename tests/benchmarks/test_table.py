"""The table of benchmarks: percentiles, ratios to ours, rates and shares of the measured roof, by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.table import lines_of, rows_of, versions_of

TABLE = Path(__file__).parents[2] / "benchmarks" / "table.py"


def bench(variant: str, seconds: float, group: str | None = "8x10", **extra: object) -> dict:
    data = [seconds * (0.5 + i / 10) for i in range(11)]  # its median is `seconds`
    return {"name": f"test_it[{variant}]", "group": group, "params": {"variant": variant}, "stats": {"data": data}, "extra_info": extra}


REPORT = {
    "benchmarks": [
        bench("peer", 3e-3, bytes=4e6, flops=8e9),
        bench("ours", 1e-3, bytes=4e6, flops=8e9),
        bench("copy", 1e-3, "roof", roof="memory", bytes=8e6),
        bench("product", 1e-3, "roof", roof="compute", flops=32e9),
    ]
}


def test_lines_by_hand() -> None:
    lines = lines_of(rows_of(REPORT))
    assert lines[0] == ["8x10", "ours", "0.700", "1.000", "1.300", "", "4 GB/s 8 TFLOP/s", "50% 25%"]
    assert lines[1] == ["8x10", "peer", "2.100", "3.000", "3.900", "3.00", "1.33 GB/s 2.67 TFLOP/s", "17% 8%"]
    assert [line[:2] for line in lines[2:]] == [["roof", "copy"], ["roof", "product"]] and not any(line[5] or line[7] for line in lines[2:])


def test_phases_have_a_roof_each() -> None:
    """The copy moves 8 GB/s, the product computes 32 TFLOP/s: .2 ms of moving, .5 ms of computing."""
    whole = bench("engine", 1e-3, tokens=50, phases=[[1.6e6, 32e5], [8e4, 16e9]])
    (line, *_) = lines_of(rows_of({"benchmarks": [whole, *REPORT["benchmarks"][2:]]}))
    assert line[6:] == ["50000 tokens/s", "70%"]


def test_groups_without_a_name_are_those_of_the_other_parameters() -> None:
    some = [bench("engine", 1e-3, None), bench("loop", 2e-3, None)]
    for one, name, size in zip(some, ("engine", "loop"), (8, 8), strict=True):
        one["params"] = {"name": name, "prompts": size}
    assert [[*line[:2], line[5]] for line in lines_of(rows_of({"benchmarks": some}))] == [["it 8", "engine", ""], ["it 8", "loop", "2.00"]]


def test_versions_of_packages() -> None:
    assert versions_of({**REPORT, "machine_info": {"packages": {"torch": "2.13.0", "triton": "3.6.0"}}}) == "torch 2.13.0, triton 3.6.0"
    assert versions_of(REPORT) == ""


def test_rounds_must_be_there() -> None:
    with pytest.raises(ValueError, match=r"test_it\[ours\].*--benchmark-save-data"):
        rows_of({"benchmarks": [{**bench("ours", 1.0), "stats": {}}]})


def test_it_runs_and_bad_files_are_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "a.json", tmp_path / "b.json"
    good.write_text(json.dumps(REPORT))
    bad.write_text("{")
    ran = subprocess.run([sys.executable, TABLE, good], capture_output=True, text=True, check=True)
    assert "TFLOP/s" in ran.stdout and "3.00" in ran.stdout
    for path in (bad, tmp_path / "none.json"):
        failed = subprocess.run([sys.executable, TABLE, path], capture_output=True, text=True)
        assert failed.returncode == 2 and str(path) in failed.stderr and "Traceback" not in failed.stderr
