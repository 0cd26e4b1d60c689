from __future__ import annotations

from pathlib import Path

import pytest
from own_process import run_cases

HERE = Path(__file__).parent


def test_interpreter() -> None:
    assert run_cases(HERE / "interpreter/case_varlen_attention_backward.py") >= 16


@pytest.mark.slow
def test_planted_bugs_are_caught() -> None:
    assert run_cases(HERE / "interpreter/case_varlen_attention_backward_bugs.py") >= 45
