"""A small random judge, written in the layout of the published checkpoints and loaded as a user's is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from paras2s_cli.judge.local.load import load_lm
from paras2s_cli.judge.local.scorer import LocalScorer
from paras2s_cli.recipe.judging import LocalLM
from tests.judge_lm import write_judge_lm

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "support"))


@pytest.fixture(scope="session")
def judge_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judge_lm(tmp_path_factory.mktemp("judge_lm"))


@pytest.fixture(scope="session")
def scorer(judge_lm: Path) -> LocalScorer:
    """One that reads at most 500 tokens of pairs in a forward."""
    settings = LocalLM(backend="local", model=str(judge_lm), tokens=500)
    return LocalScorer(settings, *load_lm(settings))
