"""Runs a file of cases in a pytest of its own: TRITON_INTERPRET changes `@triton.jit` at import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def run_cases(case_file: Path, scratch: Path, *, interpret: bool) -> int:
    """How many cases passed; AssertionError with the output unless all did and none was left out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PARAS2S_KERNELS")}
    environment |= {
        "TRITON_INTERPRET": "1" if interpret else "0",
        "TRITON_CACHE_DIR": str(scratch),  # an empty cache: the compiler really runs
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
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    output = done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed, f"{case_file.name} failed in its own process:\n{output}"
    assert not re.search(r"\d+ (skipped|xfailed|deselected)", done.stdout), f"{case_file.name} left cases out:\n{output}"
    return int(passed[1])
