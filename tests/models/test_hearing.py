"""What Kimi-Audio hears, from the waveform to the embeddings, beside slow float64 models that read the files themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from naive_lm import NaiveLM, legal
from naive_whisper import NaiveSpeechTokenizer, NaiveWhisper

from paras2s_cli.errors import UsageError
from paras2s_cli.models.folder import load_model, save_model
from paras2s_cli.models.hearing import Hearing
from paras2s_cli.models.prompt import spoken_queries
from paras2s_cli.models.speech_lm import SpeechLM, causal
from tests.checkpoints import SPEECH_TOKENIZER, write_kimi_audio_that_hears
from tests.voice_checkpoint import write_voice

CHUNK = 32000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kimi_audio_that_hears(tmp_path_factory.mktemp("kimi"))


@pytest.fixture(scope="module")
def model(folder: Path) -> SpeechLM:
    return load_model(folder)[0]


def hearing_of(model: SpeechLM) -> Hearing:
    assert model.hearing is not None
    return model.hearing


def noise(samples: int) -> np.ndarray:
    rng = np.random.default_rng([7, samples])
    envelope = np.repeat(rng.uniform(0, 1, samples // 800 + 1), 800)[:samples]
    return (envelope * rng.standard_normal(samples) * 0.1).astype(np.float32)


def test_codes_and_features_are_those_of_the_naive_encoders(folder: Path, model: SpeechLM) -> None:
    hearing = hearing_of(model)
    hearing.dtype = torch.float32  # of this checkpoint it is bf16
    whisper, tokenizer = NaiveWhisper(folder / "whisper-large-v3"), NaiveSpeechTokenizer(folder.parent / SPEECH_TOKENIZER)
    waves = [noise(n) for n in (5000, CHUNK + 1300)]
    for wave, heard in zip(waves, hearing.hear(waves), strict=True):
        chunks = [wave[start : start + CHUNK] for start in range(0, len(wave), CHUNK)]
        assert heard.codes.tolist() == [code for chunk in chunks for code in tokenizer.codes(chunk)]
        np.testing.assert_allclose(heard.frames, np.concatenate([whisper.features(chunk) for chunk in chunks]), atol=2e-3, rtol=0)
        assert len(heard.frames) == 4 * len(heard.codes) == 4 * -(-len(wave) // 1280)
        assert heard.frames.dtype == np.float32 and np.abs(heard.frames).max() > 2
        alone = hearing.hear([wave])[0]
        np.testing.assert_allclose(alone.frames, heard.frames, atol=1e-4, rtol=0)
        assert alone.codes.tolist() == heard.codes.tolist()


def test_autocast_does_not_reach_what_hears(model: SpeechLM) -> None:
    plain = hearing_of(model).hear([noise(2600)])[0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = hearing_of(model).hear([noise(2600)])[0]
    assert np.array_equal(cast.frames, plain.frames) and np.array_equal(cast.codes, plain.codes)


@torch.no_grad()
def test_logits_after_a_heard_query_are_those_of_the_naive_model(folder: Path) -> None:
    model = load_model(folder)[0].double()
    hearing = hearing_of(model)
    hearing.dtype = torch.float32
    waves = [noise(n) for n in (4000, 6500)]
    heard = hearing.hear(waves)
    prompts = spoken_queries([h.frames for h in heard], model.config, model.specials, codes=[h.codes for h in heard])
    text, audio = model.hidden(model.embed(prompts), *causal(prompts.valid))
    naive, whisper = NaiveLM.read(folder), NaiveWhisper(folder / "whisper-large-v3")
    s, offset = model.specials, model.config.kimia_token_offset
    for i, wave in enumerate(waves):
        codes = NaiveSpeechTokenizer(folder.parent / SPEECH_TOKENIZER).codes(wave)
        ids = [s.user_start, s.media_begin, *(c + offset for c in codes), s.media_end, s.speech_ctd, s.msg_end, s.assistant_start]
        loud = [2 <= place < 2 + len(codes) for place in range(len(ids))]
        wanted = legal(model, *naive.logits(ids, [s.blank] * len(ids), loud, whisper.features(wave)))
        for found, logits in zip((model.text_logits(text), model.audio_logits(audio)), wanted, strict=True):
            np.testing.assert_allclose(found[i, -len(ids) :].numpy(), logits, atol=2e-3, rtol=0)
            assert np.abs(logits).max() > 3


def test_a_saved_model_hears_with_the_same_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    save_model(tmp_path / "sft", *load_model(folder))
    again = load_model(tmp_path / "sft")[0]
    assert not (tmp_path / "sft" / "whisper-large-v3").exists()
    wave = noise(3000)
    a, b = (hearing_of(each).hear([wave])[0] for each in (load_model(folder)[0], again))
    assert a.codes.tolist() == b.codes.tolist() and np.array_equal(a.frames, b.frames)


def test_the_voice_is_where_the_checkpoint_is_and_not_where_whisper_is(folder: Path, tmp_path: Path) -> None:
    base, elsewhere = shutil.copytree(folder, tmp_path / "kimi"), tmp_path / "elsewhere"
    shutil.move(base / "whisper-large-v3", elsewhere)
    write_voice(base)

    def voice(place: Path) -> Path:
        hearing = load_model(place)[0].hearing
        assert hearing is not None and hearing.whisper.is_dir()
        return hearing.voice.resolve()

    (base / "whisper-large-v3").symlink_to(elsewhere)
    for name in ("linked", "told"):
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, *load_model(base))
        assert voice(base) == voice(tmp_path / name) == base.resolve()
        (base / "whisper-large-v3").unlink(missing_ok=True)
        (base / "hearing.json").write_text(json.dumps({"whisper": "../elsewhere"}))
    # of a model that was saved before the voice had a place of its own
    (tmp_path / "told" / "hearing.json").write_text(json.dumps({"whisper": str(folder / "whisper-large-v3")}))
    assert voice(tmp_path / "told") == folder.resolve()


def test_what_is_missing_or_of_another_model_is_said(folder: Path, tmp_path: Path) -> None:
    there = shutil.copytree(folder, tmp_path / "kimi")

    def said() -> str:
        with pytest.raises(UsageError) as error:
            hearing_of(load_model(there)[0]).hear([noise(2000)])
        return str(error.value)

    assert str(tmp_path / SPEECH_TOKENIZER) in said() and "download" in said()
    (there / "hearing.json").write_text('{"speech_tokenizer": 3}')
    assert "hearing.json" in said()
    (there / "hearing.json").write_text(json.dumps({"speech_tokenizer": str(folder.parent / SPEECH_TOKENIZER)}))
    config = json.loads((there / "whisper-large-v3" / "config.json").read_text())
    (there / "whisper-large-v3" / "config.json").write_text(json.dumps(config | {"d_model": 16}))
    assert "does not fit the config beside it" in said()
    (there / "whisper-large-v3" / "model.safetensors").rename(there / "whisper-large-v3" / "pytorch_model.bin")
    assert "is a pickle" in said()
    shutil.rmtree(there / "whisper-large-v3")
    assert "there is no Whisper" in said()
