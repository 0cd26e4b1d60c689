"""Kimi-Audio's published config.json, and configs of other models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paras2s_cli.errors import UsageError
from paras2s_cli.models.config import SpeechLMConfig
from tests.checkpoints import kimi_config

PUBLISHED = kimi_config(151643, hidden=3584, ffn=18944, heads=28, kv_heads=4, layers=28, fork=21, mimo=6, codes=16384) | {
    "kimia_adaptor_input_dim": 5120
}


def write(path: Path, **changes: object) -> Path:
    found = {key: value for key, value in (PUBLISHED | changes).items() if value is not ...}
    path.write_text(json.dumps(found, indent=2) + "\n")
    return path


def test_the_published_sizes(tmp_path: Path) -> None:
    config = SpeechLMConfig.load(write(tmp_path / "config.json"))
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.head_dim) == (3584, 18944, 28, 128)
    assert (config.num_attention_heads, config.num_key_value_heads, config.shared_layers, config.kimia_mimo_layers) == (28, 4, 22, 6)
    assert (config.vocab_size, config.kimia_token_offset, config.codes) == (168448, 152064, 16384)
    assert (config.kimia_mimo_audiodelaytokens, config.frame_features, config.encoder_features) == (6, 1280, 0)
    assert (config.rms_norm_eps, config.adaptor_norm_eps, config.rope_theta) == (1e-6, 1e-6, 1e6)


@pytest.mark.parametrize("changes", [{}, {"rope_theta": ..., "torch_dtype": ...}, {"of_a_later_version": [1, {"a": None}]}])
def test_save_writes_the_same_bytes(tmp_path: Path, changes: dict[str, object]) -> None:
    path = write(tmp_path / "config.json", **changes)
    SpeechLMConfig.load(path).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("architectures", ["Qwen2ForCausalLM"], "architectures"),
        ("tie_word_embeddings", True, "tie_word_embeddings"),
        ("hidden_act", "gelu", "hidden_act"),
        ("rope_scaling", {"type": "yarn", "factor": 4.0}, "rope_scaling"),
        ("use_whisper_feature", False, "use_whisper_feature"),
        ("kimia_mimo_audiodelaytokens", ..., "kimia_mimo_audiodelaytokens"),
        ("hidden_size", "3584", "hidden_size"),
        ("num_hidden_layers", True, "num_hidden_layers"),
        ("num_hidden_layers", 21, "kimia_mimo_transformer_from_layer_index"),
        ("num_attention_heads", 27, "num_attention_heads"),
        ("num_key_value_heads", 5, "num_key_value_heads"),
        ("num_key_value_heads", 0, "num_key_value_heads"),
    ],
)
def test_another_models_config_is_refused_by_key_and_file(tmp_path: Path, key: str, value: object, said: str) -> None:
    path = write(tmp_path / "config.json", **{key: value})
    with pytest.raises(UsageError) as caught:
        SpeechLMConfig.load(path)
    assert str(path) in str(caught.value) and said in str(caught.value) and "\n" not in str(caught.value)


def test_a_qwen2_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28}))
    with pytest.raises(UsageError, match=r"config\.json.*lacks.*kimia_token_offset"):
        SpeechLMConfig.load(path)
