"""Runs files of cases in pytests of their own: TRITON_INTERPRET changes `@triton.jit` at import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def run_cases(case_file: Path) -> int:
    """How many cases passed; AssertionError with the output unless all did and none was left out. Those in a folder `interpreter` run in
    Triton's."""
    done = _run(case_file)
    output = done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed, f"{case_file.name} failed in its own process:\n{output}"
    assert not re.search(r"\d+ (skipped|xfailed|deselected)", done.stdout), f"{case_file.name} left cases out:\n{output}"
    return int(passed[1])


def _run(case_file: Path) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as scratch:
        return _run_in(case_file, scratch)


def _run_in(case_file: Path, scratch: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PARAS2S_KERNELS")}
    environment |= {
        "TRITON_INTERPRET": str(int(case_file.parent.name == "interpreter")),
        "TRITON_CACHE_DIR": scratch,  # an empty cache: the compiler really runs
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(case_file),
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "--no-header",
    ]
    # numpy warns of the -inf - -inf that the kernels mask: no error here, whatever the project's setting
    command += ["-o", "addopts=", "-W", "default", "--import-mode=importlib"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
