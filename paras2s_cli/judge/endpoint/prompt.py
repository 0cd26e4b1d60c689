"""What the endpoint is asked about a pair."""

from functools import cache
from typing import Any

from paras2s_cli.data.cache import content_key
from paras2s_cli.endpoint.client import Call, count_tokens
from paras2s_cli.judge.endpoint.verdict import SCHEMA
from paras2s_cli.judge.prompt import FRAME, as_data, frame, heard_of, random_nonces, rubric
from paras2s_cli.judge.stages import Utterance
from paras2s_cli.recipe.servers import Endpoint

REPLY = (
    "First give the reason, in one sentence that names what was heard; then content, style and score. Reply with one JSON object that has"
    " exactly the keys reason, content, style and score, and with nothing else."
)


@cache
def rubric_hash() -> str:
    """12 hex digits of the rubric, of what frames the data, and of the verdict's schema."""
    return content_key(rubric(REPLY), FRAME, SCHEMA)[:12]


def make_call(endpoint: Endpoint, query: Utterance, answer: Utterance, requirement: str | None) -> Call:
    """The request that grades one pair. The nonce, which differs in every call, is no part of its key."""
    heard = heard_of(query, answer, requirement)
    settings: dict[str, Any] = {
        endpoint.max_tokens_key: endpoint.max_tokens,
        "response_format": {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}},
    }
    if endpoint.temperature is not None:
        settings["temperature"] = endpoint.temperature
    settings |= endpoint.extra
    user = frame(as_data(heard), random_nonces())
    messages = [{"role": "system", "content": rubric(REPLY)}, {"role": "user", "content": user}]
    key = content_key(endpoint.model, endpoint.revision, rubric_hash(), heard, settings)
    return Call(key, {"model": endpoint.model, "messages": messages} | settings, count_tokens([rubric(REPLY), user]))
