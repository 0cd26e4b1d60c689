"""What any request to a server can end in: the tokens that were counted, or a fault, read from the HTTP response."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from paras2s_cli.data.rows import Failure

_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request and of its reply, as the server counted them."""

    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no result. `wait`: the seconds that the server asks for."""

    failure: Failure
    reason: str
    retry: Literal["yes", "once", "no"] = "no"
    """`once`: the server did its work and would be paid again."""
    congestion: bool = False
    wait: float | None = None
    usage: Usage | None = None
    fatal: bool = False
    """No other request can fare better."""


@dataclass(frozen=True, slots=True)
class Message:
    """The message of a chat completion, as the server sent it, and the tokens that were counted."""

    fields: Mapping[str, Any]
    usage: Usage | None


def read_fault(status: int, headers: Mapping[str, str], body: bytes) -> Fault | None:
    """What an HTTP status says is wrong; None for 200. `headers` has lower-case names."""
    if status == 200:
        return None
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


def read_body(headers: Mapping[str, str], body: bytes) -> bytes | Fault:
    """The body of a response with status 200; a fault where there is none, or a page of HTML."""
    if not body.strip():
        return Fault("empty", "the response is empty", "yes")
    if "html" in headers.get("content-type", "") or body.lstrip()[:1] == b"<":
        return Fault("html", f"a page and no JSON: {short(body.decode('utf-8', 'replace'))}", "yes")
    return body


def read_json(status: int, headers: Mapping[str, str], body: bytes) -> Any:
    """The JSON value of a response, or a Fault."""
    found = read_fault(status, headers, body) or read_body(headers, body)
    if isinstance(found, Fault):
        return found
    try:
        return json.loads(found)
    except (ValueError, RecursionError):
        return Fault("truncated-json", f"the response is not whole JSON: ...{body[-60:].decode('utf-8', 'replace')}", "yes")


def read_choice(reply: Any) -> Message | Fault:
    """The message of a chat completion, parsed; a fault where it was refused or cut."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Fault("wrong-schema", f"not a chat completion: {short(json.dumps(reply))}", "yes")
    usage, finish = _usage(reply), choice.get("finish_reason")
    if message.get("refusal") or finish == "content_filter":
        return Fault("refusal", f"refused: {short(str(message.get('refusal') or finish))}", usage=usage)
    if finish == "length":
        return Fault("truncated-json", "the reply was cut at max_tokens; raise max_tokens in the recipe", "once", usage=usage)
    return Message(message, usage)


def read_text(message: Message) -> str | Fault:
    """The text of a message."""
    text = message.fields.get("content")
    if text is not None and not isinstance(text, str):
        return Fault("wrong-schema", f"the message is no text: {short(json.dumps(text))}", "once", usage=message.usage)
    if not text or not text.strip():
        return Fault("empty", "the message is empty", "once", usage=message.usage)
    return text


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


def short(text: str) -> str:
    """A text on one line, as far as a message can quote it."""
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


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
    return short(str(said) if said else body.decode("utf-8", "replace"))
