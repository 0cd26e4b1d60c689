"""What this device can do at best, in the same run as the rest: a copy for what is bound by memory, a product for what is bound by FLOPs.

    pytest benchmarks/bench_roof.py --benchmark-only

`table.py` takes the shares of the roof from these two, so that they hold for the device as it is, not for its data sheet.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.timing import CUDA, measure

DEVICE = "cuda" if CUDA else "cpu"
COPIED = 2**30 if CUDA else 2**27  # bytes; far beyond any cache
SIDE = 8192 if CUDA else 2048


def _measure(benchmark: pytest.FixtureRequest, name: str, call, **counted: int) -> None:  # type: ignore[no-untyped-def]
    benchmark.group = "roof"  # type: ignore[attr-defined]
    benchmark.extra_info.update(roof=name, device=torch.cuda.get_device_name() if CUDA else "cpu", torch=torch.__version__, **counted)  # type: ignore[attr-defined]
    measure(benchmark, [call], rounds=20)


def test_copy(benchmark: pytest.FixtureRequest) -> None:
    source = torch.empty(COPIED // 4, device=DEVICE).normal_()
    target = torch.empty_like(source)
    _measure(benchmark, "memory", lambda: target.copy_(source), bytes=2 * COPIED)


def test_product_bf16(benchmark: pytest.FixtureRequest) -> None:
    a, b = (torch.randn(SIDE, SIDE, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    _measure(benchmark, "compute", lambda: torch.mm(a, b, out=out), flops=2 * SIDE**3)
