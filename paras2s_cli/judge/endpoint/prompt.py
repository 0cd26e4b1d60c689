"""What the endpoint is asked: the rubric, and what was heard as data between lines that bear a code of this call alone."""

import json
import secrets
from functools import cache
from importlib.resources import files
from typing import Any

from paras2s_cli.data.cache import content_key
from paras2s_cli.endpoint.client import Call, count_tokens
from paras2s_cli.judge.endpoint.verdict import SCHEMA
from paras2s_cli.judge.stages import Utterance
from paras2s_cli.recipe.schema import Endpoint

FRAME = ("The code of this call is {}.", "BEGIN {}", "END {}", "Grade the answer.")
"""The lines about the data, which stands between the second and the third."""


@cache
def rubric() -> str:
    """The text of rubric.txt."""
    return (files("paras2s_cli.judge.endpoint") / "rubric.txt").read_text(encoding="utf-8").strip()


@cache
def rubric_hash() -> str:
    """12 hex digits of the rubric, of what frames the data, and of the verdict's schema."""
    return content_key(rubric(), FRAME, SCHEMA)[:12]


def make_call(endpoint: Endpoint, query: Utterance, answer: Utterance, requirement: str | None) -> Call:
    """The request that grades one pair. The nonce, which differs in every call, is no part of its key."""
    heard = {"query": _side(query), "answer": _side(answer)} | ({"requirement": requirement} if requirement else {})
    settings: dict[str, Any] = {
        endpoint.max_tokens_key: endpoint.max_tokens,
        "response_format": {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}},
    }
    if endpoint.temperature is not None:
        settings["temperature"] = endpoint.temperature
    settings |= endpoint.extra
    # One line of JSON: what was said can hold no line break, so no line of it can pass for one of the frame.
    user = frame(json.dumps(heard, ensure_ascii=False))
    messages = [{"role": "system", "content": rubric()}, {"role": "user", "content": user}]
    key = content_key(endpoint.model, endpoint.revision, rubric_hash(), heard, settings)
    return Call(key, {"model": endpoint.model, "messages": messages} | settings, count_tokens([rubric(), user]))


def frame(data: str) -> str:
    """The user's message around `data`, with a nonce that `data` does not hold. The data is put in once and never searched for blanks."""
    nonce = secrets.token_hex(8)
    while nonce in data:
        nonce = secrets.token_hex(8)
    lines = [line.format(nonce) for line in FRAME]
    return "\n".join([*lines[:2], data, *lines[2:]])


def _side(side: Utterance) -> dict[str, str]:
    return {"words": side.heard.text, "tone": side.words}
