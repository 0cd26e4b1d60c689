"""A tiny stage, and processes that are killed by SIGKILL in the midst of it: killed_stage.py (FOLDER OPTIMIZER SAVE_EVERY MOMENT AT) ...

Every five arguments are a child that dies; all share one start of torch.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from paras2s_cli.recipe.training import Train
from paras2s_cli.train import checkpoint
from paras2s_cli.train.loop import Stage, make_optimizers, train

STEPS = 8


class Net(nn.Module):
    """Has what both optimizers tell apart: an embedding, inner matrices, biases."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(7, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        with torch.no_grad():
            for weight in self.parameters():
                weight.normal_(generator=generator)

    def loss(self, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 + step)
        x = self.embed(torch.randint(0, 7, (16,), generator=generator))
        for layer in self.layers:
            x = torch.tanh(layer(self.frozen(x)))
        return (x - torch.randn(16, 6, generator=generator)).square().mean()


def make_stage(
    folder: Path, optimizer: str, save_every: int, step: Callable[[int], None] | None = None, after: Callable[[int], None] | None = None
) -> Stage:
    """`step` is called in the midst of a step, `after` once it is applied."""
    net = Net()
    settings = Train(
        steps=STEPS, optimizer=optimizer, lr=0.02, warmup=2, weight_decay=0.1, clip=1.0, save_every=save_every, precision="fp32"
    )  # type: ignore[arg-type]

    def compute(number: int) -> dict:
        loss = net.loss(number)
        loss.backward()
        if step:
            step(number)
        return {"loss": float(loss.detach())}

    def applied(number: int, metrics: dict) -> None:
        metrics["applied"] = number
        if after:
            after(number)

    folder.mkdir(parents=True, exist_ok=True)
    return Stage(folder, {"net": net}, settings, compute, applied)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die(folder: Path, optimizer: str, save_every: int, moment: str, at: int) -> None:
    def when(number: int) -> None:
        if number == at:
            kill()

    if moment == "saving":
        save_file, written = checkpoint.save_file, 0

        def torn(tensors: dict, path: Path) -> None:
            nonlocal written
            save_file(tensors, path)
            written += 1
            if written == at:
                kill()

        checkpoint.save_file = torn
    train(make_stage(folder, optimizer, save_every, when if moment == "step" else None, when if moment == "after" else None))


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_optimizers({"net": Net()}, Train(steps=1, optimizer="muon", lr=1.0))  # the first one imports much: before the forks
    for k in range(1, len(sys.argv), 5):
        folder, optimizer, every, moment, at = sys.argv[k : k + 5]
        child = os.fork()
        if not child:
            die(Path(folder), optimizer, int(every), moment, int(at))
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (moment, status)
