"""SFT of the tiny model by several processes: ranks_stage.py SIZE JOB ..., a job being the JSON of `Job`. All share one start of torch."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "models"), str(Path(__file__).parents[2])]

import torch
from safetensors.torch import save_file
from test_sft import EVERY_KIND, TOKENIZER, WORLD, recipes
from tiny_lm import tiny_model

from paras2s_cli.recipe.schema import Lora
from paras2s_cli.train.adapters import make_adapter
from paras2s_cli.train.loop import train
from paras2s_cli.train.ranks import Ranks, joined
from paras2s_cli.train.sft import sft_stage
from paras2s_cli.train.shards import Shards


@dataclass
class Job:
    """`die`: the last rank is killed in the midst of this step (from 0)."""

    folder: str
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    size, jobs = int(sys.argv[1]), [Job(**json.loads(text)) for text in sys.argv[2:]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            os.environ.update({name: str(value) for name, value in {**told, "RANK": rank, "LOCAL_RANK": rank}.items()})
            with joined() as ranks:
                for job in jobs:
                    sft(job, ranks)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    dies = any(job.die is not None for job in jobs)
    sys.exit(codes[-1] != -signal.SIGKILL if dies else any(codes))
