"""Training that is packed, saved, loaded and unpacked goes on bit by bit as if it had never stopped."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paras2s_cli.errors import UsageError
from paras2s_cli.train.checkpoint import load_checkpoint, save_checkpoint
from paras2s_cli.train.packing import pack_optimizer, pack_rng, unpack_optimizer, unpack_rng

Make = Callable[[torch.nn.Module], torch.optim.Optimizer]


def two_groups(module: torch.nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in module.parameters() if p.ndim == 2]
    vectors = [p for p in module.parameters() if p.ndim == 1]
    return [{"params": matrices}, {"params": vectors, "lr": 0.02, "weight_decay": 0.0}]


OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda m: torch.optim.AdamW(two_groups(m), lr=0.1, betas=(0.8, 0.9), amsgrad=True),
    "fused": lambda m: torch.optim.AdamW(two_groups(m), lr=0.1, fused=True),
    "tensor lr": lambda m: torch.optim.AdamW(m.parameters(), lr=torch.tensor(0.1), foreach=False),
    "sgd": lambda m: torch.optim.SGD(two_groups(m), lr=0.1, momentum=0.9),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.1),
    "asgd": lambda m: torch.optim.ASGD(m.parameters(), lr=0.1),
    "muon": lambda m: torch.optim.Muon([p for p in m.parameters() if p.ndim == 2], lr=0.1),
}


def module(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3)).to(dtype)


def steps(net: torch.nn.Module, optimizer: torch.optim.Optimizer, noise: np.random.Generator, count: int) -> None:
    dtype = next(net.parameters()).dtype
    for _ in range(count):
        optimizer.zero_grad()
        inputs = torch.randn(4, 5, dtype=dtype) + float(noise.normal()) + random.random()
        net(inputs).square().mean().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.9


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_is_unbroken(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    net, noise = module(dtype), np.random.default_rng(1)
    optimizer = OPTIMIZERS[name](net)
    if name == "sgd":  # a momentum kept in another precision than its parameter
        for p in net.parameters():
            optimizer.state[p]["momentum_buffer"] = torch.randn(p.shape).to(dtype)
    random.seed(3)
    steps(net, optimizer, noise, 3)
    tensors, meta = pack_optimizer(optimizer)
    folder = save_checkpoint(
        tmp_path,
        3,
        {"model": net.state_dict(), "optimizer": tensors},
        {"optimizer": meta, "rng": pack_rng(noise=noise)},
    )
    steps(net, optimizer, noise, 3)

    saved = load_checkpoint(folder)
    other, noise2 = module(dtype), np.random.default_rng(99)
    torch.manual_seed(99)
    other.load_state_dict(saved.groups["model"])
    optimizer2 = OPTIMIZERS[name](other)
    unpack_optimizer(optimizer2, saved.groups["optimizer"], saved.state["optimizer"])
    unpack_rng(saved.state["rng"], noise=noise2)
    steps(other, optimizer2, noise2, 3)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    for group, group2 in zip(optimizer.param_groups, optimizer2.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in group2.items() if k != "params"}


def test_moments_keep_their_precision() -> None:
    net = module(torch.bfloat16)
    optimizer = torch.optim.AdamW(net.parameters())
    first = next(iter(net.parameters()))
    optimizer.state[first] = {
        "step": torch.tensor(3.0),
        "exp_avg": torch.randn(first.shape),
        "note": "x",
        "pair": (1, 2.5),
    }
    tensors, meta = pack_optimizer(optimizer)
    other = torch.optim.AdamW(module(torch.bfloat16).parameters())
    unpack_optimizer(other, tensors, json.loads(json.dumps(meta)))
    (state,) = other.state.values()
    assert state["exp_avg"].dtype == torch.float32 and torch.equal(state["exp_avg"], tensors["0.exp_avg"])
    assert state["exp_avg"].data_ptr() != tensors["0.exp_avg"].data_ptr()
    assert (state["note"], state["pair"]) == ("x", (1, 2.5))


def test_another_model_or_optimizer_is_refused() -> None:
    tensors, meta = pack_optimizer(torch.optim.AdamW(module().parameters()))
    for other in (
        torch.optim.SGD(module().parameters()),
        torch.optim.AdamW(torch.nn.Linear(2, 2).parameters()),
    ):
        with pytest.raises(UsageError, match="another optimizer or model"):
            unpack_optimizer(other, tensors, meta)


def test_state_that_is_no_json_is_refused() -> None:
    optimizer = torch.optim.SGD(module().parameters())
    optimizer.state[next(iter(optimizer.param_groups[0]["params"]))] = {"f": object()}
    with pytest.raises(TypeError, match=r"0\.f is a object"):
        pack_optimizer(optimizer)


def test_every_source_goes_on() -> None:
    sources: dict[str, Any] = {
        "generator": torch.Generator().manual_seed(1),
        "pcg": np.random.default_rng(2),
        "philox": np.random.Generator(np.random.Philox(3)),
        "twister": np.random.Generator(np.random.MT19937(4)),
        "python": random.Random(5),
    }

    def draw() -> list[float]:
        return [
            torch.rand(()).item(), float(np.random.rand()), random.gauss(0, 1),
            torch.rand((), generator=sources["generator"]).item(),
            *(float(sources[name].random()) for name in ("pcg", "philox", "twister", "python")),
            float(sources["pcg"].integers(0, 2**31, dtype=np.uint32)), sources["python"].gauss(0, 1),
        ]  # fmt: skip

    draw()
    packed = json.loads(json.dumps(pack_rng(**sources)))
    first = draw()
    assert draw() != first
    unpack_rng(packed, **sources)
    assert draw() == first
    with pytest.raises(UsageError, match="'absent'"):
        unpack_rng(packed, absent=random.Random())
