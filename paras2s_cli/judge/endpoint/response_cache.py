"""What endpoints have answered before: a JSONL file that only grows, and an SQLite index of it that can be made anew at any time."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Generic, Protocol, TypeVar

from paras2s_cli.data.cache import cache_root, folder_lock
from paras2s_cli.data.manifest import append_row, drop_torn_line
from paras2s_cli.endpoint.reply import Fault, Usage
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.endpoint.verdict import Answer, read_message

_AT_ONCE = 500  # keys in one query; SQLite allows 999 in old versions
_CHECKED = 1024
"""Bytes before the index's place in the file that must still be the ones it has read."""
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL, tokens_in INTEGER, tokens_out INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS replayed (place INTEGER NOT NULL, digest TEXT NOT NULL);
"""


class Reply(Protocol):
    """What is kept: the text that it is read from again, and the tokens that were counted."""

    @property
    def text(self) -> str: ...
    @property
    def usage(self) -> Usage | None: ...


R = TypeVar("R", bound=Reply)


class ReplyCache(Generic[R]):
    """Replies by the key of their call. Faults are not kept. Several processes may use it at a time.

    A cache that cannot be read or written costs requests, not results: `say` is told once, and answers are remembered for as long as
    this process runs.
    """

    def __init__(self, say: Callable[[str], None], name: str, read: Callable[[str, Usage | None], R | Fault]) -> None:
        """name: of the folder and its files. read: makes a reply of its text; one that is a fault by now is not known."""
        self.path = cache_root() / name / f"{name}.jsonl"
        self.index = self.path.with_suffix(".sqlite")
        self._say, self._read = say, read
        self._memory: dict[str, R] | None = None

    def fetch(self, keys: Iterable[str]) -> dict[str, R]:
        """Those of `keys` that are known, to this or any other process."""
        wanted = list(dict.fromkeys(keys))
        if self._memory is None and self.path.exists():
            try:
                with self._alone(), self._opened_index() as base:
                    self._replay(base)
                    return self._known(base, wanted)
            except (sqlite3.Error, OSError, UsageError) as error:
                self._give_up(error)
        known = self._memory or {}
        return {key: known[key] for key in wanted if key in known}

    def store(self, key: str, answer: R, about: dict[str, str]) -> None:
        """Keeps an answer; `about` is what a reader of the file wants to know of its origin."""
        if self._memory is None:
            usage = answer.usage
            counts = {"tokens_in": usage.tokens_in, "tokens_out": usage.tokens_out} if usage else {}
            try:
                with self._alone(), open(self.path, "ab") as file:
                    append_row(file, {"key": key, **about, "text": answer.text, **counts})
                return
            except (OSError, UsageError) as error:
                self._give_up(error)
        assert self._memory is not None
        self._memory[key] = answer

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Locks the file; what a killed process has left half-written at its end is cut off."""
        with folder_lock(self.path):
            size = self.path.stat().st_size if self.path.exists() else 0
            drop_torn_line(self.path)
            if size and self.path.stat().st_size < size:
                self._say(f"the last line of {self.path} was torn by a kill and has been cut off; its pair will be asked again")
            yield

    @contextmanager
    def _opened_index(self) -> Iterator[sqlite3.Connection]:
        try:
            base = _open(self.index)
        except sqlite3.DatabaseError:
            self.index.unlink()
            base = _open(self.index)
        with closing(base), base:
            yield base

    def _replay(self, base: sqlite3.Connection) -> None:
        """Brings the index up to the end of the file: from where it was, or from the start if the file is another one."""
        row = base.execute("SELECT place, digest FROM replayed").fetchone()
        bad = 0
        with open(self.path, "rb") as file:
            place = row[0] if row and _digest(file, row[0]) == row[1] else 0
            if not place:
                base.execute("DELETE FROM answers")
            file.seek(place)
            for line in file:
                fields = _fields(line)
                if fields is None:
                    bad += 1
                else:
                    base.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", fields)
            place = file.tell()
            base.execute("DELETE FROM replayed")
            base.execute("INSERT INTO replayed VALUES (?, ?)", (place, _digest(file, place)))
        if bad:
            self._say(f"{bad} lines of {self.path} are no answers and were passed over")

    def _give_up(self, error: Exception) -> None:
        self._memory = {}
        self._say(f"answers cannot be kept in {self.path} ({error}); going on without that cache")

    def _known(self, base: sqlite3.Connection, keys: list[str]) -> dict[str, R]:
        known = {}
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            for key, text, *counts in base.execute(f"SELECT * FROM answers WHERE key IN ({marks})", some):
                answer = self._read(text, None if None in counts else Usage(*counts))
                if not isinstance(answer, Fault):
                    known[key] = answer
        return known


class ResponseCache(ReplyCache[Answer]):
    """Verdicts."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(say, "answers", read_message)


def _open(index: Path) -> sqlite3.Connection:
    base = sqlite3.connect(index, timeout=60)
    try:
        base.execute("PRAGMA synchronous = OFF")  # a torn index is made anew
        base.executescript(_TABLES)
    except sqlite3.DatabaseError:
        base.close()
        raise
    return base


def _digest(file: IO[bytes], place: int) -> str:
    """Of the bytes of a file before a place in it."""
    start = max(0, place - _CHECKED)
    file.seek(start)
    return hashlib.sha256(file.read(place - start)).hexdigest()


def _fields(line: bytes) -> tuple[str, str, int | None, int | None] | None:
    try:
        row = json.loads(line)
        key, text = row["key"], row["text"]
        counts = (row.get("tokens_in"), row.get("tokens_out"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    sound = isinstance(key, str) and isinstance(text, str) and all(isinstance(count, int | None) for count in counts)
    return (key, text, *counts) if sound else None
