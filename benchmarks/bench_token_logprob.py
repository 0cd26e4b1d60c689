"""token_logprob beside plain torch, eager and compiled, in one run on whatever device is there.

    pytest benchmarks/bench_token_logprob.py --benchmark-only --benchmark-columns=median,iqr,rounds
    pytest benchmarks/bench_token_logprob.py --benchmark-only --benchmark-json=token_logprob.json

Each group holds all variants of one shape and direction, so the ratio to each peer is read in one group.
`peer` is log_softmax, gather and entropy; `peer-logprob` has no entropy. extra_info has the bytes that must
be moved.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import CUDA, measure, sets_for
from paras2s_kernels import backends, token_logprob

DEVICE = "cuda" if CUDA else "cpu"
# rows, columns, dtype: a GRPO minibatch of the pocket model; Kimi-Audio's audio and text heads
SHAPES = [(2000, 1026, torch.float32)]
if CUDA:
    SHAPES = [(16384, vocab, torch.bfloat16) for vocab in (151_680, 16_386, 1026)]


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
    size, learns = rows * vocab * dtype.itemsize, direction != "forward"
    inputs = [torch.randn(rows, vocab, dtype=dtype, device=DEVICE, requires_grad=learns) for _ in range(sets_for(size))]
    ids = torch.randint(0, vocab, (rows,), device=DEVICE)
    function = VARIANTS[variant]

    def call(logits: Tensor) -> None:
        logits.grad = None
        outputs = function(logits, ids, 0.8)
        if learns:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    benchmark.group = f"{rows}x{vocab} {direction}"  # type: ignore[attr-defined]
    benchmark.extra_info.update(  # type: ignore[attr-defined]
        bytes=size * (3 if learns else 1),
        device=torch.cuda.get_device_name() if CUDA else "cpu",
        torch=torch.__version__,
        backend=backends()[0]["chosen"],
    )
    measure(benchmark, [partial(call, logits) for logits in inputs], rounds=20, graph=not learns)
