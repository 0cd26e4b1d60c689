"""Qwen2.5-Omni's folder: what is read, what is asked of it, what is written back, and what a damaged one says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from paras2s_cli.errors import UsageError
from paras2s_cli.models.omni import SYSTEM, QwenOmni, audio_tokens
from tests.qwen2_5_omni import CODES, EOS, PAD, write_qwen2_5_omni


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen2_5_omni(tmp_path_factory.mktemp("omni"))


@pytest.fixture(scope="module")
def omni(folder: Path) -> QwenOmni:
    return QwenOmni.load(folder)


def test_a_round_trip_is_bit_equal_and_in_the_published_layout(omni: QwenOmni, folder: Path, tmp_path: Path) -> None:
    omni.save(tmp_path)
    wanted, found = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    # the published names, not those of the library's own modules
    names = ["thinker.model.embed_tokens.weight", "thinker.lm_head.weight", "thinker.audio_tower.conv1.weight", "talker.codec_head.weight"]
    assert all(name in found for name in [*names, "talker.model.layers.1.mlp.up_proj.weight", "talker.thinker_to_talker_proj.bias"])
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in folder.iterdir()}
    assert (tmp_path / "spk_dict.pt").read_bytes() == (folder / "spk_dict.pt").read_bytes()
    again = QwenOmni.load(tmp_path).model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in omni.model.state_dict().items())


def test_half_precision_is_kept_but_for_the_vocoder(omni: QwenOmni, tmp_path: Path) -> None:
    half = QwenOmni.load(omni.folder, dtype=torch.bfloat16)
    assert half.model.thinker.dtype == half.model.talker.dtype == torch.bfloat16 and half.model.token2wav.dtype == torch.float32


def test_a_prompt_is_the_chat_with_as_many_places_as_the_encoder_gives(omni: QwenOmni) -> None:
    waves = [np.random.default_rng(n).normal(size=n).astype(np.float32) for n in (16000, 7000)]
    prompts = omni.prompt(waves)
    first, second = (omni.tokenizer.decode(ids[valid]) for ids, valid in zip(prompts.ids, prompts.valid, strict=True))
    chat = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|audio_bos|>%s<|audio_eos|><|im_end|>\n<|im_start|>assistant\n"
    assert first == chat % ("<|AUDIO|>" * 25) and second == chat % ("<|AUDIO|>" * 11)
    assert prompts.frames.sum(1).tolist() == [100, 44] and prompts.valid[:, -1].all() and not prompts.valid[1, :14].any()
    # five minutes of padding, as in the published processor, change nothing
    published = omni.extractor(waves, sampling_rate=16000, padding="max_length", return_tensors="pt")["input_features"]
    for mel, whole, heard in zip(prompts.mel, published, prompts.frames, strict=True):
        torch.testing.assert_close(mel[:, heard], whole[:, : int(heard.sum())], atol=1e-6, rtol=0)
    encoder = omni.model.thinker.get_audio_features(prompts.mel, feature_attention_mask=prompts.frames.long())
    assert [audio_tokens(n) for n in (100, 44)] == [25, 11] and len(encoder.last_hidden_state) == 36


def test_ids_that_may_be_drawn(omni: QwenOmni) -> None:
    banned = torch.nonzero(omni.text_banned)[:, 0].tolist()
    assert sorted(omni.tokenizer.convert_ids_to_tokens(banned)) == ["<|AUDIO|>", "<|IMAGE|>", "<|VIDEO|>"]
    assert torch.nonzero(~omni.audio_banned)[:, 0].tolist() == [*range(CODES + 1), PAD, EOS]
    assert omni.tokenizer.convert_ids_to_tokens(omni.text_ends.tolist()) == ["<|im_end|>"]


def test_speech_hangs_on_codes_and_seed_alone(omni: QwenOmni) -> None:
    codes = [np.array([3, 1, 4]), np.zeros(0, dtype=np.int64), np.array([3, 1, 4]), np.array([3, 1, 5])]
    state = torch.random.get_rng_state()
    waves = omni.speak(codes, [8, 8, 9, 8])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [len(w) for w in waves] == [1440, 0, 1440, 1440] and waves[0].dtype == np.float32
    assert np.array_equal(omni.speak(codes[:1], [8])[0], waves[0])
    assert not np.array_equal(waves[0], waves[2]) and not np.array_equal(waves[0], waves[3])


def test_text_up_to_its_end(omni: QwenOmni) -> None:
    ids = omni.tokenizer("so it is<|im_end|>late", return_tensors="pt")["input_ids"][0]
    assert omni.written(ids) == "so it is" and omni.written(ids[:4]) == "so i"


def test_demonstrations_as_targets(omni: QwenOmni) -> None:
    made = omni.answers(["so", "it is"], [np.array([5, 9, 2]), None])
    end = int(omni.text_ends[0])
    assert made.text.tolist() == [[*omni.tokenizer("so")["input_ids"], end, end, end, end], [*omni.tokenizer("it is")["input_ids"], end]]
    assert made.text_free.sum(1).tolist() == [3, 6] and made.audio.tolist() == [[5, 9, 2, EOS], [EOS] * 4]
    assert made.audio_free.tolist() == [[True] * 4, [False] * 4]
    assert [c.tolist() for c in omni.codes_of(made)] == [[5, 9, 2], []]
    assert not omni.answers(["so"], [None]).audio_free.any()


@pytest.mark.parametrize("part", ["talker", "thinker", "both"])
def test_what_learns(omni: QwenOmni, part: str) -> None:
    modules = omni.learn(part)  # type: ignore[arg-type]
    learning = {".".join(name.split(".")[:2]) for name, weight in omni.model.named_parameters() if weight.requires_grad}
    assert sum(w.numel() for m in modules for w in m.parameters()) == sum(w.numel() for w in omni.model.parameters() if w.requires_grad)
    talker = {"talker.model", "talker.codec_head", "talker.thinker_to_talker_proj"}
    thinker = {"thinker.model", "thinker.lm_head"}
    assert learning == {"talker": talker, "thinker": thinker, "both": talker | thinker}[part]
    assert not any(w.requires_grad for n, w in omni.model.named_parameters() if "audio_tower" in n or "visual" in n or "token2wav" in n)


def test_a_pickle_is_not_read(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    with pytest.raises(UsageError, match=r"pytorch_model.bin is a pickle, .*`paras2s convert .*pytorch_model.bin`"):
        QwenOmni.load(tmp_path / "copy")


@pytest.mark.slow
def test_what_a_damaged_folder_says(folder: Path, tmp_path: Path) -> None:
    def broken(name: str, content: str | bytes | None) -> str:
        copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, copy)
        (copy / name).unlink()
        if content is not None:
            (copy / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UsageError) as caught:
            QwenOmni.load(copy)
        assert "\n" not in str(caught.value) and str(copy) in str(caught.value)
        return str(caught.value)

    config = json.loads((folder / "config.json").read_text())
    assert "'whisper'" in broken("config.json", json.dumps({**config, "model_type": "whisper"}))
    assert "name the folder of a checkpoint" in broken("config.json", None)
    assert "download it again" in broken("model.safetensors", b"cut short")
    assert "download it again" in broken("model.safetensors", None)
    assert "download it again" in broken("tokenizer.json", "[]") and "download it again" in broken("preprocessor_config.json", None)
    assert "spk_dict.pt" in broken("spk_dict.pt", None) and "download it again" in broken("spk_dict.pt", b"no pickle")
    tensors = load_file(folder / "model.safetensors")
    del tensors["talker.codec_head.weight"]
    tensors["thinker.lm_head.weight"] = tensors["thinker.lm_head.weight"][:7]
    said = broken("model.safetensors", save(tensors, metadata={"format": "pt"}))
    assert "missing talker.codec_head.weight, thinker.lm_head.weight is [7, 32], not [272, 32]" in said
    with pytest.raises(UsageError, match=r"no voice 'Chester': it has Chelsie, Ethan"):
        QwenOmni.load(folder, speaker="Chester")
    with pytest.raises(UsageError, match="neither a folder nor a model"):
        QwenOmni.load("no/such/folder")
