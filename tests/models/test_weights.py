"""Kimi-Audio's shards: read one tensor at a time, written back as they were; and what a damaged checkpoint says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paras2s_cli.errors import UsageError
from paras2s_cli.models.folder import load_model, save_model
from tests.checkpoints import write_kimi_audio
from tests.commands import ROOT, environment

INDEX = "model.safetensors.index.json"
LAST = "model-7-of-7.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kimi_audio(tmp_path_factory.mktemp("kimi"))


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_model(folder)
    said = str(caught.value)
    assert str(folder) in said and "\n" not in said
    return said


def test_the_fixture_is_laid_out_as_published(published: Path) -> None:
    names = [*(f"model-{i}-of-6.safetensors" for i in range(1, 7)), LAST, INDEX]
    assert sorted(files(published)) == sorted([*names, "config.json", "tiktoken.model", "tokenizer_config.json", "special_tokens_map.json"])
    assert load_file(published / LAST).keys() == {
        f"{name}.weight" for name in ("model.embed_tokens", "model.norm", "model.mimo_norm", "lm_head", "mimo_output")
    }


def test_every_tensor_is_where_its_name_says(published: Path) -> None:
    model, _ = load_model(published)
    stored = {name: tensor for path in published.glob("*.safetensors") for name, tensor in load_file(path).items()}
    found = model.state_dict()
    assert stored.keys() - found.keys() == {name for name in stored if name.endswith("rotary_emb.inv_freq")}
    assert found.keys() <= stored.keys() and len(stored) - len(found) == 5
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and torch.equal(tensor, stored[name])
    assert all(weight.requires_grad for weight in model.parameters()) and model.audio_ids.device.type == "cpu"


def test_a_round_trip_is_bit_equal(published: Path, tmp_path: Path) -> None:
    save_model(tmp_path, *load_model(published))
    assert files(tmp_path) == files(published)


def test_what_was_learnt_is_saved_in_the_same_files(published: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(published)
    with torch.no_grad():
        model.model.mimo_layers[1].mlp.down_proj.weight.add_(1.0)
    save_model(tmp_path, model, tokenizer)
    before, after = files(published), files(tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["model-5-of-6.safetensors"]
    assert torch.equal(load_model(tmp_path)[0].model.mimo_layers[1].mlp.down_proj.weight, model.model.mimo_layers[1].mlp.down_proj.weight)


def test_every_fault_of_the_tensors_is_named(folder: Path) -> None:
    change(folder / "model-2-of-6.safetensors", lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    change(folder / LAST, lambda t: t.update({"mimo_output.weight": torch.zeros(3, 32), "model.extra.weight": torch.zeros(2)}))
    change(folder / "model-1-of-6.safetensors", lambda t: t.update({"model.layers.0.self_attn.o_proj.weight": torch.zeros(32, 32).char()}))
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index))
    said = refusal(folder)
    for part in (
        "missing model.layers.1.mlp.up_proj.weight in model-2-of-6.safetensors",
        f"unexpected model.extra.weight in {LAST}",
        f"unexpected model.norm.weight in {LAST}",
        "missing model.norm.weight",
        "mimo_output.weight is [3, 32], not [745, 32]",
        "model.layers.0.self_attn.o_proj.weight is of I8, not of floating-point numbers",
    ):
        assert part in said
    assert said.count("missing") == 2 and said.count("unexpected") == 2


def test_a_missing_shard(folder: Path) -> None:
    (folder / "model-3-of-6.safetensors").unlink()
    assert "model-3-of-6.safetensors: this shard is missing" in refusal(folder)


@pytest.mark.parametrize("size", [0, 4, 300, -1])
def test_a_shard_that_is_cut_short(folder: Path, size: int) -> None:
    path = folder / "model-3-of-6.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    said = refusal(folder)
    assert str(path) in said and "cut short" in said


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00002.bin"])
def test_a_pickle_is_never_read(folder: Path, name: str) -> None:
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    torch.save({"lm_head.weight": torch.zeros(2)}, folder / name)
    said = refusal(folder)
    assert f"{name} is a pickle" in said and f"paras2s convert {folder / name}" in said


def test_no_weights_at_all(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    assert "model.safetensors: cannot be read (there is no such file)" in refusal(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"weight_map": {"a": "../model-1-of-6.safetensors"}}', b'{"weight_map": {"a": 3}}']
)
def test_an_index_that_cannot_be(folder: Path, content: bytes) -> None:
    (folder / INDEX).write_bytes(content)
    assert INDEX in refusal(folder)


def test_another_rotary_base_than_the_checkpoints(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"rope_theta": 1000000.0', '"rope_theta": 10000.0'))
    assert "rope_theta 10000 is not that of the checkpoint" in refusal(folder)


def test_a_tokenizer_of_another_checkpoint(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"kimia_media_end": 320', '"kimia_media_end": 321'))
    assert "kimia_media_end is 321, but the tokenizer's <|im_media_end|> is 320" in refusal(folder)


def test_no_library_of_models_is_needed() -> None:
    program = "import sys, paras2s_cli.train.align; sys.exit(bool({'transformers', 'peft'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), check=True)


MEASURE = """
import re, sys
from pathlib import Path
import torch
from safetensors import safe_open
from paras2s_cli.models.folder import load_model

small, large = map(Path, sys.argv[1:])
load_model(small)  # what is imported and compiled on first use
status = lambda key: 1024 * int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = status("VmRSS")
model, _ = load_model(large)
print(status("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_host_holds_little_beside_the_model(published: Path, tmp_path: Path) -> None:
    large = write_kimi_audio(tmp_path / "large", hidden=512, ffn=2048, heads=8, layers=10, fork=7, mimo=3, codes=7471)
    words = [sys.executable, "-c", MEASURE, str(published), str(large)]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    peak, model = (int(word) for word in done.stdout.split())
    shard = max(path.stat().st_size for path in large.glob("*.safetensors"))
    assert model > 100e6 and model > 3 * shard
    assert peak - model < 1.2 * shard, (peak, model, shard)
