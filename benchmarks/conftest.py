"""What pytest-benchmark does not see to: runs that gpu.sh ends as they take too long, and the versions of what is measured."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest

PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "flash-attn")


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_generate_json(benchmarks: list[Any]) -> None:
    """One that was interrupted before its first round has no numbers, and would be the end of the report of all others."""
    benchmarks[:] = [bench for bench in benchmarks if bench]


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Versions of the packages that are there."""
    machine_info["packages"] = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            machine_info["packages"][name] = version(name)
