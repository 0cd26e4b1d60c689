"""A manifest in windows: a few rows at a time, their audio decoded ahead, however long the manifest is."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paras2s_cli.audio.read import audio_info, read_audio
from paras2s_cli.data.rows import BadRow, Pair
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.stages import RATE

WORKERS = 2
AHEAD = 2
"""Windows that are decoded while one is listened to."""
MOST_SECONDS = 1800.0
"""Sound in a window, unless one row alone has more: 115 MB of samples."""

AnyPair = Pair | BadRow
Sound = np.ndarray | UsageError
"""Mono float32 [T] at RATE, or the sentence that says why there is none."""


@dataclass(frozen=True)
class Window:
    """Consecutive rows of a manifest that are still to be judged, and the sound of their files."""

    rows: list[AnyPair]
    sounds: dict[Path, Sound]


def windows(rows: Sequence[AnyPair], batch: int) -> Iterator[range]:
    """Where to cut: after `batch` rows, or sooner where their headers promise more than MOST_SECONDS.

    The cuts depend on the manifest alone and not on what is done already, so that a resumed run listens in
    the same batches, and rounds alike.
    """
    start, filled = 0, 0.0
    for index, row in enumerate(rows):
        seconds = sound_seconds(row)
        if index > start and (index - start == batch or filled + seconds > MOST_SECONDS):
            yield range(start, index)
            start, filled = index, 0.0
        filled += seconds
    if start < len(rows):
        yield range(start, len(rows))


def sound_seconds(row: AnyPair) -> float:
    """Seconds of sound that the two headers of a row promise; what cannot be read counts as nothing."""
    return sum(_seconds(path) for path in (row.query, row.answer)) if isinstance(row, Pair) else 0.0


def decode_ahead(rows: Sequence[AnyPair], done: Sequence[bool], batch: int, max_seconds: float) -> Iterator[Window]:
    """The windows of `rows` without those that are `done`, in order; each file of a window is decoded once."""
    pending: deque[tuple[list[AnyPair], dict[Path, Future[Sound]]]] = deque()
    pool = ThreadPoolExecutor(WORKERS, "decode")
    try:
        for window in windows(rows, batch):
            left = [rows[index] for index in window if not done[index]]
            if not left:
                continue
            paths = {path for row in left if isinstance(row, Pair) for path in (row.query, row.answer)}
            pending.append((left, {path: pool.submit(_decode, path, max_seconds) for path in paths}))
            if len(pending) > AHEAD:
                yield _await(*pending.popleft())
        while pending:
            yield _await(*pending.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _await(rows: list[AnyPair], futures: dict[Path, Future[Sound]]) -> Window:
    return Window(rows, {path: future.result() for path, future in futures.items()})


def _decode(path: Path, max_seconds: float) -> Sound:
    try:
        return read_audio(path, rate=RATE, max_seconds=max_seconds)
    except UsageError as error:
        return error
    except OSError as error:
        return UsageError(f"{path} cannot be read ({error.strerror or error}); check the disk")


def _seconds(path: Path) -> float:
    try:
        return audio_info(path).seconds or 0.0
    except (UsageError, OSError):
        return 0.0
