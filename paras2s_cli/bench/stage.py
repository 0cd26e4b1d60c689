"""What a program or a server is given and gives back, whichever part of a system it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from paras2s_cli.endpoint.cost import Estimate
from paras2s_cli.endpoint.reply import Fault, Usage


@dataclass(frozen=True, slots=True)
class Ask:
    """A recording to answer or to write down, or a text to answer or to speak, in a style."""

    query: Path | None = None
    text: str | None = None
    style: str | None = None

    def content(self) -> tuple[bytes, str | None, str | None]:
        """What a reply to it depends on."""
        return (self.query.read_bytes() if self.query else b""), self.text, self.style


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. audio: a sound file's content."""

    text: str | None = None
    audio: bytes | None = None
    usage: Usage | None = None


Settle = Callable[[str, Reply | Fault], None]


class Stage(Protocol):
    """A program or a model of a server."""

    about: tuple[Any, ...]
    """What its replies depend on besides the ask, as JSON values."""

    def reply(self, asks: Mapping[str, Ask], settle: Settle) -> None:
        """Tells `settle` a reply or a fault once for each key, as soon as it is there."""
        ...

    def estimate(self, count: int, seconds: float) -> Estimate | None:
        """What so many asks about so many seconds of queries are likely to take; None where nothing is paid for."""
        ...
