"""token_logprob beside plain torch, eager and compiled, in one run on whatever device is there.

    pytest benchmarks/bench_token_logprob.py --benchmark-only --benchmark-columns=median,iqr,rounds
    pytest benchmarks/bench_token_logprob.py --benchmark-only --benchmark-json=token_logprob.json

Each group holds all variants of one shape and direction, so the ratio to each peer is read in one group.
`peer` is log_softmax, gather and entropy; `peer-logprob` has no entropy. extra_info has the bytes that must
be moved.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paras2s_kernels import backends, token_logprob

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# rows, columns, dtype: a GRPO minibatch of the pocket model; Kimi-Audio's audio and text heads
SHAPES = [(2000, 1026, torch.float32)]
if CUDA:
    SHAPES = [(16384, 1026, torch.bfloat16), (16384, 16896, torch.bfloat16), (16384, 151_680, torch.bfloat16)]


def peer_logprob(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, ...]:
    return (F.log_softmax(logits / temperature, dim=-1, dtype=torch.float32).gather(1, ids[:, None])[:, 0],)


def peer(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, ...]:
    logs = F.log_softmax(logits / temperature, dim=-1, dtype=torch.float32)
    return logs.gather(1, ids[:, None])[:, 0], -(logs.exp() * logs).sum(-1)


VARIANTS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "ours": token_logprob,
    "peer": peer,
    "peer-logprob": peer_logprob,
}
if CUDA:
    VARIANTS["peer-compiled"] = torch.compile(peer, dynamic=False)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("direction", ("forward", "forward+backward"))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}-{str(shape[2])[6:]}")
def test_token_logprob(benchmark: pytest.FixtureRequest, shape: tuple[int, int, torch.dtype], direction: str, variant: str) -> None:
    rows, vocab, dtype = shape
    logits = torch.randn(rows, vocab, dtype=dtype, device=DEVICE, requires_grad=direction != "forward")
    ids = torch.randint(0, vocab, (rows,), device=DEVICE)
    function = VARIANTS[variant]

    def call() -> None:
        logits.grad = None
        outputs = function(logits, ids, 0.8)
        if direction != "forward":
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        if CUDA:
            torch.cuda.synchronize()

    benchmark.group = f"{rows}x{vocab} {direction}"  # type: ignore[attr-defined]
    benchmark.extra_info.update(  # type: ignore[attr-defined]
        bytes=rows * vocab * dtype.itemsize * (1 if direction == "forward" else 3),
        device=torch.cuda.get_device_name() if CUDA else "cpu",
        torch=torch.__version__,
        backend=backends()[0]["chosen"],
    )
    benchmark.pedantic(call, rounds=20, warmup_rounds=3)  # type: ignore[attr-defined]
