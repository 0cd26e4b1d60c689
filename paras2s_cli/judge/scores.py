"""scores.jsonl: what it holds already, who may go on with it, and what it adds up to."""

import contextlib
import errno
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paras2s_cli.data.atomic import cannot_write, write_text, writing
from paras2s_cli.data.rows import Judgement
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.stream import identity

Row = Mapping[str, Any]
PASSING = frozenset({"rate-limited", "server-error", "deadline", "unreachable", "rejected", "truncated-json", "html", "empty", "no-reply"})
"""Failures of a server or of the way to it, which may be gone when the same command is run again."""


def read_scores(path: Path) -> list[dict[str, Any]]:
    """The whole rows of `path`, without a last line that a kill has torn; none if there is no file.

    Raises UsageError if it cannot be read, or a line is no judgement.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; name a JSONL file in it") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                Judgement.model_validate(row)
        except (ValueError, TypeError, RecursionError):
            if number == len(lines) and not _is_object(line):
                break
            raise UsageError(f"{path}:{number}: not a judgement; name a file that `paras2s judge` wrote, or another one") from None
        if row is not None:
            rows.append(row)
    return rows


def check_writable(path: Path, manifest: str) -> None:
    """Raises UsageError if `path` cannot be appended to; before anything is made."""
    if manifest != "-" and path.exists() and path.samefile(manifest):
        raise UsageError(f"{path} is the manifest itself; choose another -o")
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot write {path}: it is not a file; choose another -o")
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if place != path and not place.is_dir():
        raise cannot_write(path, OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        raise cannot_write(path, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    if not os.access(place, os.W_OK):
        raise cannot_write(path, OSError(errno.EACCES, os.strerror(errno.EACCES)))


def already_judged(path: Path, scores: Sequence[Row], wanted: Sequence[tuple[Any, ...]]) -> list[bool]:
    """For each of the `wanted` identities, whether `scores` has it; a pair that is listed twice counts twice.

    Raises UsageError if `path` holds judgements of other pairs.
    """
    left = Counter(identity(row) for row in scores)
    done = []
    for name in wanted:
        done.append(left[name] > 0)
        left[name] -= done[-1]
    others = [row for row in scores if left[identity(row)] > 0]
    if others:
        raise UsageError(
            f"{path} holds judgements of {len(others)} pairs that are not in the manifest (the first: query"
            f" {others[0]['query']}); choose another -o or delete it"
        )
    return done


def check_same_judge(path: Path, scores: Sequence[Row], judge: Mapping[str, Any]) -> None:
    """Raises UsageError if another judge has begun the file."""
    for row in scores:
        was_judge = row.get("judge", {})
        if was_judge != judge:
            was = ", ".join(f"{key} {value}" for key, value in was_judge.items()) or "unnamed"
            raise UsageError(f"{path} was begun by another judge ({was}); choose another -o or delete it")


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keeps a second process from appending to the same file. Raises UsageError if one does already."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 (closed below)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is writing {path}; wait for it or choose another -o") from None
        yield


def drop_passing(path: Path) -> None:
    """Takes the rows without a score out of `path` whose failure may have passed; the others stay as they are written."""
    with writing(path):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(path, "".join(line for line in lines if not line.strip() or json.loads(line).get("failure") not in PASSING))


class Tally:
    """Counts of scores and failures."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.total = 0
        self.scores: list[float] = []
        self.failures: Counter[str] = Counter()
        for row in rows:
            self.add(row.get("score"), row.get("failure"))

    def add(self, score: float | None, failure: str | None) -> None:
        """One row more."""
        self.total += 1
        if score is None:
            self.failures[str(failure)] += 1
        else:
            self.scores.append(float(score))

    @property
    def failed(self) -> int:
        return self.total - len(self.scores)

    def __str__(self) -> str:
        """Scored n of N, the mean and its bounds, and a count a failure."""
        words = f"scored {len(self.scores)} of {self.total}"
        if self.scores:
            words += f", mean {sum(self.scores) / len(self.scores):.2f}"
        if self.failed:
            low, high = ((sum(self.scores) + self.failed * end) / self.total for end in (1, 5))
            words += f" ({low:.2f} if the missing were all 1, {high:.2f} if all 5); without a score: "
            words += ", ".join(f"{count} {name}" for name, count in sorted(self.failures.items()))
        return words


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
