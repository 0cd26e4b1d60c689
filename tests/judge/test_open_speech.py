"""pocketsphinx on speech from outside the world, and who is asked: it alone for what no known text fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from paras2s_cli.judge.ears import Describer, Transcriber
from paras2s_cli.judge.listener import Knowledge, SmallListener
from paras2s_cli.judge.open_speech import OpenTranscriber

Speak = Callable[..., np.ndarray]
TEXTS = ("please turn off the lights before you leave", "my computer will not start this morning")


def test_common_words_are_heard_and_every_utterance_by_itself(speak: Speak) -> None:
    ears, waves = OpenTranscriber(), [speak(text, "bob", "neutral") for text in TEXTS]
    first = [ears.transcribe(wave) for wave in waves]
    for text, heard in zip(TEXTS, first, strict=True):
        assert len(set(text.split()) & set(heard.split())) >= 3, heard
    assert [ears.transcribe(wave) for wave in reversed(waves)] == first[::-1]
    assert OpenTranscriber().transcribe(waves[1]) == first[1]


def test_nothing_is_heard_in_nothing() -> None:
    ears = OpenTranscriber()
    assert ears.transcribe(np.zeros(16000, np.float32)) == "" and ears.transcribe(np.zeros(0, np.float32)) == ""


def test_the_listener_asks_it_for_unknown_speech_alone(speak: Speak) -> None:
    torch.manual_seed(0)
    told = Knowledge("small", ["hello there"], ["yes"], ["happy", "sad"], ["calm", "gentle"], -1.0)
    wave, silence = speak(TEXTS[0]), np.zeros(8000, np.float32)
    listener = SmallListener(Transcriber(), Describer(4), told, 1)
    spelled = listener.listen([wave], "query")[0]
    listener.open_speech = OpenTranscriber()
    heard, nothing = listener.listen([wave, silence], "query")
    assert heard.heard.text == OpenTranscriber().transcribe(wave) != spelled.heard.text and not heard.heard.known
    assert heard.toned.tones["sad"] == pytest.approx(spelled.toned.tones["sad"], abs=1e-5)
    assert (nothing.heard.text, nothing.heard.speech) == ("", False)
    listener.knowledge = dataclasses.replace(told, worst_fit=1e9)
    assert listener.listen([wave], "query")[0].heard.text == "hello there"
