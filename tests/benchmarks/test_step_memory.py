"""The two ways of `step_memory.py` compute the same step."""

from __future__ import annotations

import pytest

from benchmarks.step_memory import measure
from paras2s_cli.train import policy


def test_both_ways_have_one_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = measure("fused", 64, 8, 10)
    own = policy.score
    monkeypatch.setattr(policy, "score", own)  # which the plain way replaces
    plain = measure("plain", 64, 8, 10)
    assert policy.score is not own
    assert fused["loss"] == pytest.approx(plain["loss"], abs=1e-5) and min(fused["tensors"], plain["tensors"]) > 0.5
