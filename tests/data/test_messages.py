"""Conversations of other trainers become our rows."""

from __future__ import annotations

from typing import Any

import pytest

from paras2s_cli.data.messages import from_messages, is_messages
from paras2s_cli.data.rows import Demonstration, Pair, Query

ROW: dict[str, Any] = {
    "id": 3,
    "messages": [
        {"role": "system", "content": "Answer aloud."},
        {"role": "user", "content": "<audio>"},
        {"role": "assistant", "content": "Earlier. <audio>"},
        {"role": "user", "content": "<audio>Please answer."},
        {"role": "assistant", "content": "<audio>\nI am so sorry."},
    ],
    "audios": ["q0.wav", "a0.wav", "q.wav", "a.wav"],
}


def test_pair_and_demonstration() -> None:
    assert is_messages(ROW) and not is_messages({"query": "q.wav", "answer": "a.wav"})
    pair = from_messages(ROW, Pair)
    assert pair == {"id": 3, "query": "q.wav", "answer": "a.wav", "answer_text": "I am so sorry."}
    demonstration = from_messages(ROW, Demonstration)
    assert demonstration["query"] == {"id": "3", "audio": "q.wav"}
    assert (demonstration["audio"], demonstration["text"]) == ("a.wav", "I am so sorry.")


def test_parts() -> None:
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "audio", "audio": "q.wav"}, {"type": "text", "text": "x"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes."}, {"type": "audio"}]},
        ],
        "audios": ["a.wav"],
    }
    assert from_messages(row, Pair) == {"query": "q.wav", "answer": "a.wav", "answer_text": "Yes."}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"audios": ["q.wav"]}, "4 times"),
        ({"audios": "q.wav"}, "must be a list"),
        ({"messages": [{"role": "user", "content": "<audio>"}], "audios": ["q.wav"]}, "no assistant message"),
        ({"messages": [{"role": "assistant", "content": "<audio>"}], "audios": ["a.wav"]}, "no user message"),
        ({"messages": ["hello"]}, "every message needs"),
        ({"messages": [{"role": "user", "content": 5}]}, "content must be"),
    ],
)
def test_what_is_no_such_conversation(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_messages({**ROW, **change}, Pair)


def test_other_rows_have_no_such_form() -> None:
    with pytest.raises(ValueError, match="Query"):
        from_messages(ROW, Query)
