"""Codes as sound: beside a slow float64 voice that reads the files itself, in pieces, in batches, and of a rollout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive_voice import NaiveFlow, NaiveVocoder

from paras2s_cli.models.folder import load_model
from paras2s_cli.models.prompt import spoken_queries
from paras2s_cli.models.voice.config import FlowConfig, VocoderConfig
from paras2s_cli.models.voice.flow import Chunking, Flow
from paras2s_cli.models.voice.folder import load_voice
from paras2s_cli.models.voice.vocoder import Vocoder
from paras2s_cli.models.voice.voice import Voice
from paras2s_cli.rollout.engine import rollout
from paras2s_cli.rollout.sampling import Sampling
from paras2s_cli.train.distill import codes_of_all
from tests.checkpoints import write_kimi_audio
from tests.voice_checkpoint import flow_config, vocoder_config, write_voice

SHORT = Chunking(codes=4, look_ahead=1, points=5, window=20)
HOP = 10
CODES = np.random.default_rng(3).integers(24, size=70)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = write_kimi_audio(tmp_path_factory.mktemp("kimi"))
    return write_voice(small, hidden=16, mels=6, positions=70, channels=8, rates=(5, 2))


@pytest.fixture(scope="module")
def voice(folder: Path) -> Voice:
    return load_voice(folder, chunking=SHORT)


# 14: the third chunk sees less than its past, and the fourth begins positions anew
@pytest.mark.parametrize("count", [4, 5, 14])
def test_the_waveform_is_that_of_the_naive_voice(folder: Path, count: int) -> None:
    voice = load_voice(folder, dtype=torch.float64, chunking=SHORT)
    mels = NaiveFlow(folder / "audio_detokenizer").mel(CODES[:count].tolist(), 5, chunk=4, ahead=1, points=5, window=20)
    found, wanted = voice.speak(CODES[:count], seed=5), NaiveVocoder(folder / "vocoder").joined(mels)
    assert found.dtype == np.float32 and found.shape == (count * 4 * HOP,)
    np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=0)
    assert np.abs(wanted).mean() > 0.05 and np.abs(wanted).max() < 1


def test_chunks_are_drawn_as_published(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = copy / "audio_detokenizer" / "config.yaml"
    config.write_text(config.read_text().replace("max_seq_len: 70", "max_seq_len: 4096"))
    voice, seen = load_voice(copy), []

    def note(_: Any, given: tuple) -> None:
        x, codes, time, start, past = given
        assert codes.shape == x.shape[:2]
        seen.append((time, x.shape[1], start, 0 if past is None else past[0][0].shape[2], codes[0, ::4].tolist()))

    voice.flow.speech_model.register_forward_pre_hook(note)
    waves = list(voice.stream(CODES))
    # 30 moments from 0 to 1 are 29 steps; what is finished is heard once more
    times = [int(1000 * step / 29) for step in range(29)]
    chunks = [(120, 0, 0, CODES[:30], 72), (168, 72, 72, CODES[18:60], 120), (4 * 22, 192, 192, CODES[48:], None)]
    wanted = []
    for frames, start, past, codes, kept in chunks:
        wanted += [(time, frames, start, past, codes.tolist()) for time in times]
        if kept is not None:
            wanted.append((999, kept, start, past, codes[: kept // 4].tolist()))
    assert seen == wanted
    assert [len(wave) // HOP for wave in waves] == [36, 72, 172]


def test_pieces_are_the_whole_and_need_no_more_than_their_chunk(voice: Voice) -> None:
    pieces = list(voice.stream(CODES[:15]))
    np.testing.assert_array_equal(np.concatenate(pieces), voice.speak(CODES[:15]))
    other = list(voice.stream(np.concatenate([CODES[:8], CODES[30:37]])))
    np.testing.assert_array_equal(pieces[0], other[0])
    np.testing.assert_array_equal(pieces[1], other[1])
    # the last code of a chunk is heard in the chunk that only looks ahead to it
    ahead = list(voice.stream(np.concatenate([CODES[:7], (CODES[7:8] + 1) % 24, CODES[8:15]])))
    np.testing.assert_array_equal(pieces[0], ahead[0])
    assert np.abs(pieces[1] - ahead[1]).max() > 1e-3


def test_the_same_codes_and_seed_are_the_same_waveform(voice: Voice) -> None:
    torch.manual_seed(1)
    before, state = voice.speak(CODES[:9]), torch.get_rng_state()
    torch.rand(3)
    np.testing.assert_array_equal(voice.speak(CODES[:9]), before)
    torch.set_rng_state(state)
    assert np.abs(voice.speak(CODES[:9], seed=1) - before).max() > 1e-2
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_are_their_rows_alone(voice: Voice) -> None:
    counts = [9, 0, 4, 30, 9, 5, 8, 1, 3, 12, 13, 2, 7, 6, 10, 11, 14, 9, 15]
    rows = [np.roll(CODES, i)[:count] for i, count in enumerate(counts)]
    together = voice.decode(rows)
    assert [len(wave) for wave in together] == [count * 4 * 320 for count in counts]
    assert all(wave.dtype == np.float32 for wave in together)
    for i in (0, 3, 8, 17):
        np.testing.assert_allclose(together[i], voice.decode([rows[i]])[0], atol=1e-5, rtol=0)


def test_many_are_decoded_to_the_rate_of_worlds(voice: Voice) -> None:
    spoken, decoded = voice.speak(CODES[:9]), voice.decode([CODES[:9]])[0]
    assert voice.rate == 500 and len(decoded) == len(spoken) * 32
    low = slice(0, 150)  # of 250 Hz: what no resampler takes away
    before, after = np.fft.rfft(spoken)[low], np.fft.rfft(decoded)[low] / 32
    assert np.abs(after - before).max() < 0.02 * np.abs(before).max()


def test_a_rollout_of_the_speech_lm_is_spoken(folder: Path, voice: Voice) -> None:
    model, _ = load_model(folder)
    prompts = spoken_queries([np.zeros((12, 20), np.float32)], model.config, model.specials, codes=[np.arange(3)])
    rolled = rollout(model, prompts, group=4, sampling=Sampling(1.0), seed=3, row_ids=torch.arange(4), limit=60)
    codes = codes_of_all(model, [rolled])
    assert voice.size == model.config.codes and max(len(row) for row in codes) > 4
    for row, wave in zip(codes, voice.decode(codes), strict=True):
        assert len(wave) == len(row) * 4 * 320 and np.isfinite(wave).all()


def test_bf16_is_near(folder: Path, voice: Voice) -> None:
    half = load_voice(folder, dtype=torch.bfloat16, chunking=SHORT)
    assert {p.dtype for network in (half.flow, half.vocoder) for p in network.parameters()} == {torch.bfloat16}
    spoken, near = voice.speak(CODES[:9]), half.speak(CODES[:9])
    assert near.dtype == np.float32 and np.abs(near - spoken).mean() < 0.1 * np.abs(spoken).mean()


def test_both_networks_have_as_many_tensors_as_published() -> None:
    speaking = flow_config(hidden=2304, depth=16, heads=18, codes=16384, mels=80, positions=4096)
    sounding = vocoder_config(mels=80, channels=2048, rates=[5, 2, 2, 2, 2, 3, 2], kernels=[3, 5, 7, 11], dilations=[1, 3, 5])
    with torch.device("meta"):
        flow = Flow(FlowConfig.model_validate(speaking), Chunking())
        vocoder = Vocoder(VocoderConfig.model_validate(sounding))
    learnt = [name for name, _ in vocoder.named_parameters() if not name.endswith("filter")]
    convolutions = sum(name.endswith("weight") for name in learnt)
    # counted in the published files; a convolution's weight is two tensors there
    assert len(flow.state_dict()) == 171 and len(learnt) + convolutions == 868
    assert flow.speech_model.blocks[0].attn.qkv.weight.shape == (6912, 2304) and vocoder.config.hop_size == 480
