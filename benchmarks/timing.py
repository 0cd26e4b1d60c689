"""How long a call takes on a GPU: without the host's share where a step is replayed anyway, and with inputs that no cache holds."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

CUDA = torch.cuda.is_available()
COLD = 200 << 20
"""Bytes of inputs after which the first are in no cache: four times the L2 of an H200."""
MOST = 32
"""Sets of inputs at most."""
ROUND = 2e-3
"""Seconds that a round takes at least, of which launching it and waiting for it are then a hundredth."""


def sets_for(size: int) -> int:
    """How many inputs of `size` bytes take turns."""
    return min(MOST, -(-COLD // size)) if CUDA else 1


def measure(benchmark: Any, calls: Sequence[Callable[[], object]], rounds: int, graph: bool = False) -> None:
    """Times one of `calls`, which do the same to inputs of their own. graph: replayed, as the decode step is; else launched one by one."""
    if not CUDA:
        benchmark.pedantic(calls[0], rounds=rounds, warmup_rounds=3)
        return

    def each() -> None:
        for call in calls:
            call()

    together = _recorded(each) if graph else each
    one, count = in_turn(together, torch.cuda.synchronize, len(calls), math.ceil(ROUND / _seconds(together)))
    benchmark.pedantic(one, rounds=rounds, warmup_rounds=2, iterations=count)


def in_turn(together: Callable[[], object], wait: Callable[[], object], calls: int, times: int) -> tuple[Callable[[], None], int]:
    """(function, count): what is called `count` times makes all `calls`, `times` times over, and waits for them once at the end."""
    count, turn = calls * times, itertools.count()

    def one() -> None:
        place = next(turn) % count
        if place % calls == 0:
            together()
        if place == count - 1:
            wait()

    return one, count


def _seconds(work: Callable[[], object]) -> float:
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def _recorded(work: Callable[[], object]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # what is compiled and what takes a workspace does so before anything is recorded
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
