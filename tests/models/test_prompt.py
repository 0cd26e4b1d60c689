"""Prompts and answers, id by id, as Kimi-Audio lays them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from naive_lm import NaiveLM
from tiny_lm import CODES, double, random_frames, tiny_model

from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.prompt import Turn, answer_hidden, codes_of, positions_left, spoken_answers, spoken_queries
from paras2s_cli.models.speech_lm import Streams
from paras2s_cli.models.tokenizer import TextTokenizer
from tests.checkpoints import write_kimi_audio

MODEL = tiny_model()
S, CONFIG = MODEL.specials, MODEL.config
B, OFFSET = S.blank, CONFIG.kimia_token_offset


@pytest.mark.parametrize("written", [False, True])
def test_a_prompt(written: bool) -> None:
    tables = random_frames([9, 4, 8])
    streams = spoken_queries(tables, CONFIG, S, answer_in_text=written)
    kind = S.speech_ct if written else S.speech_ctd
    for i, codes in enumerate((3, 1, 2)):  # four frames of 20 ms a code, the last ones perhaps not full
        row = [S.user_start, S.media_begin, *[B] * codes, S.media_end, kind, S.msg_end, S.assistant_start]
        padding = 3 - codes
        assert streams.audio[i].tolist() == [B] * padding + row
        assert streams.valid[i].tolist() == [False] * padding + [True] * len(row)
        assert streams.continuous[i].tolist() == [False] * (padding + 2) + [True] * codes + [False] * 4
        flat = streams.features[i].flatten(0, 1).numpy()  # type: ignore[index]
        np.testing.assert_array_equal(flat[: len(tables[i])], tables[i])
        assert not flat[len(tables[i]) :].any()
    assert (streams.text == B).all()


def test_a_prompt_of_kimi_audio_id_by_id(tmp_path: Path) -> None:
    """300 byte pairs, so user_start is 327, media_begin 318, media_end 320, speech_ct 332, speech_ctd 333, msg_end 302, assistant_start
    328, blank 323; codes begin at 721."""
    write_kimi_audio(tmp_path)
    config, s = SpeechLMConfig.load(tmp_path / "config.json"), TextTokenizer.load(tmp_path).specials
    short, long = random_table(12, 20), random_table(11, 20)
    codes = [np.array([7, 0]), np.array([23, 3, 3])]
    streams = spoken_queries([short, long], config, s, codes=codes)
    assert streams.audio.tolist() == [
        [323, 327, 318, 728, 721, 320, 333, 302, 328],
        [327, 318, 744, 724, 724, 320, 333, 302, 328],
    ]
    assert (streams.text == 323).all()
    assert streams.valid.int().tolist() == [[0, 1, 1, 1, 1, 1, 1, 1, 1], [1] * 9]
    assert streams.continuous.int().tolist() == [[0, 0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0, 0]]
    assert streams.features is not None and streams.features.shape == (2, 3, 4, 20)
    # four frames a code; more are dropped, fewer are silent
    np.testing.assert_array_equal(streams.features[0].reshape(12, 20).numpy(), np.concatenate([short[:8], np.zeros((4, 20))]))
    np.testing.assert_array_equal(streams.features[1].reshape(12, 20).numpy(), np.concatenate([long, np.zeros((1, 20))]))
    assert spoken_queries([long], config, s, codes=codes[1:], answer_in_text=True).audio[0, 6] == 332
    assert positions_left(streams) == 1500 - 9


def test_turns_before_a_prompt(tmp_path: Path) -> None:
    write_kimi_audio(tmp_path)
    config, s = SpeechLMConfig.load(tmp_path / "config.json"), TextTokenizer.load(tmp_path).specials
    first, second, only = random_table(4, 20), random_table(8, 20), random_table(5, 20)
    turn = Turn(first, np.array([7]), [65, 66, 67], np.array([1, 2]))
    wordy = Turn(first, np.array([7]), list(range(65, 75)), np.array([1]))
    ask, delay = [327, 318, 728, 320, 333, 302, 328], [323] * 6
    one, two, three = (
        spoken_queries([second, only], config, s, codes=[np.array([9, 10]), np.array([5])], history=[turns, []])
        for turns in ([turn], [turn, turn], [wordy])
    )
    last = [327, 318, 730, 731, 320, 333, 302, 328]
    assert one.audio[0].tolist() == [*ask, *delay, 722, 723, 302, *last]
    assert one.text[0].tolist() == [*[323] * 7, 65, 66, 67, *[323] * 6, *[323] * 8]
    assert one.continuous[0].nonzero()[:, 0].tolist() == [2, 18, 19]
    assert one.features is not None and two.features is not None
    np.testing.assert_array_equal(one.features[0].reshape(12, 20).numpy(), np.concatenate([first, second]))
    assert one.audio[1].tolist() == [323] * 17 + [327, 318, 726, 320, 333, 302, 328] and int(one.valid[1].sum()) == 7
    assert two.audio[0].tolist() == [*2 * [*ask, *delay, 722, 723, 302], *last] and two.features.shape == (2, 4, 4, 20)
    # a text longer than its speech: the audio stream waits for it
    assert three.audio[0].tolist() == [*ask, *delay, 722, 323, 323, 323, 302, *last]
    assert three.text[0, 7:18].tolist() == [*range(65, 75), 323]


def random_table(frames: int, columns: int) -> np.ndarray:
    return np.random.default_rng(frames).standard_normal((frames, columns)).astype(np.float32)


def test_repeat_puts_a_row_beside_its_copies() -> None:
    streams = spoken_queries(random_frames([9, 4]), CONFIG, S)
    wide = streams.repeat(3)
    for name in ("audio", "text", "valid", "continuous", "features"):
        once, thrice = getattr(streams, name), getattr(wide, name)
        assert len(thrice) == 6
        for row in range(6):
            assert torch.equal(thrice[row], once[row // 3])


def test_answers() -> None:
    made = spoken_answers([[30, 31], [32], [30, 31, 32, 33, 34, 35]], [[5, 0, 19], None, [7]], CONFIG, S)
    assert made.audio.tolist() == [
        [B, B, B, OFFSET + 5, OFFSET, OFFSET + 19, S.media_end],
        [B] * 7,
        [B, B, B, OFFSET + 7, S.media_end, B, B],
    ]
    assert made.text.tolist() == [
        [30, 31, S.text_eos, B, B, B, B],
        [32, S.text_eos, B, B, B, B, B],
        [30, 31, 32, 33, 34, 35, S.text_eos],
    ]
    assert made.audio_free.int().tolist() == [[0, 0, 0, 1, 1, 1, 1], [0] * 7, [0, 0, 0, 1, 1, 0, 0]]
    assert made.text_free.int().tolist() == [[1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [1] * 7]
    assert made.valid.int().tolist() == [[1] * 7, [1, 1, 0, 0, 0, 0, 0], [1] * 7]


def test_codes_come_back() -> None:
    rng = np.random.default_rng(2)
    codes = [rng.integers(0, CODES, n) for n in (1, 6, 0, 11)]
    made = spoken_answers([[30]] * 4, codes, CONFIG, S)
    for found, given in zip(codes_of(made, CONFIG), codes, strict=True):
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, given)
    for found, given in zip(codes_of(made.select(torch.tensor([3, 1])), CONFIG), (codes[3], codes[1]), strict=True):
        np.testing.assert_array_equal(found, given)


@torch.no_grad()
def test_the_hidden_state_before_a_position_predicts_it() -> None:
    model = tiny_model().double()
    naive = NaiveLM.of(model)
    lengths, texts, codes = [9, 20], [[30, 31], [32, 33, 34]], [[5, 0, 19, 4], [7]]
    prompts, answers = double(spoken_queries(random_frames(lengths), CONFIG, S)), spoken_answers(texts, codes, CONFIG, S)
    text, audio = answer_hidden(model, prompts, answers)
    assert text.shape == audio.shape == (2, 8, 32)
    for i in range(2):
        n = int(answers.valid[i].sum())
        row = Streams(
            *(
                torch.cat([p[i : i + 1], a[i : i + 1, :n]], 1)
                for p, a in (
                    (prompts.audio, answers.audio),
                    (prompts.text, answers.text),
                    (prompts.valid, answers.valid),
                    (prompts.continuous, torch.zeros_like(answers.valid)),
                )
            ),
            prompts.features[i : i + 1],
        )  # type: ignore[index]
        wanted_text, wanted_audio = naive.row(row, 0)
        np.testing.assert_allclose((text[i, :n] @ model.lm_head.weight.T).numpy(), wanted_text[-n - 1 : -1], atol=1e-5)
        np.testing.assert_allclose((audio[i, :n] @ model.mimo_output.weight.T).numpy(), wanted_audio[-n - 1 : -1], atol=1e-5)


def test_a_group_of_answers_reads_its_prompt_once() -> None:
    """Hidden states and gradients are those of every answer with a copy of its prompt, in fp64."""
    lengths, texts = [9, 20], [[30, 31], [32, 33, 34], [35], [36, 37], [30], [31, 32, 33]]
    codes = [[5, 0, 19, 4], [7], [], [1, 2], [3, 3, 3], [9, 8]]
    prompts, answers = double(spoken_queries(random_frames(lengths), CONFIG, S)), spoken_answers(texts, codes, CONFIG, S)
    found = []
    for asked in (prompts, prompts.repeat(3)):
        model = tiny_model().double()
        text, audio = answer_hidden(model, asked, answers)
        inside = answers.valid[..., None]
        torch.manual_seed(0)
        weight = torch.randn(text.shape, dtype=torch.float64)
        ((text + 2 * audio) * weight * inside).sum().backward()
        found.append(([t.detach() * inside for t in (text, audio)], [p.grad for p in model.parameters() if p.grad is not None]))
    for part in (0, 1):
        assert len(found[0][part]) == len(found[1][part])
        for once, copied in zip(found[0][part], found[1][part], strict=True):
            torch.testing.assert_close(once, copied, atol=1e-10, rtol=1e-10)
