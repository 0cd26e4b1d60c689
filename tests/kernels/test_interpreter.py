"""Every kernel's numbers, in Triton's interpreter, and its planted bugs: the files in interpreter/, in processes of their own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from own_process import run_cases

FOLDER = Path(__file__).parent / "interpreter"
QUICK = {
    "token_logprob": 60,
    "grpo_loss": 96,
    "linear_logprob": 70,
    "sample_logprob": 75,
    "shared_prefix_attention": 60,
    "varlen_attention": 58,
    "varlen_attention_backward": 16,
}
"""File -> how many cases it has at least."""
SLOW = {"sample_logprob_rows": 1, "varlen_attention_backward_bugs": 45}

Outcomes = dict[str, Counter[str]]


@pytest.fixture(scope="module")
def quick() -> Outcomes:
    return run_cases(FOLDER, QUICK)


@pytest.fixture(scope="module")
def slow() -> Outcomes:
    return run_cases(FOLDER, SLOW)


@pytest.mark.parametrize("name", QUICK)
def test_every_case_passes(name: str, quick: Outcomes) -> None:
    assert quick[name].keys() == {"passed"} and quick[name]["passed"] >= QUICK[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_slow_case_passes(name: str, slow: Outcomes) -> None:
    assert slow[name].keys() == {"passed"} and slow[name]["passed"] >= SLOW[name]


def test_every_file_is_run() -> None:
    assert {file.stem.removeprefix("case_") for file in FOLDER.glob("case_*.py")} == QUICK.keys() | SLOW.keys()
