"""SFT and GRPO of the tiny model by several processes: ranks_stage.py JOB ..., the JSON of a `Job` each, one after the other.

All share one start of torch.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from test_sft import EVERY_KIND, TOKENIZER, WORLD, recipes
from tiny_lm import random_frames, tiny_model
from torch import Tensor

from paras2s_cli.data.worlds import Spoken
from paras2s_cli.models.lora import Adapter
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.recipe.aligning import Grpo
from paras2s_cli.recipe.training import Lora, Train
from paras2s_cli.train.adapters import make_adapter
from paras2s_cli.train.grpo import Experience, grpo_stage
from paras2s_cli.train.loop import Stage, make_optimizers, train
from paras2s_cli.train.policy import NativePolicy
from paras2s_cli.train.ranks import Ranks, joined
from paras2s_cli.train.sft import Best, sft_stage
from paras2s_cli.train.shards import Mirror, Shards

LORA = Lora(r=3, alpha=6)


@dataclass
class Job:
    """`size` processes; the last is killed in the midst of step `die` (from 0). `of`: a run that is copied first, to be resumed."""

    size: int
    folder: str
    stage: str = "sft"
    of: str = ""
    die: int | None = None
    lora: bool = False
    checkpointing: bool = False
    at_once: int = 0


def sft(folder: Path, model: SpeechLM, adapter: Adapter | None, ranks: Ranks, job: Job) -> tuple[Stage, Best]:
    """Six steps; batches have rows of both prompt kinds, some too few of one for two ranks."""
    _, recipe = recipes(6, 3)
    recipe = recipe.model_copy(update={"checkpointing": job.checkpointing, "at_once": job.at_once})
    return sft_stage(folder, recipe, WORLD, model, TOKENIZER, EVERY_KIND, adapter, ranks)


def grpo(folder: Path, model: SpeechLM, adapter: Adapter | None, ranks: Ranks, mirror: Mirror | None, at_once: int) -> Stage:
    """Six steps of five prompts, so that two ranks have different shares; some answers have no reward."""
    train = Train(steps=6, lr=3e-3, warmup=2, precision="fp32", clip=0.1)
    settings = Grpo(train=train, prompts=5, group=4, limit=14, lora=LORA if adapter else None, at_once=at_once)
    warm = model
    if adapter is None:
        warm = tiny_model(delay=1).requires_grad_(False)
        if ranks.size > 1:
            Shards(warm, ranks, bf16=False)
    asked = [Spoken({"id": f"q{i}"}, Path("none"), table) for i, table in enumerate(random_frames([8, 12, 16, 30, 21]))]

    def reward(queries: Sequence[Spoken], codes: Sequence[np.ndarray], texts: Tensor, group: int) -> Tensor:
        assert len(codes) == len(texts) == len(queries) * group
        longer = [len(q.features) / 10 for q in queries for _ in range(group)]
        return torch.tensor([float("nan") if len(c) == 5 else more + float(c[:3].sum()) for c, more in zip(codes, longer, strict=True)])

    def after(number: int, metrics: dict, experience: Experience) -> None:
        metrics["asked"] = [q.id for q in experience.queries]
        metrics["codes_of_all"] = [c.tolist() for c in experience.codes]
        texts, free = experience.rollouts.answers.text, experience.rollouts.answers.text_free
        assert (texts[~free] == model.specials.blank).all()
        metrics["texts_of_all"] = [row[kept].tolist() for row, kept in zip(texts, free, strict=True)]

    policy = NativePolicy(model, mirror)
    return grpo_stage(folder, settings, 3, policy, NativePolicy(warm), asked, reward, after, adapter, ranks)


def work(job: Job, ranks: Ranks) -> None:
    """Trains; `final.safetensors` are the weights that are kept, made whole."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model(delay=1 if job.stage == "grpo" else 3)
    adapter = make_adapter(model, LORA, 1) if job.lora else None
    mirror = shards = None
    if ranks.size > 1:
        mirror, shards = Mirror(model), Shards(model, ranks, bf16=False)
    best = None
    if job.stage == "sft":
        stage, best = sft(folder, model, adapter, ranks, job)
    else:
        model.checkpoint_blocks(job.checkpointing)
        stage = grpo(folder, model, adapter, ranks, mirror, job.at_once)

    def step(number: int) -> dict:
        metrics = inner(number)
        if number == job.die and ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return metrics

    inner, stage.step = stage.step, step
    train(stage)
    if best:
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
                work(job, ranks)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes[-1] == -signal.SIGKILL if job.die is not None else not any(codes), (job, codes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # the first ones import much: before the forks
    make_optimizers({"model": tiny_model()}, Train(steps=1, lr=1.0))
    make_adapter(tiny_model(), LORA, 1)
    for job in [Job(**json.loads(text)) for text in sys.argv[1:]]:
        if job.of:
            shutil.copytree(job.of, job.folder)
        run(job)
