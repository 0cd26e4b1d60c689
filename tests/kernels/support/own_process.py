"""Runs files of cases in a pytest of their own: TRITON_INTERPRET changes `@triton.jit` at import."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path


def run_cases(folder: Path, names: Iterable[str]) -> dict[str, Counter[str]]:
    """Outcomes of `folder`/case_<name>.py for every name, all in one process: {name: {"passed": count, what did not pass: 1, ...}}.

    Those in a folder `interpreter` run in Triton's. AssertionError with the output where pytest itself fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        done = _run([folder / f"case_{name}.py" for name in names], folder.name == "interpreter", report)
        assert done.returncode in (0, 1) and report.exists(), f"pytest failed in its own process:\n{done.stdout}{done.stderr}"
        return _outcomes(ElementTree.parse(report))


def _outcomes(report: ElementTree.ElementTree) -> dict[str, Counter[str]]:
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for case in report.iter("testcase"):
        fault = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
        name = (case.get("classname") or case.get("name", "")).rpartition("case_")[2]
        outcome = "passed" if fault is None else f"{fault.tag}: {case.get('name')}: {fault.get('message')}\n{fault.text}"
        found[name][outcome] += 1
    return dict(found)


def _run(files: list[Path], interpreted: bool, report: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PARAS2S_KERNELS")}
    environment |= {
        "TRITON_INTERPRET": str(int(interpreted)),
        "TRITON_CACHE_DIR": str(report.parent / "triton"),  # an empty cache: the compiler really runs
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", *map(str, files), "-q", "-p", "no:cacheprovider", "--no-header", f"--junitxml={report}"]
    # numpy warns of the -inf - -inf that the kernels mask: no error here, whatever the project's setting
    command += ["-o", "addopts=", "-W", "default", "--import-mode=importlib"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
