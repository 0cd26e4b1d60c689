"""The user's cache: folders that are built once, by content, and are either complete or absent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paras2s_cli.data.atomic import cannot_write, remove, sweep_temps, temp_beside, writing
from paras2s_cli.errors import UsageError

MARKER = "COMPLETE"


def cache_root() -> Path:
    """$PARAS2S_CACHE, else $XDG_CACHE_HOME/paras2s, else ~/.cache/paras2s; absolute, not created."""
    if own := os.environ.get("PARAS2S_CACHE"):
        return Path(own).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the XDG specification has relative values ignored
        return Path(xdg) / "paras2s"
    try:
        return Path.home() / ".cache" / "paras2s"
    except RuntimeError:
        raise UsageError("there is no home folder to keep a cache in; set PARAS2S_CACHE to a folder") from None


def content_key(*parts: Any) -> str:
    """16 hex digits (SHA-256) that name `parts`: bytes as they are, all else as canonical JSON (TypeError if
    it cannot).

    Each part is hashed with its kind and length, so that ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes | bytearray | memoryview):
            kind, data = b"b", bytes(part)
        else:
            kind, data = (
                b"j",
                json.dumps(part, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii"),
            )
        digest.update(kind + len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def file_name(text: str) -> str:
    """A text as a file's name: itself where it is one, else what is left of it and its key."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip(".")[:80]
    return plain if plain == text else f"{plain}-{content_key(text)}"


def is_complete(folder: Path) -> bool:
    """Whether `folder` was published whole: its marker is there, and every file has the size it notes."""
    try:
        sizes = json.loads((folder / MARKER).read_bytes())
        return all(os.stat(folder / name).st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def publish_folder(final: Path, *, replace: bool = False, sync: bool = True) -> Iterator[Path]:
    """Yields an empty folder beside `final` to fill; on success it gets its marker and takes the name
    `final`.

    A `final` that is already complete wins over ours, unless `replace`; an incomplete one is replaced. If the
    block raises, nothing is left. `sync` waits until the disk has the files: a kill needs no such wait, a
    power cut does, and without it the sizes in the marker still tell a torn folder. Raises UsageError if it
    cannot be written.
    """
    temp = temp_beside(final)
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        sweep_temps(final.parent)
        temp.mkdir()
    try:
        yield temp
        with writing(final):
            _mark(temp, sync)
            _take_name(temp, final, replace)
            if sync:
                _fsync(final.parent)
    except OSError as error:  # of the block: a full disk is the user's to mend, another error its own to explain
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise cannot_write(final, error) from error
        raise
    finally:
        remove(temp)


@contextlib.contextmanager
def folder_lock(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Keeps other processes out while `path` is built; waits for its turn (and calls `on_wait` first, if it
    must).

    The lock is the process's own: it goes with it when killed, and children forked meanwhile do not hold it.
    """
    lock = path.parent / f".{path.name}.lock"
    with writing(lock):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "ab")  # noqa: SIM115 (closed below)
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _mark(folder: Path, sync: bool) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if sync:
        for path in files:
            _fsync(path)
    with open(folder / MARKER, "xb") as file:
        file.write(json.dumps({p.relative_to(folder).as_posix(): p.stat().st_size for p in files}).encode())
        if sync:
            file.flush()
            os.fsync(file.fileno())
    if sync:
        _fsync(folder)


def _take_name(temp: Path, final: Path, replace: bool) -> None:
    for _ in range(100):
        try:
            os.rename(temp, final)
            return
        except OSError:
            if not final.exists():
                raise
        if is_complete(final) and not replace:
            return
        # What is there goes aside first: a rename does not overwrite a folder with files in it.
        aside = temp_beside(final)
        with contextlib.suppress(FileNotFoundError):
            os.rename(final, aside)
            remove(aside)
    raise UsageError(f"cannot write {final}: other processes keep replacing it; run one at a time")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
