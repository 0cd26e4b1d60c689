"""Speech LMs on disk, and what a damaged one says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_lm import TEXTS, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, models

from paras2s_cli.errors import UsageError
from paras2s_cli.models.folder import load_model, parameters, save_model
from paras2s_cli.models.small import word_tokenizer
from paras2s_cli.models.tokenizer import NAMES, TextTokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path, tiny_model(), tiny_tokenizer())
    return tmp_path


def test_a_round_trip_is_bit_equal(folder: Path) -> None:
    model, tokenizer = load_model(folder)
    wanted, found = tiny_model().state_dict(), model.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert load_file(folder / "model.safetensors").keys() == wanted.keys()
    assert model.config == tiny_model().config and model.specials == tiny_model().specials
    assert [tokenizer.encode(text) for text in TEXTS] == [tiny_tokenizer().encode(text) for text in TEXTS]
    assert parameters(model) == sum(tensor.numel() for tensor in wanted.values())


def test_what_hears_recordings_goes_to_the_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here: how far the weights got tells where they were bound."""

    class Bound(Exception):
        pass

    def read(folder: Path, model: torch.nn.Module, device: object, *_: object) -> None:
        raise Bound(str(device))

    monkeypatch.setattr("paras2s_cli.models.folder.read_weights", read)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(Bound, match="cpu"):
        load_model(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "encoder_features": 0}))
    with pytest.raises(Bound, match="cuda"):
        load_model(folder)
    with pytest.raises(Bound, match="cuda:1"):
        load_model(folder, "cuda:1")


def test_config_json_is_read_by_hugging_faces_names(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert config["model_type"] == "moonshot_kimia" and config["architectures"] == ["MoonshotKimiaForCausalLM"]
    assert config["num_hidden_layers"] == 3 and config["kimia_mimo_transformer_from_layer_index"] == 1
    path.write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    assert load_model(folder)[0].config == tiny_model().config


def test_every_fault_of_the_tensors_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"], tensors["model.layers.2.self_attn.k_proj.bias"]
    tensors["model.extra.weight"] = torch.zeros(2)
    tensors["mimo_output.weight"] = torch.zeros(3, 32)
    save_file(tensors, path)
    with pytest.raises(UsageError) as caught:
        load_model(folder)
    said = str(caught.value)
    for part in (
        str(path),
        "missing model.norm.weight",
        "missing model.layers.2.self_attn.k_proj.bias",
        "unexpected model.extra.weight",
        "mimo_output.weight is [3, 32], not [84, 32]",
    ):
        assert part in said
    assert said.count("missing") == 2 and said.count("unexpected") == 1 and said.count(", not [") == 1


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"\xff{", b"[]"])
def test_a_missing_or_damaged_file_is_named(folder: Path, name: str, content: bytes | None) -> None:
    path = folder / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=name.replace(".", r"\.")):
        load_model(folder)


@pytest.mark.parametrize(("key", "value"), [("hidden_size", None), ("num_key_value_heads", 3), ("kimia_token_offset", 84)])
def test_a_config_that_cannot_be(folder: Path, key: str, value: int | None) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop(key) if value is None else config.update({key: value})
    path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"config\.json"):
        load_model(folder)


def test_special_tokens_are_found_by_name() -> None:
    tokenizer = tiny_tokenizer()
    for key, name in NAMES.items():
        assert tokenizer.tokenizer.id_to_token(getattr(tokenizer.specials, key)) == name
    assert len(set(NAMES)) == len({getattr(tokenizer.specials, key) for key in NAMES}) == 9
    with pytest.raises(UsageError, match=r"im_msg_end"):
        TextTokenizer(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


def test_text_comes_back_up_to_its_end() -> None:
    tokenizer = tiny_tokenizer()
    s = tokenizer.specials
    ids = tokenizer.encode("Oh DEAR, come in; we shall wait.")
    assert tokenizer.decode([s.blank, *ids, s.text_eos, *tokenizer.encode("late"), s.blank]) == "oh dear, come in; we shall wait."
    assert tokenizer.encode("zebra") == tokenizer.encode("zebras")


@pytest.mark.parametrize("text", ["I do not know, it's a twenty-one.", "what luck!", "wait: who?"])
def test_marks_are_set_as_they_were(text: str) -> None:
    tokenizer = word_tokenizer([text])
    assert tokenizer.decode(tokenizer.encode(text)) == text.lower()
