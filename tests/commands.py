"""The real command in a process of its own, and overrides that make a run as small as it can be."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

TINY = [
    "sft.base.train.steps=3",
    "sft.train.steps=4",
    "sft.evaluate_every=4",
    "sft.demonstrations.count=24",
    "reward.answers=24",
    "reward.train.steps=3",
    "reward.train.batch=16",
    "reward.digits.steps=3",
    "reward.held_out=12",
    "reward.floor=-1",
    "grpo.train.steps=6",
    "grpo.prompts=2",
    "grpo.group=3",
    "grpo.limit=24",
    "grpo.judge_every=2",
    "grpo.judge_answers=3",
    "grpo.refit_below=1.0",
    "grpo.refit_steps=2",
    "bench.limit=4",
    "bench.draws=100",
    "bench.players=2",
]
"""Nothing is learnt in so few steps: for tests of the plumbing."""


def command(*words: str) -> list[str]:
    """A paras2s command line as the words of a process."""
    return [sys.executable, "-m", "paras2s_cli", *words]


def environment() -> dict[str, str]:
    """This process's environment, with the package in reach."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths}


def run(cwd: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder and checks its exit code."""
    done = subprocess.run(command(*words), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == code, f"{words}: {done.stderr[-3000:]}"
    return done
