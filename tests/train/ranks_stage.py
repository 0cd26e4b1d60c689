"""SFT of the tiny model by several processes: ranks_stage.py JOB ..., the JSON of a `Job` each, one after the other. All share one start
of torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from test_sft import EVERY_KIND, TOKENIZER, WORLD, recipes
from tiny_lm import tiny_model

from paras2s_cli.recipe.schema import Lora, Train
from paras2s_cli.train.adapters import make_adapter
from paras2s_cli.train.loop import make_optimizers, train
from paras2s_cli.train.ranks import Ranks, joined
from paras2s_cli.train.sft import sft_stage
from paras2s_cli.train.shards import Shards


@dataclass
class Job:
    """`size` processes; the last is killed in the midst of step `die` (from 0). `of`: a run that is copied first, to be resumed."""

    size: int
    folder: str
    of: str = ""
    die: int | None = None
    lora: bool = False
    batch: int = 3


def sft(job: Job, ranks: Ranks) -> None:
    """Six steps; batches have rows of both prompt kinds, some too few of one for two ranks. `final.safetensors` is what is kept."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    _, recipe = recipes(6, job.batch)
    model = tiny_model()
    adapter = make_adapter(model, Lora(r=3, alpha=6), 1) if job.lora else None
    shards = Shards(model, ranks, bf16=False) if ranks.size > 1 else None
    stage, best = sft_stage(folder, recipe, WORLD, model, TOKENIZER, EVERY_KIND, adapter, ranks)

    def step(number: int) -> dict:
        metrics = inner(number)
        if number == job.die and ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return metrics

    inner, stage.step = stage.step, step
    train(stage)
    best.restore(adapter or model)
    if shards:
        shards.gather()
    if ranks.first:
        if adapter:
            adapter.merge()
        save_file(model.state_dict(), folder / "final.safetensors")


def run(job: Job) -> None:
    """Forks its processes, in the environment that torchrun would give them, and waits for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told = {"WORLD_SIZE": job.size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    children = []
    for rank in range(job.size):
        child = os.fork()
        if not child:
            os.environ.update({name: str(value) for name, value in {**told, "RANK": rank, "LOCAL_RANK": rank}.items()})
            with joined() as ranks:
                sft(job, ranks)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes[-1] == -signal.SIGKILL if job.die is not None else not any(codes), (job, codes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # the first ones import much: before the forks
    make_optimizers({"model": tiny_model()}, Train(steps=1, lr=1.0))
    make_adapter(tiny_model(), Lora(), 1)
    for job in [Job(**json.loads(text)) for text in sys.argv[1:]]:
        if job.of:
            shutil.copytree(job.of, job.folder)
        run(job)
