"""Attention under a mask, against a loop over heads in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from paras2s_cli.models.attention import attend, fused


def case(dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 9, 16, device=device).to(dtype).requires_grad_() for heads in (6, 2, 2))
    mask = (torch.rand(2, 1, 9, 9, device=device) < 0.5) | torch.eye(9, dtype=torch.bool, device=device)
    return q, k, v, mask


def naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    heads = []
    for head in range(q.shape[1]):
        mine = head // (q.shape[1] // k.shape[1])
        scores = q[:, head].double() @ k[:, mine].double().transpose(1, 2) / q.shape[-1] ** 0.5
        heads.append(scores.masked_fill(~mask[:, 0], -torch.inf).softmax(-1) @ v[:, mine].double())
    return torch.stack(heads, 1)


@pytest.mark.parametrize("how", [attend, fused])
def test_values_and_gradients(how: Callable[..., Tensor]) -> None:
    q, k, v, mask = case(torch.float32)
    out, wanted = how(q, k, v, mask), naive(q, k, v, mask)
    torch.testing.assert_close(out.double(), wanted, atol=1e-6, rtol=0)
    weights = torch.randn_like(out)
    for got, right in zip(
        torch.autograd.grad((out * weights).sum(), (q, k, v)),
        torch.autograd.grad((wanted * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(got, right, atol=2e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernel_takes_it() -> None:
    q, k, v, mask = case(torch.bfloat16, "cuda")
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        out = attend(q, k, v, mask)
    torch.testing.assert_close(out.double(), naive(q, k, v, mask), atol=2e-2, rtol=0)
