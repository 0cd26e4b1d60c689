"""JSONL manifests: read with every error of the file at once, written so that a killed run can go on."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from paras2s_cli.data.atomic import writing
from paras2s_cli.data.messages import from_messages, is_messages
from paras2s_cli.data.rows import BadRow, Folder, Row
from paras2s_cli.errors import UsageError

AnyRow = TypeVar("AnyRow", bound=Row)
_SHOWN = 10


def read_rows(path: Path | str, model: type[AnyRow], *, allow_outside: bool = False) -> Iterator[AnyRow]:
    """The rows of a manifest (`-`: stdin), their audio paths absolute. The whole file is checked before the
    first row.

    Paths are relative to the manifest's folder (stdin: the working folder) and, symbolic links followed, may
    not leave it unless `allow_outside`. Blank lines and a byte order mark are skipped. Raises UsageError with
    a line `file:line: what is wrong` for each of the first ten lines at fault, and a count.
    """
    rows = list(_parse(path, model, allow_outside))
    _raise_all([f"{_name(path)}:{line}: {what}" for line, what, _, _ in _faults(rows)])
    return (row for _, row in rows if not isinstance(row, _Fault))


def read_rows_leniently(path: Path | str, model: type[AnyRow], *, allow_outside: bool = False) -> Iterator[AnyRow | BadRow]:
    """Like `read_rows`, but a line whose values do not fit (a text that is a list, ...) becomes a BadRow in
    its place.

    What makes the manifest itself doubtful still raises UsageError: not JSON or UTF-8, a missing key, a path
    that leaves the folder.
    """
    rows = list(_parse(path, model, allow_outside))
    _raise_all([f"{_name(path)}:{line}: {what}" for line, what, structural, _ in _faults(rows) if structural])
    return (BadRow(line, row.id, "bad-row", row.what) if isinstance(row, _Fault) else row for line, row in rows)


def row_line(row: BaseModel | Mapping[str, Any], folder: Path | None = None) -> bytes:
    """One line of UTF-8 JSON with its newline; paths inside `folder` are written relative to it."""
    fields = row.model_dump(mode="python") if isinstance(row, BaseModel) else dict(row)
    root = folder.resolve() if folder is not None else None

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            inside = root is not None and value.is_absolute() and value.is_relative_to(root)
            return value.relative_to(root).as_posix() if inside and root is not None else str(value)
        if hasattr(value, "item"):  # a numpy or torch scalar
            return value.item()
        raise TypeError(f"{type(value).__name__} does not fit into a JSON row")

    try:
        return (json.dumps(fields, ensure_ascii=False, allow_nan=False, default=plain) + "\n").encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold and UTF-8 cannot
        return (json.dumps(fields, allow_nan=False, default=plain) + "\n").encode("ascii")


def append_row(file: IO[bytes], row: BaseModel | Mapping[str, Any], folder: Path | None = None) -> None:
    """Writes one line to an open binary `file` and flushes it, so that a kill costs at most this line."""
    left = memoryview(row_line(row, folder))
    while left:  # an unbuffered file may take a part
        left = left[file.write(left) :]
    file.flush()


class JsonlWriter:
    """Appends rows to `path`; on opening, a last line that a kill has torn is dropped, so that resuming is
    safe.

    Paths in rows are written relative to the file's folder where they lie in it. A context manager. Raises
    UsageError if the file cannot be written or is not JSONL.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            drop_torn_line(self.path)
            # Unbuffered: what a full disk refused must not be tried again on closing.
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by close)

    def write(self, row: BaseModel | Mapping[str, Any]) -> None:
        """Appends `row` and flushes."""
        with writing(self.path):
            append_row(self._file, row, self.path.parent)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def drop_torn_line(path: Path) -> None:
    """Cuts an unfinished last line off a JSONL file; a whole last line that only lacks its newline gets one.

    Raises UsageError, and changes nothing, if the file does not look like JSONL.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise UsageError(f"{path} is not a file; choose another name")
    with open(path, "rb") as file:
        first = file.read(1)
        if first not in (b"", b"{", b"\0"):
            raise UsageError(f"{path} is not a JSONL file of rows and is left alone; choose another name")
        size = file.seek(0, os.SEEK_END)
        tail = b""
        while size > len(tail) and b"\n" not in tail:
            step = min(size - len(tail), 1 << 16)
            file.seek(size - len(tail) - step)
            tail = file.read(step) + tail
    last = tail.rpartition(b"\n")[2]
    if not last:
        return
    with open(path, "r+b") as file:
        if _is_object(last):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(size - len(last))


def read_done(path: Path | str, key: str | tuple[str, ...]) -> set[Any]:
    """The values of `key` (tuples of them, for several keys) in the whole rows of `path`; empty if there is
    no file.
    """
    path = Path(path)
    if not path.exists():
        return set()
    done: set[Any] = set()
    for line in _read_bytes(path).split(b"\n"):
        if not _is_object(line):
            continue
        row = json.loads(line)
        value = row.get(key) if isinstance(key, str) else tuple(row.get(name) for name in key)
        done.add(value if isinstance(value, str | tuple | int | None) else json.dumps(value))
    return done


class _Fault:
    """Why a line is not a row; `structural` faults make the manifest itself doubtful."""

    def __init__(self, what: str, structural: bool, id: str | None = None) -> None:
        self.what, self.structural, self.id = what, structural, id


def _parse(path: Path | str, model: type[AnyRow], allow_outside: bool) -> Iterator[tuple[int, AnyRow | _Fault]]:
    stdin = str(path) == "-"
    data = sys.stdin.buffer.read() if stdin else _read_bytes(Path(path))
    folder = Folder(Path.cwd() if stdin else Path(path).parent, allow_outside)
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield number, _parse_line(line, model, folder)


def _parse_line(line: bytes, model: type[AnyRow], folder: Folder) -> AnyRow | _Fault:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        return _Fault(f"not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8", True)
    except (ValueError, RecursionError) as error:
        return _Fault(f"not JSON ({getattr(error, 'msg', None) or error}); write one JSON object a line", True)
    if not isinstance(row, dict):
        return _Fault("not a JSON object; write one {...} a line", True)
    name = str(row["id"]) if isinstance(row.get("id"), str | int) else None
    try:
        fields = from_messages(row, model) if is_messages(row) else row
    except ValueError as error:
        return _Fault(str(error), True, name)
    try:
        return model.model_validate(fields, context=folder)
    except ValidationError as error:
        details = error.errors(include_url=False)
        structural = any(detail["type"] in ("missing", "outside") for detail in details)
        return _Fault("; ".join(_say(detail, fields) for detail in details), structural, name)


def _say(detail: ErrorDetails, fields: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "missing":
        near = difflib.get_close_matches(where, [key for key in fields if isinstance(key, str)], n=1)
        return f'"{where}" is missing' + (f' (there is "{near[0]}")' if near else "")
    if detail["type"] == "path_type":  # pydantic's own words name a class of Python's
        return f'"{where}" should be a path, written as a string'
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f'"{where}" {message}' if where else message


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _faults(rows: Iterable[tuple[int, Row | _Fault]]) -> list[tuple[int, str, bool, str | None]]:
    return [(line, row.what, row.structural, row.id) for line, row in rows if isinstance(row, _Fault)]


def _raise_all(lines: list[str]) -> None:
    if lines:
        more = [f"... and {len(lines) - _SHOWN} more lines"] if len(lines) > _SHOWN else []
        raise UsageError("\n".join(lines[:_SHOWN] + more))


def _name(path: Path | str) -> str:
    return "stdin" if str(path) == "-" else str(path)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; check the path") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; name a JSONL file in it") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}); check the path and its permissions") from None
