"""Compiles kernels as their host code launches them, for a GPU that is not there: what Triton makes of the arguments is part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class _NoGPU:
    """What a launch asks of the driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def compiled_only() -> Iterator[dict[str, list[Any]]]:
    """Launches inside the block are compiled for sm_90 and go no further: {kernel: what was compiled, each once}."""
    built: dict[str, list[Any]] = {}
    active, run = driver._active, JITFunction.run

    def compile_only(function: Any, *arguments: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> Any:
        kernel = run(function, *arguments, grid=grid, warmup=True, **options)
        known = built.setdefault(function.fn.__name__, [])
        if not any(kernel is other for other in known):
            known.append(kernel)
        return kernel

    driver._active, JITFunction.run = _NoGPU(), compile_only
    try:
        yield built
    finally:
        driver._active, JITFunction.run = active, run
