"""Launches that do not happen: which grids a kernel's host code asks for."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest


def record_grids(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *kernels: str) -> list[tuple[int, ...]]:
    """The list that every grid is added to, in the order of the launches of these kernels of `module`; nothing is launched."""
    grids: list[tuple[int, ...]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            grids.append(grid)
            return lambda *arguments, **options: None

    for kernel in kernels:
        monkeypatch.setattr(module, kernel, Recorder())
    return grids
