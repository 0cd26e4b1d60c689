"""Every kernel compiled for three GPUs that are not there: the files in aot/, in processes of their own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from own_process import run_cases

FOLDER = Path(__file__).parent / "aot"
QUICK = {
    "token_logprob": 60,
    "grpo_loss": 30,
    "linear_logprob": 20,
    "sample_logprob": 20,
    "shared_prefix_attention": 25,
    "varlen_attention": 12,
    "as_launched": 2,
}
"""File -> how many cases it has at least."""
SLOW = {"varlen_attention_others": 12}

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
