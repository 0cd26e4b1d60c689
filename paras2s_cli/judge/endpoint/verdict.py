"""What an endpoint sent, read: a verdict, or why there is none."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paras2s_cli.endpoint.reply import Fault, Usage, read_choice, read_json, read_text, short

Grade = Annotated[int, Field(ge=1, le=5, strict=True)]


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
class Answer:
    """A verdict, and the message it was read from."""

    opinion: Opinion
    text: str
    usage: Usage | None


def read_response(status: int, headers: Mapping[str, str], body: bytes) -> Answer | Fault:
    """An HTTP response of /chat/completions. `headers` has lower-case names."""
    reply = read_json(status, headers, body)
    return reply if isinstance(reply, Fault) else read_completion(reply)


def read_completion(reply: Any) -> Answer | Fault:
    """A chat completion, parsed. The last verdict in its message counts."""
    message = read_choice(reply)
    if isinstance(message, Fault):
        return message
    text = read_text(message)
    return text if isinstance(text, Fault) else read_message(text, message.usage)


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
        return Fault("truncated-json", f"the verdict is not whole JSON: {short(text)}", "once", usage=usage)
    try:
        return Answer(Opinion.model_validate(found), text, usage)
    except ValidationError as error:
        what = "no verdict" if found is None else "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return Fault("wrong-schema", f"{what}: {short(text)}", "once", usage=usage)
