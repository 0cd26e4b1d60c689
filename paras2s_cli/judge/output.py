"""Results on stdout, and the sentences and the bar on stderr."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from paras2s_cli.data.atomic import cannot_write
from paras2s_cli.data.manifest import row_line


def say(sentence: str) -> None:
    """One message to the user."""
    print(f"paras2s: {sentence}", file=sys.stderr, flush=True)


def write_row(row: BaseModel | Mapping[str, Any]) -> None:
    """A JSONL line, at once."""
    with writing_stdout():
        print(row_line(row).decode("utf-8"), end="")


def write_json(value: Any) -> None:
    """One JSON value, indented."""
    with writing_stdout():
        print(json.dumps(value, indent=2, ensure_ascii=False))


@contextlib.contextmanager
def writing_stdout() -> Iterator[None]:
    """Flushes what the block prints. Raises UsageError if stdout is a file on a full disk."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is still buffered would be tried again at exit, and spoil the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise cannot_write("the standard output", error) from error


def bar_columns() -> tuple[ProgressColumn, ...]:
    """What every bar shows; its tasks need a field `rate`."""
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


@contextlib.contextmanager
def bar(what: str, rows_on_stdout: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and time left, which the yielded function moves: (done, of how many).

    None is drawn where stderr is no terminal, nor where the rows themselves run over the same one.
    """
    if not sys.stderr.isatty() or (rows_on_stdout and sys.stdout.isatty()):
        yield lambda _done, _total: None
        return
    # Redirected, stdout's rows would come out on stderr.
    with Progress(*bar_columns(), console=Console(stderr=True), redirect_stdout=False) as progress:
        task = progress.add_task(what, total=None, rate="")

        def move(done: int, total: int) -> None:
            speed = progress.tasks[0].speed
            rate = f"{speed:.1f}/s" if speed else ""
            if progress.tasks[0].total is None:
                progress.reset(task, total=total, completed=done)
            progress.update(task, completed=done, rate=rate)

        yield move
