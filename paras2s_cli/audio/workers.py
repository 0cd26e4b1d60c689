"""Processes for work that holds Python's lock: WORLD's analysis and synthesis do."""

import atexit
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

_pools: dict[int, ProcessPoolExecutor] = {}
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def map_in_workers(function: Callable[[Any], Any], items: Sequence[Any], workers: int, chunk: int = 8) -> list[Any]:
    """`[function(item) for item in items]`, in order, on `workers` processes that stay for the next call.

    `function` and the items must pickle, and its module should import little. One worker, or few items, need no process.
    """
    workers = threads_of(workers)
    if workers < 2 or len(items) < 2 * chunk:
        return [function(item) for item in items]
    if workers not in _pools:
        with single_threaded():
            _pools[workers] = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)
            list(_pools[workers].map(_started, range(workers)))  # start under this environment
    return list(_pools[workers].map(function, items, chunksize=chunk))


def _started(_: int) -> int:
    return os.getpid()


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone, killed or not: a pool's workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def threads_of(asked: int) -> int:
    """As many threads as are asked for and this process may run at once; more would wait for one another by spinning."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(asked, cores)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Processes that start inside compute on one thread each: threads of several processes that wait for one another by spinning
    take twice the time on two cores."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@atexit.register
def _stop() -> None:
    for pool in _pools.values():
        pool.shutdown(wait=False, cancel_futures=True)
