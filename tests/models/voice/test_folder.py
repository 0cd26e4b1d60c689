"""A voice's files, and what is said where one is missing, damaged or another's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from paras2s_cli.errors import UsageError
from paras2s_cli.models.voice.folder import load_voice
from tests.checkpoints import write_kimi_audio
from tests.voice_checkpoint import write_voice

SMALL = {"hidden": 16, "depth": 1, "mels": 6, "channels": 8}
FLOW, VOCODER = "audio_detokenizer", "vocoder"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voice(write_kimi_audio(tmp_path_factory.mktemp("kimi")), **SMALL, rates=(5, 2))


@pytest.fixture
def folder(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "copy"))


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_voice(folder)
    said = str(caught.value)
    assert str(folder) in said and "\n" not in said
    return said


def change_flow(folder: Path, **fields: object) -> None:
    path = folder / FLOW / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["dit"] |= fields
    path.write_text(yaml.safe_dump(config))


def test_what_is_of_training_is_left_alone(folder: Path) -> None:
    assert load_file(folder / FLOW / "model.safetensors").keys() >= {"global_step", "ema.input_linear.weight"}
    voice = load_voice(folder)
    assert voice.size == 24 and not any(p.requires_grad for p in voice.flow.parameters())


@pytest.mark.parametrize("name", [FLOW, VOCODER])
def test_the_published_pickles_are_never_read(converted: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(converted / "config.json", tmp_path)
    write_voice(tmp_path, **SMALL, rates=(5, 2), pickled=True)
    for other in {FLOW, VOCODER} - {name}:
        shutil.copy(converted / other / "model.safetensors", tmp_path / other)
    assert f"{tmp_path / name / 'model.pt'} is a pickle" in refusal(tmp_path) and "paras2s convert" in refusal(tmp_path)


def test_every_fault_of_the_tensors_is_named(folder: Path) -> None:
    path = folder / FLOW / "model.safetensors"
    tensors = load_file(path)
    del tensors["speech_model.blocks.0.mlp.fc1.bias"]
    save_file({**tensors, "speech_model.extra": torch.zeros(1), "speech_model.input_linear.bias": torch.zeros(3)}, path)
    said = refusal(folder)
    for part in (
        "missing speech_model.blocks.0.mlp.fc1.bias",
        "unexpected speech_model.extra",
        "speech_model.input_linear.bias is [3], not [16]",
    ):
        assert part in said


def test_so_is_every_fault_of_the_vocoders(folder: Path) -> None:
    path = folder / VOCODER / "model.safetensors"
    tensors = load_file(path)
    del tensors["ups.1.0.weight_g"], tensors["activation_post.downsample.lowpass.filter"]
    tensors["conv_pre.weight"] = tensors.pop("conv_pre.weight_v")
    save_file(tensors, path)
    said = refusal(folder)
    for part in (
        "missing ups.1.0.weight_g",
        "missing activation_post.downsample.lowpass.filter",
        "missing conv_pre.weight_v",
        "unexpected conv_pre.weight",
    ):
        assert part in said


def test_every_fault_of_a_config_is_named(folder: Path) -> None:
    change_flow(folder, position_embedding_type="sincos", depth="two", num_heads=3)
    said = refusal(folder)
    assert "config.yaml" in said and "model.dit.position_embedding_type" in said and "model.dit.depth" in said
    change_flow(folder, position_embedding_type="skip", depth=1)
    assert "hidden_size 16 does not give 3 heads" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hop_size", 480, "upsample_rates multiply to 10, not to hop_size 480"),
        ("upsample_kernel_sizes", [9], "not as many upsample_kernel_sizes as upsample_rates"),
        ("upsample_kernel_sizes", [8, 4], "upsample_kernel_sizes must exceed upsample_rates by even numbers"),
        ("resblock_dilation_sizes", [[1]], "not as many resblock_dilation_sizes as resblock_kernel_sizes"),
        ("resblock_kernel_sizes", [3, 4], "resblock_kernel_sizes must be odd"),
        ("upsample_initial_channel", 6, "upsample_initial_channel cannot be halved 2 times"),
        ("activation", "snake", "activation: "),
    ],
)
def test_a_vocoder_that_cannot_be(folder: Path, key: str, value: object, said: str) -> None:
    path = folder / VOCODER / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert said in refusal(folder)


@pytest.mark.parametrize("content", ["", "[", "a: [b\nc"])
@pytest.mark.parametrize("file", [f"{FLOW}/config.yaml", f"{VOCODER}/config.json"])
def test_a_config_that_is_none(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    assert file in refusal(folder)


@pytest.mark.parametrize("name", [FLOW, VOCODER])
def test_a_folder_without_a_voice(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)
    assert f"has no {name}/, so that it has no voice" in refusal(folder)


def test_parts_of_two_checkpoints(folder: Path) -> None:
    change_flow(folder, semantic_vocab_size=25)
    assert "the speech LM has 24 audio codes, but audio_detokenizer/config.yaml says semantic_vocab_size 25" in refusal(folder)
    change_flow(folder, semantic_vocab_size=24, input_size=7)
    assert "audio_detokenizer/ has 7 mel bins, but vocoder/ 6" in refusal(folder)
