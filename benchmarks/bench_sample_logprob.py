"""sample_logprob beside plain torch, eager and compiled, in one run on whatever device is there.

    pytest benchmarks/bench_sample_logprob.py --benchmark-only --benchmark-columns=median,iqr,rounds
    pytest benchmarks/bench_sample_logprob.py --benchmark-only --benchmark-json=sample_logprob.json

Each group holds all variants of one shape and restriction. `peer-sort` sorts the vocabulary, as transformers' warpers do, and draws
with `torch.multinomial`; `peer-race` has top-k by `topk` and the exponential race. `loop` is what the rollouts call: this kernel on a
GPU, one random number a row on the CPU. The peers' draws depend on the batch, ours do not. extra_info has the bytes that must be moved.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from paras2s_cli.rollout.sampling import Warp, draw, row_keys
from paras2s_kernels import backends, sample_logprob

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# rows, columns, dtype: decode steps of the pocket model; of Kimi-Audio's audio and text heads
SHAPES = [(8, 1026, torch.float32), (64, 1026, torch.float32)]
if CUDA:
    SHAPES = [(64, 16896, torch.bfloat16), (256, 16896, torch.bfloat16), (64, 151_680, torch.bfloat16), (256, 151_680, torch.bfloat16)]
# top_k, top_p
RESTRICTIONS = [(0, 1.0), (50, 1.0), (0, 0.9), (50, 0.9)]
TEMPERATURE = 0.8


def ours(logits: Tensor, row_ids: Tensor, step: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    return sample_logprob(logits, 1, row_ids, step, 0, TEMPERATURE, top_k, top_p)


def peer_sort(logits: Tensor, row_ids: Tensor, step: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    z, columns = (logits.float() / TEMPERATURE).sort(descending=True)
    if top_k:
        z = z[:, :top_k]
    p = z.softmax(-1)
    if top_p < 1:
        z = z.masked_fill(p.cumsum(-1) - p >= top_p, -torch.inf)
    logs = z.log_softmax(-1)
    place = torch.multinomial(logs.exp(), 1)
    return columns.gather(1, place)[:, 0], logs.gather(1, place)[:, 0]


def peer_race(logits: Tensor, row_ids: Tensor, step: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    z = logits.float() / TEMPERATURE
    if top_k:
        z = z.masked_fill(z < z.topk(top_k).values[:, -1:], -torch.inf)
    logs = z.log_softmax(-1)
    ids = (logs.exp() / torch.empty_like(logs).exponential_()).argmax(-1)
    return ids, logs.gather(1, ids[:, None])[:, 0]


def loop(logits: Tensor, row_ids: Tensor, step: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    return draw(logits, row_keys(1, row_ids), 3, 0, Warp(TEMPERATURE, top_k, top_p))


VARIANTS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"ours": ours, "peer-sort": peer_sort, "peer-race": peer_race, "loop": loop}
if CUDA:
    VARIANTS["peer-race-compiled"] = torch.compile(peer_race, dynamic=False)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("restriction", RESTRICTIONS, ids=lambda pair: f"k{pair[0]}-p{pair[1]}")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}-{str(shape[2])[6:]}")
def test_sample_logprob(
    benchmark: pytest.FixtureRequest, shape: tuple[int, int, torch.dtype], restriction: tuple[int, float], variant: str
) -> None:
    rows, vocab, dtype = shape
    top_k, top_p = restriction
    if top_p < 1 and variant not in ("ours", "peer-sort", "loop"):
        pytest.skip("has no nucleus")
    logits = torch.randn(rows, vocab, dtype=dtype, device=DEVICE) * 3
    row_ids = torch.arange(rows, device=DEVICE)
    step = torch.full((rows,), 3, device=DEVICE)
    function = VARIANTS[variant]

    def call() -> None:
        function(logits, row_ids, step, top_k, top_p)
        if CUDA:
            torch.cuda.synchronize()

    benchmark.group = f"{rows}x{vocab} top_k {top_k} top_p {top_p}"  # type: ignore[attr-defined]
    benchmark.extra_info.update(  # type: ignore[attr-defined]
        bytes=rows * vocab * dtype.itemsize,
        device=torch.cuda.get_device_name() if CUDA else "cpu",
        torch=torch.__version__,
        backend=backends()[0]["chosen"],
    )
    benchmark.pedantic(call, rounds=20, warmup_rounds=3)  # type: ignore[attr-defined]
