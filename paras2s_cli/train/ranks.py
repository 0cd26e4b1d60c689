"""The processes that train one model together, as torchrun starts them: who this one is, and what they tell one another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paras2s_cli.data.cache import publish_folder
from paras2s_cli.errors import UsageError

_PATIENCE = timedelta(days=1)
"""One rank makes what the cache lacks, and the others wait for it. That a process has died is noticed by what has started it."""
_TOLD_BY_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """This process among `size`. A process alone is rank 0 of 1, and meets nobody."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks for all."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This rank's of `count` rows that all ranks have."""
        return range(self.rank, count, self.size)

    def total(self, *numbers: float) -> list[float]:
        """Each number summed over all ranks, the same on each."""
        if self.size == 1:
            return list(numbers)
        summed = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(summed)
        return summed.tolist()

    def join(self, tensor: Tensor, rows: Tensor, count: int, fill: int = 0) -> Tensor:
        """All ranks' rows, [count] or [count, widest].

        Args:
            tensor: [n] or [n, width], this rank's. rows: [n] int64, their numbers. fill: what rows narrower than the widest end with.
        """
        if self.size == 1:
            return tensor
        there = torch.zeros(2, dtype=torch.int64)
        if tensor.dim() > 1:
            there[0] = tensor.shape[1]
            dist.all_reduce(there, dist.ReduceOp.MAX)
        whole = torch.zeros(count, *there[: tensor.dim() - 1].tolist(), dtype=torch.uint8 if tensor.dtype == torch.bool else tensor.dtype)
        part = tensor.cpu().to(whole.dtype) - fill
        whole[rows if tensor.dim() == 1 else (rows[:, None], torch.arange(tensor.shape[1]))] = part
        dist.all_reduce(whole)
        return (whole + fill).to(tensor.device, tensor.dtype)

    def spread(self, module: nn.Module) -> None:
        """Gives all ranks rank 0's state of a module that each has whole."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def meet(self) -> None:
        """Waits until all ranks are here."""
        self.total(0.0)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Rank 0 goes first: what it makes and keeps, the others find."""
        if not self.first:
            self.meet()
        yield
        if self.first:
            self.meet()

    @contextmanager
    def publish(self, final: Path, *, replace: bool = False, sync: bool = True) -> Iterator[Path]:
        """`publish_folder` of a folder that all ranks fill, and that is there for all of them afterwards."""
        if self.first:
            with publish_folder(final, replace=replace, sync=sync) as temporary:
                self._hear(str(temporary))
                yield temporary
                self.meet()
        else:
            yield Path(self._hear(""))
            self.meet()
        self.meet()

    def _hear(self, text: str) -> str:
        """What rank 0 says."""
        if self.size == 1:
            return text
        said = torch.zeros(4096, dtype=torch.uint8)
        said[: len(text.encode())] = torch.tensor(list(text.encode()), dtype=torch.uint8)
        dist.broadcast(said, 0)
        return bytes(said.tolist()).rstrip(b"\0").decode()


ALONE = Ranks()


def world_size() -> int:
    """How many processes were started to work together, by what torchrun writes into their environment."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def threads_here(threads: int) -> int:
    """This process's part of a machine's threads."""
    return max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that were started with it, on a GPU of its own where there are any.

    Raises:
        UsageError: WORLD_SIZE is set, but not what else torchrun sets.
    """
    if world_size() == 1:
        yield ALONE
        return
    if missing := [name for name in _TOLD_BY_TORCHRUN if name not in os.environ]:
        raise UsageError(f"WORLD_SIZE is {world_size()}, but there is no {', '.join(missing)}: start with torchrun, or unset WORLD_SIZE")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    yield Ranks(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()
