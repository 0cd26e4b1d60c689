"""grpo_loss beside the eager and the compiled loss, in one run on whatever device is there.

    pytest benchmarks/bench_grpo_loss.py --benchmark-only --benchmark-columns=median,iqr,rounds
    pytest benchmarks/bench_grpo_loss.py --benchmark-only --benchmark-json=grpo_loss.json

Each group holds all variants of one shape, forward and backward together. `peer` is the plain formula under autograd.
extra_info has the bytes that must be moved.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.timing import CUDA, measure
from paras2s_kernels import backends, grpo_loss

DEVICE = "cuda" if CUDA else "cpu"
# rows, tokens a row: a GRPO step of the pocket model; of a large one, its answers 20 s and 80 s long
SHAPES = [(64, 56), (256, 256)]
if CUDA:
    SHAPES = [(64, 56), (256, 256), (256, 1024), (4096, 1024)]
CLIP, KL = 0.2, 0.05


def peer(new: Tensor, old: Tensor, ref: Tensor, free: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    count = free.sum(1).clamp(min=1)
    ratio = (new - old).exp()
    bounded = ratio.clamp(1 - CLIP, 1 + CLIP)
    policy = -torch.minimum(ratio * advantages[:, None], bounded * advantages[:, None])
    distance = ref - new
    k3 = distance.exp() - distance - 1
    apart = (ratio.detach() - 1).abs()
    means = [((term * free).sum(1) / count).mean() for term in (policy, k3, (apart > CLIP).float(), apart)]
    return means[0] + KL * means[1], torch.stack(means[1:]).detach()


def ours(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    return grpo_loss(*tensors, CLIP, CLIP, KL)


VARIANTS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"ours": ours, "peer": peer}
if CUDA:
    VARIANTS["peer-compiled"] = torch.compile(peer, dynamic=False)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_grpo_loss(benchmark: pytest.FixtureRequest, shape: tuple[int, int], variant: str) -> None:
    new, old, ref = (torch.randn(shape, device=DEVICE) * 0.3 - 2 for _ in range(3))
    free, advantages = torch.rand(shape, device=DEVICE) < 0.6, torch.randn(shape[0], device=DEVICE)
    new.requires_grad_()
    function = VARIANTS[variant]

    def call() -> None:
        new.grad = None
        loss, _ = function(new, old, ref, free, advantages)
        loss.backward()

    benchmark.group = f"{shape[0]}x{shape[1]} forward+backward"  # type: ignore[attr-defined]
    benchmark.extra_info.update(  # type: ignore[attr-defined]
        bytes=shape[0] * shape[1] * 25,
        device=torch.cuda.get_device_name() if CUDA else "cpu",
        torch=torch.__version__,
        backend=backends()[0]["chosen"],
    )
    measure(benchmark, [call], rounds=50)
