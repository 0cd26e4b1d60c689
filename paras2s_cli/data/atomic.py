"""Files that are whole or absent: written beside, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from paras2s_cli.errors import UsageError

_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:32] or "host"
_TEMP = re.compile(r"\.paras2s-(?P<host>[A-Za-z0-9]+)-(?P<pid>\d+)-[0-9a-f]+\.tmp")
_WAYS_OUT = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EROFS: "choose a folder on a disk that is not read-only",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EEXIST: "a file stands where a folder is needed; choose another name",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def cannot_write(path: Path | str, error: OSError) -> UsageError:
    """The sentence for an OSError that was met while writing `path` (full disk, read-only folder, ...)."""
    way_out = _WAYS_OUT.get(error.errno or 0, "choose another folder")
    return UsageError(f"cannot write {path}: {error.strerror or error}; {way_out}")


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turns an OSError of the block into the UsageError that names `path` and the way out."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def temp_beside(path: Path) -> Path:
    """A fresh name beside `path`; it holds this host and process, so that the dead's can be swept."""
    return path.parent / f".paras2s-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def sweep_temps(folder: Path) -> None:
    """Removes what killed processes of this host have left half-written in `folder`."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            match = _TEMP.fullmatch(name)
            if match and match["host"] == _HOST and not _alive(int(match["pid"])):
                remove(folder / name)


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it is there and may be deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def write_bytes(path: Path | str, data: bytes, *, sync: bool = False) -> None:
    """Writes `data` to `path` whole or not at all; makes the folder if needed; `sync` waits for the disk.

    Raises UsageError if the disk is full, the folder is read-only, or something other than a file is there.
    """
    path = Path(path)
    temp = temp_beside(path)
    with writing(path):
        # A rename would silently replace a device such as /dev/null.
        if path.exists() and not path.is_file():
            raise UsageError(f"cannot write {path}: it is not a file; choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temp, "xb") as handle:
                handle.write(data)
                if sync:
                    handle.flush()
                    os.fsync(handle.fileno())
            os.replace(temp, path)
        except BaseException:
            remove(temp)
            raise


def write_text(path: Path | str, text: str, *, sync: bool = False) -> None:
    """Writes `text` as UTF-8, like `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), sync=sync)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
