"""shared_prefix_attention beside attention over a prefix that was copied to every row, in one run on whatever device is there.

    pytest benchmarks/bench_shared_prefix_attention.py --benchmark-only --benchmark-columns=median,iqr,rounds
    pytest benchmarks/bench_shared_prefix_attention.py --benchmark-only --benchmark-json=shared_prefix_attention.json

Each group holds all variants of one shape. `copied` is torch's fused attention and `copied-products` two products and a softmax, both
over caches that already hold a copy of the prefix for each row: making the copies is not timed. extra_info has the bytes that
must be moved with and without the copies. On a GPU all are replayed from a graph, over several caches: a layer finds its own in no L2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import CUDA, measure, sets_for
from paras2s_kernels import backends, shared_prefix_attention

DEVICE = "cuda" if CUDA else "cpu"
# prompts, group, heads, key-value heads, head size, prefix, suffix, dtype: the pocket model; Kimi-Audio
SHAPES = [(8, 8, 6, 2, 32, 60, 28, torch.float32), (8, 8, 6, 2, 32, 60, 56, torch.float32)]
if CUDA:
    SHAPES = [(prompts, 8, 28, 4, 128, prefix, 200, torch.bfloat16) for prompts in (32, 8, 1) for prefix in (512, 4096)]


def copied(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)[:, :, 0]


def copied_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows, heads, dim = q.shape
    scores = (q.view(rows, k.shape[1], -1, dim) * dim**-0.5) @ k.transpose(-1, -2)
    return (scores.softmax(-1) @ v).view(rows, heads, dim)


PEERS: dict[str, Callable[..., Tensor]] = {"copied": copied, "copied-products": copied_products}
if CUDA:
    PEERS["copied-compiled"] = torch.compile(copied_products, dynamic=False)


@pytest.mark.parametrize("variant", ("ours", *PEERS))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}-{shape[5]}+{shape[6]}")
def test_shared_prefix_attention(benchmark: pytest.FixtureRequest, shape: tuple, variant: str) -> None:
    prompts, group, heads, kv_heads, dim, prefix, suffix, dtype = shape
    rows = prompts * group

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=dtype, device=DEVICE)

    lengths, own_lengths = (torch.full((n,), length, device=DEVICE) for n, length in ((prompts, prefix), (rows, suffix)))
    prompt_of = torch.arange(prompts, device=DEVICE).repeat_interleave(group)

    def one() -> Callable[[], Tensor]:
        q, own = normal(rows, heads, dim), [normal(rows, kv_heads, suffix, dim) for _ in range(2)]
        shared = [normal(prompts, kv_heads, prefix, dim) for _ in range(2)]
        if variant == "ours":
            return partial(shared_prefix_attention, q, *shared, lengths, *own, own_lengths, prompt_of, dim**-0.5)
        return partial(PEERS[variant], q, *(torch.cat([a.repeat_interleave(group, 0), b], 2) for a, b in zip(shared, own, strict=True)))

    position = 2 * kv_heads * dim * dtype.itemsize
    size = (prompts * prefix + rows * suffix) * position
    benchmark.group = f"{prompts}x{group}, prefix {prefix}, suffix {suffix}"  # type: ignore[attr-defined]
    benchmark.extra_info.update(  # type: ignore[attr-defined]
        bytes=size,
        bytes_copied=rows * (prefix + suffix) * position,
        device=torch.cuda.get_device_name() if CUDA else "cpu",
        torch=torch.__version__,
        backend=backends()[0]["chosen"],
    )
    measure(benchmark, [one() for _ in range(sets_for(size))], rounds=50, graph=True)
