"""An adapter on a speech LM: where it stands, what it adds (against float64 weights put together by hand), and its files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive_lm import NaiveLM, legal
from safetensors.torch import load_file, save_file
from tiny_lm import double, random_frames, tiny_model, tiny_tokenizer

from paras2s_cli.errors import UsageError
from paras2s_cli.models.folder import load_model, save_model
from paras2s_cli.models.lora import TARGETS, Adapter, add_lora
from paras2s_cli.models.prompt import spoken_queries
from paras2s_cli.models.speech_lm import SpeechLM, Streams, causal
from tests.checkpoints import write_kimi_audio

R, ALPHA = 3, 5.0


def adapted(model: SpeechLM, targets: tuple[str, ...] = TARGETS, dropout: float = 0.0) -> Adapter:
    """With an adapter that does something: fresh ones are 0."""
    adapter = add_lora(model, r=R, alpha=ALPHA, dropout=dropout, targets=targets, seed=4)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2, generator=generator)
    return adapter


def prompts(model: SpeechLM) -> Streams:
    return double(spoken_queries(random_frames([9, 22]), model.config, model.specials))


@torch.no_grad()
def logits(model: SpeechLM, streams: Streams) -> tuple[torch.Tensor, torch.Tensor]:
    text, audio = model.hidden(model.embed(streams), *causal(streams.valid))
    return model.text_logits(text)[streams.valid], model.audio_logits(audio)[streams.valid]


def naive_logits(model: SpeechLM, adapter: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], streams: Streams) -> list[Any]:
    """Of `weights` with alpha / r * B A added for every pair in an adapter's file."""
    together = {name: tensor.double().clone() for name, tensor in weights.items()}
    for name, a in adapter.items():
        if name.endswith("lora_A.weight"):
            b = adapter[name.replace("lora_A", "lora_B")]
            together[name.removeprefix("base_model.model.").replace("lora_A.", "")] += ALPHA / R * b.double() @ a.double()
    naive = NaiveLM(together, model.config)
    rows = [legal(model, *naive.row(streams, i)) for i in range(2)]
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "down_proj")])
def test_it_adds_its_product_to_the_weights_of_both_branches(targets: tuple[str, ...]) -> None:
    model = tiny_model().double()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    streams = prompts(model)
    before = logits(model, streams)
    adapter = adapted(model, targets)
    model.double()
    file = adapter.state_dict()
    layers = [f"layers.{i}" for i in range(3)] + ["mimo_layers.0"]
    part = {t: "self_attn" if t[0] in "qkvo" else "mlp" for t in targets}
    wanted = {f"base_model.model.model.{x}.{part[t]}.{t}.lora_{ab}.weight" for x in layers for t in targets for ab in "AB"}
    assert file.keys() == wanted and all(tensor.shape[0] == R for name, tensor in file.items() if "lora_A" in name)
    for found, sums, bare in zip(logits(model, streams), naive_logits(model, file, weights, streams), before, strict=True):
        np.testing.assert_allclose(found.numpy(), sums, atol=2e-5, rtol=0)  # the rotary tables are fp32
        assert (found - bare).abs().max() > 0.1
    with adapter.off():
        torch.testing.assert_close(logits(model, streams), before, atol=1e-12, rtol=0)
    adapter.merge()
    assert model.state_dict().keys() == weights.keys() and all(p.requires_grad for p in model.parameters())
    for found, sums in zip(logits(model, streams), naive_logits(model, file, weights, streams), strict=True):
        np.testing.assert_allclose(found.numpy(), sums, atol=2e-5, rtol=0)


def test_a_fresh_one_changes_nothing_and_is_all_that_is_trained() -> None:
    model = tiny_model().double()
    streams = prompts(model)
    before = logits(model, streams)
    add_lora(model, r=R, alpha=ALPHA, dropout=0.0, targets=TARGETS, seed=4)
    torch.testing.assert_close(logits(model, streams), before, atol=1e-12, rtol=0)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {n for n, _ in model.named_parameters() if "lora_" in n}
    a, b = (add_lora(tiny_model(), r=R, alpha=ALPHA, dropout=0.0, targets=TARGETS, seed=4).state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kimi", [False, True])
def test_it_is_saved_apart_and_loaded_onto_its_base(tmp_path: Path, kimi: bool) -> None:
    if kimi:
        write_kimi_audio(tmp_path / "base")
    else:
        (tmp_path / "base").mkdir()
        save_model(tmp_path / "base", tiny_model(), tiny_tokenizer())
    model, _ = load_model(tmp_path / "base")
    adapter = adapted(model)
    adapter.save(tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {f.name for f in (tmp_path / "adapter").iterdir()}
    assert not [f for f in (tmp_path / "adapter").iterdir() if f.suffix in (".bin", ".pt")]
    file = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert file.keys() == adapter.state_dict().keys()
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tmp_path / "base")
    loaded, _ = load_model(tmp_path / "adapter")
    bare = load_model(tmp_path / "base")[0].state_dict()
    assert loaded.state_dict().keys() == bare.keys()
    for name, found in loaded.state_dict().items():
        a = f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight"
        wanted = bare[name]
        if a in file:
            wanted = wanted.double() + ALPHA / R * file[a.replace("lora_A", "lora_B")].double() @ file[a].double()
        torch.testing.assert_close(found, wanted.to(found.dtype), atol=1e-7, rtol=2**-7 if kimi else 1e-5)
        assert found.dtype == bare[name].dtype and torch.equal(found, bare[name]) == (a not in file)
    assert loaded.name_or_path == str(tmp_path / "adapter")


def test_peft_reads_what_was_saved(tmp_path: Path) -> None:
    from peft import PeftModel

    (tmp_path / "base").mkdir()
    save_model(tmp_path / "base", tiny_model(), tiny_tokenizer())
    model = load_model(tmp_path / "base")[0].double()
    adapted(model).save(tmp_path / "adapter")
    other = load_model(tmp_path / "base")[0]
    PeftModel.from_pretrained(other, str(tmp_path / "adapter"))
    streams = prompts(model)
    for a, b in zip(logits(model.double(), streams), logits(other.double().eval(), streams), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_what_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    save_model(tmp_path / "base", tiny_model(), tiny_tokenizer())
    folder = tmp_path / "adapter"
    adapted(load_model(tmp_path / "base")[0]).save(folder)
    config = json.loads((folder / "adapter_config.json").read_text())

    def said(**changes: Any) -> str:
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UsageError) as error:
            load_model(folder)
        return str(error.value)

    assert "base_model_name_or_path" in said(base_model_name_or_path=str(tmp_path / "gone"))
    assert "not an adapter that fits" in said(target_modules=["q_proj", "lm_head"])
    assert "not an adapter that fits" in said(peft_type="LOHA")
    assert "lora_A" in said(target_modules=["q_proj"])
    assert "does not fit" in said(r=4)
    file = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(file, folder / "adapter_model.bin")
    assert "adapter_model.safetensors" in said()
    save_file(file, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(UsageError, match="not the config of an adapter"):
        load_model(folder)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"paras2s\[lora\]"):
        add_lora(tiny_model(), r=R, alpha=ALPHA, dropout=0.0, targets=TARGETS, seed=4)
