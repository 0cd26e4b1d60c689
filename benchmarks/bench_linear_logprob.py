"""linear_logprob beside plain torch and Liger, in one run on whatever device is there.

    pytest benchmarks/bench_linear_logprob.py --benchmark-only --benchmark-columns=median,iqr,rounds
    pytest benchmarks/bench_linear_logprob.py --benchmark-only --benchmark-json=linear_logprob.json

Each group holds all variants of one shape and direction. `peer` is the head and `log_softmax`, gather and entropy; `head+token` is the
head and our `token_logprob`; `checkpoint` is `peer` on pieces of 1024 tokens under `torch.utils.checkpoint`; `liger` (if installed) is
its fused linear cross entropy, which has no entropy and whose forward computes the gradients. extra_info has FLOPs and, on a GPU, the
peak of memory.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.timing import CUDA, measure
from paras2s_kernels import backends, linear_logprob, token_logprob

DEVICE = "cuda" if CUDA else "cpu"
# tokens, size of the hidden states, vocabulary, dtype: a GRPO minibatch of the pocket model; Kimi-Audio's audio and text heads
SHAPES = [(2000, 256, 1026, torch.float32)]
if CUDA:
    SHAPES = [(rows, 3584, vocab, torch.bfloat16) for rows, vocab in ((16384, 151_680), (16384, 16_386), (4096, 151_680))]
TEMPERATURE = 0.8


def ours(hidden: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    return linear_logprob(hidden, weight, ids, TEMPERATURE)[:2]


def peer(hidden: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    logs = F.log_softmax(F.linear(hidden, weight) / TEMPERATURE, dim=-1, dtype=torch.float32)
    return logs.gather(1, ids[:, None])[:, 0], -(logs.exp() * logs).sum(-1)


def head_and_token(hidden: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    return token_logprob(F.linear(hidden, weight), ids, TEMPERATURE)


def checkpointed(hidden: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    pieces = zip(hidden.split(1024), ids.split(1024), strict=True)
    done = [checkpoint(peer, states, weight, some, use_reentrant=False) for states, some in pieces]
    return torch.cat([piece[0] for piece in done]), torch.cat([piece[1] for piece in done])


VARIANTS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "ours": ours,
    "peer": peer,
    "head+token": head_and_token,
    "checkpoint": checkpointed,
}
if CUDA:
    VARIANTS["peer-compiled"] = torch.compile(peer, dynamic=False)
if CUDA and importlib.util.find_spec("liger_kernel"):
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    def liger(hidden: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        return (liger_fused_linear_cross_entropy(hidden, weight, ids, reduction="sum"),)

    VARIANTS["liger"] = liger


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("direction", ("forward", "forward+backward"))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}x{shape[2]}-{str(shape[3])[6:]}")
def test_linear_logprob(benchmark: pytest.FixtureRequest, shape: tuple[int, int, int, torch.dtype], direction: str, variant: str) -> None:
    rows, size, vocab, dtype = shape
    learns = direction != "forward"
    hidden = torch.randn(rows, size, dtype=dtype, device=DEVICE, requires_grad=learns)
    weight = (torch.randn(vocab, size, dtype=dtype, device=DEVICE) * size**-0.5).requires_grad_(learns)
    ids = torch.randint(0, vocab, (rows,), device=DEVICE)
    function = VARIANTS[variant]

    def call() -> None:
        hidden.grad = weight.grad = None
        outputs = function(hidden, weight, ids)
        if learns:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    benchmark.group = f"{rows}x{size}x{vocab} {direction}"  # type: ignore[attr-defined]
    benchmark.extra_info.update(  # type: ignore[attr-defined]
        flops=2 * rows * size * vocab * (4 if learns else 1),
        device=torch.cuda.get_device_name() if CUDA else "cpu",
        torch=torch.__version__,
        backend=backends()[0]["chosen"],
    )
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    measure(benchmark, [call], rounds=10)
    if CUDA:
        benchmark.extra_info["peak_bytes"] = torch.cuda.max_memory_allocated()  # type: ignore[attr-defined]
