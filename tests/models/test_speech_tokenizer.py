"""The speech tokenizer, loaded from its published layout, beside a slow float64 one that reads the files itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from naive_whisper import NaiveSpeechTokenizer
from naive_whisper import log_mel as naive_log_mel

from paras2s_cli.errors import UsageError
from paras2s_cli.models.log_mel import log_mel
from paras2s_cli.models.speech_tokenizer import SpeechTokenizer, load_speech_tokenizer
from tests.checkpoints import write_speech_tokenizer

CHUNK = 32000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech_tokenizer(tmp_path_factory.mktemp("speech") / "tokenizer")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> SpeechTokenizer:
    return load_speech_tokenizer(folder)


def voice(samples: int, seed: int = 1) -> np.ndarray:
    """A glide with harmonics that comes and goes, and noise."""
    rng = np.random.default_rng([seed, samples])
    t = np.arange(samples) / 16000
    pitch = 2 * np.pi * (rng.uniform(90, 240) * t + 40 * t**2)
    wave = sum(np.sin(k * pitch) / k for k in range(1, 12)) * np.sin(2 * np.pi * rng.uniform(1, 3) * t) ** 2
    return (0.2 * wave + 0.003 * rng.standard_normal(samples)).astype(np.float32)


def naive_codes(naive: NaiveSpeechTokenizer, wave: np.ndarray) -> list[int]:
    return [code for start in range(0, len(wave), CHUNK) for code in naive.codes(wave[start : start + CHUNK])]


@pytest.mark.parametrize("samples", [400, 1280, 5000, 32000])
def test_log_mel_is_that_of_the_formula(samples: int) -> None:
    whole = -(-samples // 1280) * 1280
    wave = voice(samples)
    found = log_mel(wave, 128, whole)
    assert found.shape == (128, whole // 160)
    np.testing.assert_allclose(found.T, naive_log_mel(np.pad(wave, (0, whole - samples))), atol=2e-4, rtol=0)


def test_hidden_states_are_those_of_the_naive_tokenizer(folder: Path) -> None:
    tokenizer, naive = load_speech_tokenizer(folder).double(), NaiveSpeechTokenizer(folder)
    for samples in (12345, 9000):  # 10 codes, in 3 blocks of 4; the last has 3 frames of speech, and then 1
        wave = voice(samples)
        mel = torch.from_numpy(naive_log_mel(np.pad(wave, (0, -len(wave) % 1280))).T.copy())
        found = tokenizer.pooled(mel[None], torch.tensor([-(-samples // 320)]))[0]
        np.testing.assert_allclose(found.detach().numpy(), naive.pooled(wave), atol=1e-10, rtol=0)
        assert found.abs().max() > 1


def test_codes_are_those_of_the_naive_tokenizer(folder: Path, tokenizer: SpeechTokenizer) -> None:
    naive = NaiveSpeechTokenizer(folder)
    waves = [voice(n) for n in (1, 700, 1281, 15000, CHUNK, CHUNK + 9000)]
    found = tokenizer.encode(waves)
    assert [len(codes) for codes in found] == [1, 1, 2, 12, 25, 33]
    assert [codes.tolist() for codes in found] == [naive_codes(naive, wave) for wave in waves]
    assert len(set(np.concatenate(found).tolist())) > 5


def test_padding_changes_nothing(tokenizer: SpeechTokenizer) -> None:
    waves = [voice(n, seed=2) for n in (31000, 1280, 5121, 20000, 640, 40000)]
    together = tokenizer.encode(waves)
    for wave, codes in zip(waves, together, strict=True):
        assert codes.tolist() == tokenizer.encode([wave])[0].tolist()
    tables = [torch.from_numpy(log_mel(wave, 128, len(wave))) for wave in (waves[1], waves[3][:19200])]
    for rubbish in (0.0, 50.0):
        mel = torch.full((2, 128, 160), rubbish)
        mel[0, :, :8], mel[1, :, :120] = tables
        found = tokenizer.pooled(mel, torch.tensor([4, 60]))
        for i, table in enumerate(tables):
            alone = tokenizer.pooled(table[None], torch.tensor([table.shape[1] // 2]))[0]
            torch.testing.assert_close(found[i, : len(alone)], alone, atol=2e-5, rtol=0)


def test_a_block_is_not_told_of_the_next(tokenizer: SpeechTokenizer) -> None:
    mel = torch.randn(1, 128, 96, generator=torch.Generator().manual_seed(1))
    other = mel.clone()
    other[:, :, 64:] += 1  # frames 32 and on: the third block of 16
    a, b = (tokenizer.pooled(x, torch.tensor([48]))[0] for x in (mel, other))
    torch.testing.assert_close(a[:8], b[:8], atol=1e-5, rtol=0)
    assert (a[8:] - b[8:]).abs().min(1).values.max() > 1e-3
    other = mel.clone()
    other[:, :, 62:64] += 1  # the last frame of the second block is seen by its first
    assert (tokenizer.pooled(other, torch.tensor([48]))[0, 4] - a[4]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder_causal_convolution": False}, "encoder_causal_convolution is false"),
        ({"pooling_type": "max"}, 'pooling_type is "max"'),
        ({"pooling_position": 1}, "pools where it quantizes"),
        ({"d_model": None}, "d_model is null"),
        ({"quantize_vocab_size": 25}, "codebook.weight is [24, 24], not [25, 24]"),
        ({"quantize_position": 3, "pooling_position": 3}, "missing layers.2.fc1.bias"),
    ],
)
def test_another_models_folder_is_refused(folder: Path, tmp_path: Path, changes: dict, said: str) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(UsageError) as error:
        load_speech_tokenizer(tmp_path)
    assert said in str(error.value) and str(tmp_path) in str(error.value)
