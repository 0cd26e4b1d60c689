"""metrics.jsonl: a line a step, each step once, also after a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from paras2s_cli.data.atomic import write_bytes
from paras2s_cli.data.manifest import JsonlWriter, drop_torn_line


class MetricsLog:
    """Appends metrics to `path`. On opening, lines after `resumed_step` are dropped: those steps will be done
    again.

    Write a step's line before its checkpoint is saved, so that a resumed run has every line up to its step. A
    fresh run has `resumed_step` 0. A context manager. Raises UsageError if the file cannot be written.
    """

    def __init__(self, path: Path, resumed_step: int = 0) -> None:
        if path.exists():
            drop_torn_line(path)
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if _step(line) <= resumed_step]
            if len(kept) < len(lines):
                write_bytes(path, b"".join(kept))
        self._writer = JsonlWriter(path)

    def write(self, step: int, **values: Any) -> None:
        """One line `{"step": step, ...}`, flushed; numpy and torch scalars become numbers, NaN and infinity
        null.
        """
        self._writer.write({"step": step, **{name: _finite(value) for name, value in values.items()}})

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl, in order; a torn last line is left out."""
    return [row for line in path.read_bytes().splitlines() if (row := _row(line)) is not None]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _step(line: bytes) -> float:
    step = (_row(line) or {}).get("step")
    return step if isinstance(step, int) else math.inf
