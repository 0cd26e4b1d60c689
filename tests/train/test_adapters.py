"""Stages with an adapter: what they train, what the reference is, what is resumed and what is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sft import EVERY_KIND, TOKENIZER, WORLD, recipes
from tiny_lm import random_frames, tiny_model

from paras2s_cli.data.worlds import Spoken
from paras2s_cli.errors import UsageError
from paras2s_cli.models.folder import load_model, save_model
from paras2s_cli.models.lora import Adapter
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.recipe.aligning import AlignRecipe, Grpo
from paras2s_cli.recipe.load import load_recipe
from paras2s_cli.recipe.speaking import SftRecipe
from paras2s_cli.recipe.training import Lora, Train
from paras2s_cli.train.adapters import make_adapter, publish_trained
from paras2s_cli.train.grpo import grpo_stage
from paras2s_cli.train.loop import Stage, train
from paras2s_cli.train.metrics import read_metrics
from paras2s_cli.train.policy import NativePolicy
from paras2s_cli.train.sft import sft_stage

LORA = Lora(r=4, alpha=8)
ROWS = [EVERY_KIND[0], EVERY_KIND[3]]


def adapter_on(model: SpeechLM, settings: Lora = LORA) -> Adapter:
    adapter = make_adapter(model, settings, 1)
    assert adapter is not None
    return adapter


def figures(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder / "metrics.jsonl")]


def sft(folder: Path, steps: int, settings: Lora) -> tuple[Stage, Any, Adapter]:
    _, recipe = recipes(steps, 4, evaluate_every=2, lr=1e-2)
    model = tiny_model()
    adapter = adapter_on(model, settings)
    folder.mkdir()
    return *sft_stage(folder, recipe, WORLD, model, TOKENIZER, ROWS, adapter), adapter


def test_sft_trains_the_adapter_alone_and_keeps_it_alone(tmp_path: Path) -> None:
    stage, best, adapter = sft(tmp_path / "run", 14, LORA)
    train(stage)
    rows = figures(tmp_path / "run")
    assert rows[-1]["text_loss"] < 0.7 * rows[0]["text_loss"]
    kept = sorted(p.stat().st_size for p in (tmp_path / "run").rglob("*.safetensors"))
    assert kept[-1] < 0.9 * sum(p.nbytes for p in tiny_model().parameters())
    best.restore(adapter)
    with adapter.off():
        bare = tiny_model().state_dict()
        found = {name.replace("base_layer.", ""): t for name, t in adapter.model.state_dict().items() if "lora_" not in name}
        assert found.keys() == bare.keys() and all(torch.equal(found[name], bare[name]) for name in bare)
    assert all(tensor.abs().max() > 0 for name, tensor in adapter.state_dict().items() if "lora_B" in name)


def test_broken_off_and_resumed_it_ends_the_same_with_dropout(tmp_path: Path) -> None:
    dropped = Lora(r=4, alpha=8, dropout=0.3)
    whole, _, _ = sft(tmp_path / "whole", 5, dropped)
    train(whole)

    def stop(step: int, metrics: dict) -> None:
        if step == 3:
            raise RuntimeError

    broken, _, _ = sft(tmp_path / "parts", 5, dropped)
    with pytest.raises(RuntimeError):
        train(broken, stop)
    torch.rand(7)  # a new process starts with other random numbers
    (tmp_path / "parts").rename(tmp_path / "kept")
    resumed, _, adapter = sft(tmp_path / "parts", 5, dropped)
    (tmp_path / "parts").rmdir()
    (tmp_path / "kept").rename(tmp_path / "parts")
    train(resumed)
    assert figures(tmp_path / "whole") == figures(tmp_path / "parts")
    for name, tensor in whole.modules["model"].state_dict().items():
        assert torch.equal(adapter.state_dict()[name], tensor)
    plain, _, _ = sft(tmp_path / "plain", 1, LORA)
    train(plain)
    assert figures(tmp_path / "plain")[0]["text_loss"] == figures(tmp_path / "whole")[0]["text_loss"]  # B is 0 yet
    assert figures(tmp_path / "plain")[0]["grad_norm"] != figures(tmp_path / "whole")[0]["grad_norm"]


def aligned(folder: Path, warm_of: Callable[[SpeechLM], SpeechLM]) -> tuple[Path, Adapter]:
    policy = tiny_model(delay=1)
    adapter = adapter_on(policy)
    grpo = Grpo(train=Train(steps=4, lr=2e-2, warmup=1, precision="fp32"), prompts=3, group=4, limit=14, lora=LORA)
    asked = [Spoken({"id": f"q{i}"}, Path("none"), table) for i, table in enumerate(random_frames([8, 12, 16]))]

    def reward(queries: Any, codes: list[np.ndarray], texts: torch.Tensor, group: int) -> torch.Tensor:
        return torch.tensor([float(len(c) > 0 and c[0] % 2) for c in codes])

    folder.mkdir()
    train(grpo_stage(folder, grpo, 3, NativePolicy(policy), NativePolicy(warm_of(policy)), asked, reward, None, adapter))
    return folder, adapter


def test_grpo_has_its_reference_in_the_same_weights_without_the_adapter(tmp_path: Path) -> None:
    """Against a run whose reference is a second copy of the model that never had one."""
    same, adapter = aligned(tmp_path / "same", lambda policy: policy)
    apart, other = aligned(tmp_path / "apart", lambda policy: tiny_model(delay=1).requires_grad_(False))
    rows = figures(same)
    assert rows == figures(apart)
    assert rows[0]["kl_audio"] < 1e-9 and rows[-1]["kl_audio"] > 1e-4 and rows[-1]["off_policy_audio"] < 1e-5
    assert all(torch.equal(a, b) for a, b in zip(adapter.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("merge", [True, False])
def test_what_is_published_is_read_back_as_one_model(tmp_path: Path, merge: bool) -> None:
    (tmp_path / "base").mkdir()
    save_model(tmp_path / "base", tiny_model(), TOKENIZER)
    model, tokenizer = load_model(tmp_path / "base")
    settings = Lora(r=2, alpha=4, targets=["v_proj", "up_proj"], merge=merge)
    adapter = adapter_on(model, settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    publish_trained(tmp_path / "model", model, tokenizer, adapter, settings)
    assert (tmp_path / "model" / "adapter_config.json").exists() != merge
    if not merge:
        adapter.merge()
    found = load_model(tmp_path / "model")[0].state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    assert not torch.equal(
        found["model.mimo_layers.0.mlp.up_proj.weight"], tiny_model().state_dict()["model.mimo_layers.0.mlp.up_proj.weight"]
    )


def test_recipes_ask_for_it_and_name_a_base(tmp_path: Path) -> None:
    recipe = load_recipe("pocket", ["lora.r=8", "lora.targets=[q_proj]", "base={kind: checkpoint, folder: here}"], SftRecipe)
    assert recipe.lora is not None and recipe.lora.r == 8 and recipe.base.kind == "checkpoint"
    for override, said in (("lora.targets=[lm_head]", "lora.targets"), ("lora.rank=3", "lora.rank"), ("base.folder=x", "base.folder")):
        with pytest.raises(UsageError, match=said):
            load_recipe("pocket", [override], SftRecipe)
    assert load_recipe("pocket", ["grpo.lora.r=8"], AlignRecipe).grpo.lora == Lora(r=8)
    with pytest.raises(UsageError, match="dropout must be 0"):
        load_recipe("pocket", ["grpo.lora.dropout=0.1"], AlignRecipe)
