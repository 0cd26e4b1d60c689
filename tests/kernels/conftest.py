"""Support modules by plain name, and the marker of the cases that need a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "support"))

_FOLDERS = {"test_interpreter": "interpreter", "test_ahead_of_time": "aot"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA GPU; skipped where there is none")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Those in processes of their own first, so that nothing else runs beside them.
    places = [i for i, item in enumerate(items) if item.path.parent == HERE]
    mine = sorted((items[i] for i in places), key=lambda item: item.name not in _FOLDERS)
    for i, item in zip(places, mine, strict=True):
        items[i] = item
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))


def pytest_collection_finish(session: pytest.Session) -> None:
    from own_process import expect

    mine = [item for item in session.items if item.path.parent == HERE and item.name in _FOLDERS]
    expect(HERE / _FOLDERS[item.name] / f"case_{item.path.stem.removeprefix('test_')}.py" for item in mine)
