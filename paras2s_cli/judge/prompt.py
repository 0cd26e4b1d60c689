"""What a language model is told of a pair: the rubric, and what was heard as data between lines that bear a code of this call alone."""

import json
import secrets
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Any

from paras2s_cli.data.cache import content_key
from paras2s_cli.judge.stages import Utterance

FRAME = ("The code of this call is {}.", "BEGIN {}", "END {}", "Grade the answer.")
"""The lines about the data, which stands between the second and the third."""


@cache
def rubric(reply: str) -> str:
    """The text of rubric.txt, and a paragraph on how to reply."""
    text = (files("paras2s_cli.judge") / "rubric.txt").read_text(encoding="utf-8").strip()
    return f"{text}\n\n{reply}"


def heard_of(query: Utterance, answer: Utterance, requirement: str | None) -> dict[str, Any]:
    """What the model may know of a pair."""
    return {"query": _side(query), "answer": _side(answer)} | ({"requirement": requirement} if requirement else {})


def as_data(heard: dict[str, Any]) -> str:
    """One line of JSON: what was said can hold no line break, so no line of it can pass for one of the frame."""
    return json.dumps(heard, ensure_ascii=False)


def frame(data: str, nonces: Iterable[str]) -> str:
    """The user's message around `data`, with the first nonce that `data` does not hold. The data is put in once and never searched for
    blanks."""
    nonce = next(nonce for nonce in nonces if nonce not in data)
    lines = [line.format(nonce) for line in FRAME]
    return "\n".join([*lines[:2], data, *lines[2:]])


def random_nonces() -> Iterator[str]:
    """16 hex digits each, that nobody can foresee."""
    while True:
        yield secrets.token_hex(8)


def nonces_of(data: str) -> Iterator[str]:
    """16 hex digits each, the same for the same data, so that its score is too. Who would say the first would have to say its own hash."""
    return (content_key(data, turn) for turn in count())


def _side(side: Utterance) -> dict[str, str]:
    return {"words": side.heard.text, "tone": side.words}
