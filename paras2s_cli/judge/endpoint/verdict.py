"""What an endpoint sent, read: a verdict, or why there is none."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paras2s_cli.data.rows import Failure

Grade = Annotated[int, Field(ge=1, le=5, strict=True)]
_SHOWN = 200


class Opinion(BaseModel):
    """The verdict as the model writes it: the reason first, so that the grades follow from it."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    content: Grade
    style: Grade
    score: Grade


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}}
    | {name: {"type": "integer", "enum": [1, 2, 3, 4, 5]} for name in ("content", "style", "score")},
    "required": ["reason", "content", "style", "score"],
    "additionalProperties": False,
}
"""`Opinion` in the subset of JSON Schema that every server's constrained decoding knows."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request and of its reply, as the server counted them."""

    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict, and the message it was read from."""

    opinion: Opinion
    text: str
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no verdict. `wait`: the seconds that the server asks for."""

    failure: Failure
    reason: str
    retry: Literal["yes", "once", "no"] = "no"
    """`once`: the server did its work and would be paid again."""
    congestion: bool = False
    wait: float | None = None
    usage: Usage | None = None
    fatal: bool = False
    """No other pair can fare better."""


def read_response(status: int, headers: Mapping[str, str], body: bytes) -> Answer | Fault:
    """An HTTP response of /chat/completions. `headers` has lower-case names."""
    if status == 200:
        return _read_completion(headers, body)
    says = f"HTTP {status}: {_message(body)}"
    if status == 429 and _code(body) == "insufficient_quota":
        return Fault("rate-limited", says, fatal=True)
    if status == 429:
        return Fault("rate-limited", says, "yes", congestion=True, wait=retry_after(headers))
    if status in (408, 409, 425) or status >= 500:
        return Fault("server-error", says, "yes", congestion=True, wait=retry_after(headers))
    if status == 400 and _code(body) in ("content_filter", "content_policy_violation"):
        return Fault("refusal", says)
    return Fault("rejected", says, fatal=status in (401, 402, 403, 404, 405))


def read_completion(reply: Any) -> Answer | Fault:
    """A chat completion, parsed. The last verdict in its message counts."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Fault("wrong-schema", f"not a chat completion: {_short(json.dumps(reply))}", "yes")
    usage, finish, text = _usage(reply), choice.get("finish_reason"), message.get("content")
    if message.get("refusal") or finish == "content_filter":
        return Fault("refusal", f"refused: {_short(str(message.get('refusal') or finish))}", usage=usage)
    if finish == "length":
        return Fault("truncated-json", "the reply was cut at max_tokens; raise score.max_tokens", "once", usage=usage)
    if text is not None and not isinstance(text, str):
        return Fault("wrong-schema", f"the message is no text: {_short(json.dumps(text))}", "once", usage=usage)
    if not text or not text.strip():
        return Fault("empty", "the message is empty", "once", usage=usage)
    return read_message(text, usage)


def read_message(text: str, usage: Usage | None) -> Answer | Fault:
    """The text of a reply: of all JSON objects in it the last, which has to be a verdict."""
    found: Any = None
    broken, place, decoder = False, text.find("{"), json.JSONDecoder()
    while place >= 0:
        try:
            found, end = decoder.raw_decode(text, place)
            broken = False
        except ValueError:
            broken, end = True, place + 1
        except RecursionError:
            broken, end = True, len(text)
        place = text.find("{", end)
    if broken:
        return Fault("truncated-json", f"the verdict is not whole JSON: {_short(text)}", "once", usage=usage)
    try:
        return Answer(Opinion.model_validate(found), text, usage)
    except ValidationError as error:
        what = "no verdict" if found is None else "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return Fault("wrong-schema", f"{what}: {_short(text)}", "once", usage=usage)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After asks for, which is a number or a date; None where there is none that can be read."""
    text = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _read_completion(headers: Mapping[str, str], body: bytes) -> Answer | Fault:
    if not body.strip():
        return Fault("empty", "the response is empty", "yes")
    if "html" in headers.get("content-type", "") or body.lstrip()[:1] == b"<":
        return Fault("html", f"a page and no JSON: {_short(body.decode('utf-8', 'replace'))}", "yes")
    try:
        return read_completion(json.loads(body))
    except (ValueError, RecursionError):
        return Fault("truncated-json", f"the response is not whole JSON: ...{body[-60:].decode('utf-8', 'replace')}", "yes")


def _usage(reply: Mapping[str, Any]) -> Usage | None:
    usage = reply.get("usage")
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    whole = [count for count in counts if isinstance(count, int) and count >= 0]
    return Usage(*whole) if len(whole) == 2 else None


def _error(body: bytes) -> Any:
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return reply.get("error", reply) if isinstance(reply, dict) else None


def _code(body: bytes) -> Any:
    error = _error(body)
    return error.get("code") if isinstance(error, dict) else None


def _message(body: bytes) -> str:
    """What an error response says, whatever shape it has."""
    error = _error(body)
    said = error.get("message") if isinstance(error, dict) else error
    return _short(str(said) if said else body.decode("utf-8", "replace"))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
