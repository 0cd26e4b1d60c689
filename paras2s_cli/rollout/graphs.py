"""CUDA graphs of the decode step: one a batch size, replayed for every step, whatever the weights are by then."""

from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor


def bucket(rows: int, capacity: int) -> int:
    """The batch size that `rows` ride in: a power of two up to 64, then a multiple of 64, at most the capacity."""
    size = 1 << (rows - 1).bit_length() if rows <= 64 else -(-rows // 64) * 64
    return min(size, capacity)


class Graphs:
    """Steps that were recorded once.

    Args:
        state: every tensor that a step changes; recording runs the step a few times and then puts these back.
    """

    def __init__(self, state: Sequence[Tensor]) -> None:
        self.state = list(state)
        self._recorded: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._addresses: tuple[int, ...] = ()

    def check(self, weights: Iterable[Tensor]) -> None:
        """Weights that were moved, not just changed, undo all records. Once a rollout: 442 addresses take half a millisecond."""
        addresses = tuple(w.data_ptr() for w in weights)
        if addresses != self._addresses:
            self._recorded.clear()
            self._addresses = addresses

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Replays the step of this key, recording it first if it is new."""
        if key not in self._recorded:
            self._recorded[key] = self._record(step)
        self._recorded[key].replay()

    def _record(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        before = [tensor.clone() for tensor in self.state]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # Triton compiles and cuBLAS takes its workspace before anything is recorded
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for tensor, value in zip(self.state, before, strict=True):
            tensor.copy_(value)
        return graph
