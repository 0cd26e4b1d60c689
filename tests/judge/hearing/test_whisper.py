"""Whisper as the first stage, against the library's own generate on one utterance at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.hearing.pieces import cut
from paras2s_cli.judge.hearing.whisper import WhisperTranscriber
from paras2s_cli.judge.stages import Heard, Span
from paras2s_cli.recipe.judging import Whisper


def by_the_library(folder: Path, wave: np.ndarray) -> tuple[str, list[Span]]:
    """What the library's generate and its decoding make of one wave, piece for piece."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    processor, model = WhisperProcessor.from_pretrained(folder), WhisperForConditionalGeneration.from_pretrained(folder)
    texts, spans = [], []
    for start, piece in cut(wave, 32000):
        inputs = processor(piece, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
        found = model.generate(**inputs, return_token_timestamps=True, task="transcribe", language="en")
        text, more = processor.tokenizer._decode_asr(
            [{"tokens": found["sequences"], "token_timestamps": found["token_timestamps"]}],
            return_timestamps="word",
            return_language=None,
            time_precision=0.02,
        )
        texts.append(text.strip())
        for chunk in more["chunks"]:
            begin, end = (second + start / 16000 for second in chunk["timestamp"])
            spans.append(Span(chunk["text"].strip(), begin, end))
    return " ".join(texts), [span for span in spans if span.text]


@pytest.fixture(scope="module")
def whole(checkpoints: dict[str, Path], waves: list[np.ndarray]) -> list[Heard]:
    return WhisperTranscriber(Whisper(model=str(checkpoints["whisper"]), batch=4, language="en")).transcribe(waves)


def test_a_batch_is_what_the_library_hears_one_by_one(checkpoints: dict[str, Path], waves: list[np.ndarray], whole: list[Heard]) -> None:
    assert len({len(heard.text) for heard in whole}) > 2, "sequences end at different places"
    for wave, heard in zip(waves, whole, strict=True):
        text, spans = by_the_library(checkpoints["whisper"], wave)
        assert heard.text == text.strip() and heard.speech == bool(heard.text) and not heard.known
        assert [span.text for span in heard.spans] == [span.text for span in spans]
        # the library rounds to hundredths
        np.testing.assert_allclose([span[1:] for span in heard.spans], [span[1:] for span in spans], atol=0.0051)


def test_a_batch_is_what_is_heard_alone(checkpoints: dict[str, Path], waves: list[np.ndarray]) -> None:
    for family in ("whisper", "timeless"):
        transcriber = WhisperTranscriber(Whisper(model=str(checkpoints[family]), batch=4))
        assert [transcriber.transcribe([wave])[0] for wave in waves[:3]] == transcriber.transcribe(waves)[:3]


def test_times_where_the_model_tells_them(checkpoints: dict[str, Path], waves: list[np.ndarray], whole: list[Heard]) -> None:
    timeless = WhisperTranscriber(Whisper(model=str(checkpoints["timeless"]), language="de"))
    assert timeless.name.endswith(" de segment")
    spans = [span for heard in timeless.transcribe(waves) for span in heard.spans]
    assert spans and all(span.text and span.begin <= span.end for span in spans)
    none = WhisperTranscriber(Whisper(model=str(checkpoints["whisper"]), times="none", language="en")).transcribe(waves[:2])
    assert [(heard.text, heard.spans) for heard in none] == [(heard.text, ()) for heard in whole[:2]]


def test_segments_are_between_two_times(checkpoints: dict[str, Path]) -> None:
    transcriber = WhisperTranscriber(Whisper(model=str(checkpoints["timeless"])))
    tokenizer, first = transcriber._tokenizer, transcriber._model.generation_config.no_timestamps_token_id + 1
    happy, calm = (tokenizer(word, add_special_tokens=False).input_ids for word in (" happy", " calm"))
    body = [first, *happy, first + 30, first + 40, *calm, *happy, first + 99, first + 99, *calm]
    spans = transcriber._segments(body)
    assert [span.text for span in spans] == ["happy", "calm happy"]
    np.testing.assert_allclose([span[1:] for span in spans], [(0, 0.6), (0.8, 1.98)])


def test_a_piece_without_speech_has_no_words(checkpoints: dict[str, Path], waves: list[np.ndarray]) -> None:
    transcriber = WhisperTranscriber(Whisper(model=str(checkpoints["whisper"])))
    config = transcriber._model.generation_config
    logprobs = torch.full((8, transcriber._model.config.vocab_size), -5.0)
    row = [0, 0, 0, 0, 1, 2]
    assert not transcriber._is_silent(logprobs, row), "unsure of the words, but of speech as well"
    logprobs[0, config.no_timestamps_token_id - 1] = -0.1
    assert transcriber._is_silent(logprobs, row)
    logprobs[[3, 4, 5], [1, 2, config.eos_token_id]] = -0.5
    assert not transcriber._is_silent(logprobs, row), "sure of its words"
    transcriber._is_silent = lambda *_: True  # type: ignore[method-assign]
    assert transcriber.transcribe(waves[:1]) == [Heard("", False, False, "noise")]


def test_what_cannot_be_loaded_is_a_sentence(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for model, language, why in (
        (str(tmp_path / "none"), "", "transcribe.model is a folder"),
        (str(checkpoints["qwen2_audio"]), "", "is a model of type 'qwen2_audio', and not whisper"),
        (str(checkpoints["whisper"]), "xx", "does not know 'xx'"),
    ):
        with pytest.raises(UsageError, match=why) as error:
            WhisperTranscriber(Whisper(model=model, language=language))
        assert "\n" not in str(error.value)


def test_a_folder_that_lacks_weights_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    part = tmp_path / "part"
    part.mkdir()
    for path in checkpoints["whisper"].iterdir():
        (part / path.name).write_bytes(path.read_bytes())
    weights = load_file(part / "model.safetensors")
    weights.pop("model.encoder.conv1.weight")
    save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="lacks 1 of its weights"):
        WhisperTranscriber(Whisper(model=str(part)))
