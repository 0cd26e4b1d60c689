"""The rows that are exchanged as JSONL. Unknown keys are kept; a missing score is None, never a number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

Failure = Literal[
    "unreadable-audio",
    "bad-row",
    "outside-world",
    "judge-failed",
    # of a system under test:
    "exit-code",
    "no-answer",
    # of a score stage that is a language model:
    "rate-limited",
    "server-error",
    "deadline",
    "unreachable",
    "rejected",
    "truncated-json",
    "html",
    "empty",
    "refusal",
    "wrong-schema",
    "no-reply",
]
FAILURES: tuple[Failure, ...] = get_args(Failure)


@dataclass(frozen=True)
class Folder:
    """Where a manifest's relative paths start, and whether audio may lie elsewhere; a validation context."""

    path: Path
    allow_outside: bool = False

    def resolve(self, audio: Path) -> Path:
        """`audio` as an absolute path without symbolic links; refuses what lies outside the folder."""
        root = self.path.resolve()
        try:
            full = (root / audio).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL in the name
            raise PydanticCustomError("bad_path", "{path} is not a usable path", {"path": repr(str(audio))}) from error
        if not self.allow_outside and not full.is_relative_to(root):
            raise PydanticCustomError(
                "outside",
                "{path} leaves the manifest's folder {root}; move it inside or pass --allow-outside",
                {"path": str(audio), "root": str(root)},
            )
        return full


def _placed(audio: Path, info: ValidationInfo) -> Path:
    if str(audio) in ("", "."):
        raise PydanticCustomError("bad_path", "the path is empty")
    return info.context.resolve(audio) if isinstance(info.context, Folder) else audio


AudioPath = Annotated[Path, AfterValidator(_placed)]
"""A path in a row; validated with a `Folder` as the context it becomes absolute and is checked against
escape.
"""


class Row(BaseModel):
    """A line of a manifest."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True)


class Query(Row):
    """What a speaker asks: the words, and the way they are said. `contrast` is the id of the twin in another
    style.
    """

    id: str
    audio: AudioPath
    text: str | None = None
    dimension: str | None = None
    style: str | None = None
    contrast: str | None = None
    requirement: str | None = None
    speaker: str | None = None
    split: str | None = None


class Response(Row):
    """What a system answered to the query with the id `query`."""

    query: str
    system: str
    audio: AudioPath
    text: str | None = None


class Judgement(Row):
    """How well an answer fits: `score` 1..5, or None with the `failure` that explains it."""

    query: str
    system: str
    content_in: str | None = None
    content_out: str | None = None
    tone_in: str | None = None
    tone_out: str | None = None
    content_score: int | float | None = Field(default=None, ge=1, le=5)
    style_score: int | float | None = Field(default=None, ge=1, le=5)
    score: int | float | None = Field(default=None, ge=1, le=5)
    failure: Failure | None = None
    reason: str = ""
    judge: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    cost: float = 0.0

    @model_validator(mode="after")
    def _score_or_failure(self) -> Judgement:
        if (self.score is None) != (self.failure is not None):
            raise ValueError("either a score or a failure, and not both")
        return self


class Demonstration(Row):
    """A query and a good answer: its `audio` and its `text`. In JSON `query` may be just the path of its
    audio.
    """

    query: Query
    audio: AudioPath
    text: str

    @field_validator("query", mode="before")
    @classmethod
    def _query_from_path(cls, value: Any) -> Any:
        return {"id": str(value), "audio": value} if isinstance(value, str | Path) else value


class Pair(Row):
    """Two files to judge: the query's audio and the answer's, with what is known about them."""

    query: AudioPath
    answer: AudioPath
    id: str | None = None
    requirement: str | None = None
    query_text: str | None = None
    answer_text: str | None = None


@dataclass(frozen=True)
class BadRow:
    """A line whose values do not fit: it is counted as a null, and the others go on."""

    line: int
    id: str | None
    failure: Failure
    reason: str
