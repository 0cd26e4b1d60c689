"""/audio/transcriptions: a recording in, its words out, and when they are said where that is asked for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paras2s_cli.endpoint.cost import MILLION, Estimate
from paras2s_cli.endpoint.reply import Fault, Usage, read_json, short
from paras2s_cli.recipe.judging import Transcriptions
from paras2s_cli.recipe.servers import Endpoint, Limits

PATH = "audio/transcriptions"
TOKENS_A_SECOND = 25.0
"""Of sound that a model hears, on the safe side: Qwen2.5-Omni takes 25, GPT-4o 10."""


@dataclass(frozen=True, slots=True)
class Transcription:
    """What was said, empty where nobody speaks; and its words with the seconds from which and to which each is said, if told."""

    text: str
    words: tuple[tuple[str, float, float], ...] = ()
    usage: Usage | None = None


def count_sound(seconds: float) -> int:
    """The tokens that a recording is reckoned to be."""
    return math.ceil(seconds * TOKENS_A_SECOND)


def response_format(times: str) -> dict[str, Any]:
    """The keys of a request that say what is wanted: `word` or `none`."""
    return {"response_format": "verbose_json", "timestamp_granularities[]": "word"} if times == "word" else {"response_format": "json"}


def read_transcription(status: int, headers: Mapping[str, str], body: bytes) -> Transcription | Fault:
    """An HTTP response. `headers` has lower-case names."""
    reply = read_json(status, headers, body)
    if isinstance(reply, Fault):
        return reply
    wrong = Fault("wrong-schema", f"not a transcription: {short(str(reply))}", "yes")
    text = reply.get("text") if isinstance(reply, dict) else None
    if not isinstance(text, str):
        return wrong
    try:
        words = tuple((str(word["word"]).strip(), float(word["start"]), float(word["end"])) for word in reply.get("words") or ())
    except (KeyError, TypeError, ValueError):
        return wrong
    return Transcription(text.strip(), words) if all(map(math.isfinite, (time for word in words for time in word[1:]))) else wrong


def server_of(settings: Transcriptions) -> Endpoint:
    """The settings as a client takes them: a minute's price is that of the tokens which a minute is reckoned to be."""
    shared = {name: getattr(settings, name) for name in Limits.model_fields}
    prices = {}
    if settings.price is not None:
        prices = {"price_in": settings.price * MILLION / (60 * TOKENS_A_SECOND), "price_out": 0.0}
    return Endpoint.model_validate(shared | prices | {"base_url": settings.base_url, "model": settings.model})


def estimate(settings: Transcriptions, utterances: int, seconds: float) -> Estimate:
    """Of so many utterances that last so many seconds in all."""
    cost = None if settings.price is None else settings.price * seconds / 60
    return Estimate(utterances, count_sound(seconds), 0, cost, minutes=seconds / 60)
