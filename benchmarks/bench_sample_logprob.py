"""sample_logprob beside plain torch, eager and compiled, in one run on whatever device is there.

    pytest benchmarks/bench_sample_logprob.py --benchmark-only --benchmark-columns=median,iqr,rounds
    pytest benchmarks/bench_sample_logprob.py --benchmark-only --benchmark-json=sample_logprob.json

Each group holds all variants of one shape and restriction. `peer-sort` sorts the vocabulary, as transformers' warpers do, and draws
with `torch.multinomial`; `peer-race` has top-k by `topk` and the exponential race. `loop` is what the rollouts call on the CPU, with one
random number a row. The peers' draws depend on the batch, ours do not. extra_info has the bytes that must be moved. On a GPU all but
`peer-sort`, which waits for it, are replayed from a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.timing import CUDA, measure, sets_for
from paras2s_cli.rollout.sampling import Warp, draw, row_keys
from paras2s_kernels import backends, sample_logprob

DEVICE = "cuda" if CUDA else "cpu"
# rows, columns, dtype: decode steps of the pocket model; of Kimi-Audio's audio and text heads
SHAPES = [(8, 1026, torch.float32), (64, 1026, torch.float32)]
if CUDA:
    SHAPES = [(rows, vocab, torch.bfloat16) for rows in (256, 64) for vocab in (151_680, 16_386)]
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


VARIANTS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"ours": ours, "peer-sort": peer_sort, "peer-race": peer_race}
VARIANTS |= {"peer-race-compiled": torch.compile(peer_race, dynamic=False)} if CUDA else {"loop": loop}


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
    size = rows * vocab * dtype.itemsize
    inputs = [torch.randn(rows, vocab, dtype=dtype, device=DEVICE) * 3 for _ in range(sets_for(size))]
    row_ids = torch.arange(rows, device=DEVICE)
    step = torch.full((rows,), 3, device=DEVICE)
    function = VARIANTS[variant]

    benchmark.group = f"{rows}x{vocab} top_k {top_k} top_p {top_p}"  # type: ignore[attr-defined]
    benchmark.extra_info.update(  # type: ignore[attr-defined]
        bytes=size,
        device=torch.cuda.get_device_name() if CUDA else "cpu",
        torch=torch.__version__,
        backend=backends()[0]["chosen"],
    )
    calls = [partial(function, logits, row_ids, step, top_k, top_p) for logits in inputs]
    measure(benchmark, calls, rounds=20, graph=variant != "peer-sort")
