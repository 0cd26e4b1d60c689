"""Each step once, whatever was killed where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from paras2s_cli.train.metrics import MetricsLog, read_metrics


def steps(path: Path) -> list[int]:
    return [row["step"] for row in read_metrics(path)]


def test_values(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.write(1, loss=np.float32(0.5), kl=torch.tensor(2), bad=float("nan"), per={"a": [float("inf"), 1.0]})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5, "kl": 2, "bad": None, "per": {"a": [None, 1.0]}}]


def test_resume_drops_what_comes_after(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 6):
            log.write(step, loss=1.0)
    with open(path, "ab") as file:
        file.write(b'{"step": 6, "lo')
    assert steps(path) == [1, 2, 3, 4, 5]
    with MetricsLog(path, resumed_step=3) as log:
        assert steps(path) == [1, 2, 3]
        log.write(4, loss=2.0)
    assert steps(path) == [1, 2, 3, 4] and read_metrics(path)[3]["loss"] == 2.0
    MetricsLog(path).close()
    assert steps(path) == []


def test_nothing_to_drop_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1,  "x":2}')
    MetricsLog(path, resumed_step=1).close()
    assert path.read_bytes() == b'{"step":1,  "x":2}\n'
