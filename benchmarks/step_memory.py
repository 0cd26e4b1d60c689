"""Peak memory and time of a GRPO step's scoring, the trainer's way beside plain torch over full logits, each in a process of its own.

    python benchmarks/step_memory.py
    python benchmarks/step_memory.py --codes 65536 --answers 128

A pocket-sized policy and its reference score the same answers, the policy with gradient, and the loss goes backward. Vocabularies
are the pocket's 1,024 codes and Kimi-Audio's 16,384. `tensors` is the peak of what torch's CPU allocator had handed out (its profiler's
count), `resident` that of the process (getrusage), which has freed blocks in it that malloc keeps; both in MB, less what there was
when the step began. `loss` is there to be compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import accumulate
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from paras2s_cli.models.prompt import spoken_answers, spoken_queries
from paras2s_cli.models.small import new_model, word_tokenizer
from paras2s_cli.rollout.sampling import Sampling, Warp, restrict
from paras2s_cli.train import grpo
from paras2s_cli.train import policy as policies

POCKET = {"hidden_size": 192, "intermediate_size": 512, "shared_layers": 3, "text_layers": 1, "audio_layers": 2, "heads": 6, "kv_heads": 2}
FEATURES, PROMPT_FRAMES, GROUP, LENGTH = 44, 144, 8, 40


def plain(hidden: Tensor, head: Tensor, columns: Tensor, warp: Warp) -> tuple[Tensor, Tensor]:
    """What `train.scoring.score` computes, as one writes it down."""
    logs = F.log_softmax(restrict(F.linear(hidden, head).float(), warp, columns) / warp.temperature, dim=-1)
    return logs.gather(1, columns[:, None])[:, 0], -torch.where(logs.isfinite(), logs.exp() * logs, 0.0).sum(-1)


def measure(way: str, codes: int, answers: int, top_k: int) -> dict[str, float]:
    """The step in this process."""
    torch.set_num_threads(1)
    if way == "plain":
        policies.score = plain  # type: ignore[assignment]
    tokenizer = word_tokenizer(["one two three four five six seven eight"] * 4)
    model, other = (new_model(tokenizer, codes=codes, features=FEATURES, delay=2, seed=seed, **POCKET) for seed in (1, 2))
    policy, warm = policies.NativePolicy(model), policies.NativePolicy(other.requires_grad_(False))
    generator = torch.Generator().manual_seed(0)
    heard = torch.randn(answers // GROUP, PROMPT_FRAMES, FEATURES, generator=generator).numpy()
    prompts = spoken_queries(list(heard), model.config, model.specials)
    spoken = torch.randint(codes, (answers, LENGTH), generator=generator).numpy()
    told = spoken_answers([[20, 21, 22]] * answers, list(spoken), model.config, model.specials)
    old = torch.full(told.audio.shape, -5.0)
    advantages = torch.randn(answers, generator=generator)
    sampling = Sampling(0.8, top_k)

    def step() -> float:
        model.zero_grad()
        with torch.no_grad():
            reference = grpo.stream_logprobs(warm, prompts, told, sampling)
        scored = grpo.stream_logprobs(policy, prompts, told, sampling)
        parts = zip(scored, reference, (told.text_free, told.audio_free), strict=True)
        loss = sum(grpo.stream_loss(new.logprobs, old, ref.logprobs, free, advantages, 0.2, 0.1)[0] for new, ref, free in parts)
        assert isinstance(loss, Tensor)
        loss.backward()
        return float(loss.detach())

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss = step()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    took = []
    for _ in range(3):
        begun = time.process_time()
        step()
        took.append(time.process_time() - begun)
    return {"tensors": live_peak(profiled) / 1e6, "resident": resident * 1024 / 1e6, "seconds": median(took), "loss": loss}


def live_peak(profiled: profile) -> int:
    """Bytes that were handed out at most, beyond those at the start."""
    assert profiled.profiler is not None
    kept: Any = profiled.profiler.kineto_results
    events = [e for e in kept.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=int, nargs="+", default=[1024, 16384])
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--alone", nargs=2, metavar=("WAY", "TOP_K"), help="one measurement, in this process, as JSON")
    given = parser.parse_args()
    if given.alone:
        print(json.dumps(measure(given.alone[0], given.codes[0], given.answers, int(given.alone[1]))))
        return
    table = Table("codes", "top k", "way", "tensors MB", "resident MB", "CPU seconds", "loss", box=None)
    for codes in given.codes:
        for top_k in (0, 10):
            for way in ("trainer", "plain"):
                call = [sys.executable, __file__, "--codes", str(codes), "--answers", str(given.answers), "--alone", way, str(top_k)]
                found = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
                cells = (f"{found['tensors']:.0f}", f"{found['resident']:.0f}", f"{found['seconds']:.2f}", f"{found['loss']:.5f}")
                table.add_row(str(codes), str(top_k), way, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
