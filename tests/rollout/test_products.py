"""A model's products of one position a row: which kind is taken, and that packed ones compute what the layers do."""

from __future__ import annotations

import pytest
import torch
from tiny_lm import random_frames, tiny_model
from torch import nn

from paras2s_cli.models.lora import TARGETS, add_lora
from paras2s_cli.models.prompt import spoken_queries
from paras2s_cli.rollout.engine import rollout
from paras2s_cli.rollout.products import AsTheyAre, Directions, Packed, products
from paras2s_cli.rollout.sampling import Sampling


@pytest.mark.parametrize("eps", [1e-6, 0.1, None])
def test_directions_are_the_norm_but_for_its_weights(eps: float | None) -> None:
    norm = nn.RMSNorm(48, eps=eps)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    weight, x = torch.randn(20, 48).double(), torch.randn(7, 48)
    x[3], x[4] = 0.0, x[4] * 1e-4
    wide = x.double()
    floor = torch.finfo(torch.float32).eps if eps is None else eps
    expected = wide / (wide.square().mean(-1, keepdim=True) + floor).sqrt() * norm.weight.double() @ weight.T
    directions = Directions(norm)
    torch.testing.assert_close(directions(x).double() @ directions.into(weight).T, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("target", TARGETS)
@torch.no_grad()
def test_fp32_layers_on_the_cpu_are_packed_and_others_are_not(target: str) -> None:
    model = tiny_model()
    assert isinstance(products(model, 8, 60, None), Packed)
    assert isinstance(products(tiny_model().to(torch.bfloat16), 8, 60, None), AsTheyAre)
    add_lora(model, r=2, alpha=4.0, dropout=0.0, targets=[target], seed=0)
    kept = products(model, 8, 60, None)
    assert isinstance(kept, AsTheyAre) and products(model, 8, 60, kept) is kept


@torch.no_grad()
def test_an_adapted_model_draws_what_it_draws_when_its_adapter_is_merged() -> None:
    model = tiny_model()
    prompts = spoken_queries(random_frames([22, 9, 41]), model.config, model.specials)

    def drawn() -> list[torch.Tensor]:
        rolled = rollout(model, prompts, group=4, sampling=Sampling(), seed=3, row_ids=torch.arange(12), limit=20)
        return [rolled.answers.text, rolled.answers.audio]

    before = drawn()
    adapter = add_lora(model, r=4, alpha=16.0, dropout=0.0, targets=TARGETS, seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.normal_(0, 0.3)
    adapted = drawn()
    adapter.merge()
    merged = drawn()
    assert all(torch.equal(a, b) for a, b in zip(adapted, merged, strict=True))
    assert not torch.equal(before[1], merged[1])
