"""The command line. A verb is imported when it is called: `paras2s --help` needs neither torch nor numpy."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from paras2s_cli import __version__
from paras2s_cli.errors import Paras2sError, UsageError

# verb -> (the function that is the command, its line in `paras2s --help`)
VERBS = {
    "judge": ("paras2s_cli.verbs.judge:judge", "Hear a query and an answer, and say how well they fit."),
    "bench": ("paras2s_cli.verbs.bench:bench", "Measure systems side by side, with intervals and a report."),
    "sft": ("paras2s_cli.verbs.sft:sft", "Train on demonstrations: the speech LM or the tone describer."),
    "align": ("paras2s_cli.verbs.align:align", "Train by reinforcement learning from the judge (GRPO)."),
    "recipes": ("paras2s_cli.verbs.recipes:recipes", "List, show, copy or check recipes."),
    "convert": ("paras2s_cli.verbs.convert:convert", "Turn a checkpoint that is a pickle into safetensors."),
    "doctor": ("paras2s_cli.verbs.doctor:doctor", "Say what this machine can run, and why not."),
}
RESUMABLE = ("judge", "bench", "sft", "align")
TOGETHER = ("sft", "align")  # what the processes of torchrun do together

# What goes wrong with disks and rights: the user can mend it, so it is a sentence and not a traceback.
DISK_TROUBLE = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; change its permissions or choose another place",
}
# Of the system's own errors only: in a library's message these words may mean something else.
NAME_TROUBLE = {
    errno.EPERM: "it may not be changed; choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its symbolic links lead in a circle; mend them or choose another place",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another place",
    errno.EEXIST: "a file stands where a folder is needed; choose another place",
    errno.EISDIR: "a folder stands where a file is needed; choose another name",
}

# oneDNN keeps the compiled form of a thousand shapes, and speech has that many: half a GiB for no time gained. Read when torch starts.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


class LazyGroup(TyperGroup):
    """The verbs by name: listed from VERBS, imported only when one is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return load_verb(cmd_name) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], VERBS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"the verbs are {', '.join(VERBS)}"
            raise UsageError(f"no verb is called '{args[0]}': {hint}")
        if args and args[0] in VERBS and args[0] not in TOGETHER and _rank() is not None:
            raise UsageError(f"{args[0]} runs in one process: start it without torchrun")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with errors_as_sentences():  # --help and --version print from here
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with errors_as_sentences():
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, so that a closed pipe is noticed while it can still be handled
            return result


app = typer.Typer(cls=LazyGroup, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def load_verb(name: str) -> Any:
    """The command of one verb, imported now. Raises UsageError when its module is not installed."""
    module_name, function = VERBS[name][0].split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        raise UsageError(f"'{name}' is missing from this installation: install paras2s again") from error
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    single.command(name, context_settings={"help_option_names": ["-h", "--help"]})(getattr(module, function))
    return get_command(single)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"paras2s {__version__}")
        raise typer.Exit


@app.callback(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
def paras2s(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Speech that fits: judge how well a spoken answer suits the way it was asked, and train models to do so.

    Start with `paras2s align`: it trains, aligns and measures the embedded `pocket` model on this machine.
    """


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Turn what a user can cause into one sentence on stderr and an exit code; all else stays a traceback.

    With PARAS2S_DEBUG=1 the traceback is shown for these errors as well.
    """
    try:
        yield
    except KeyboardInterrupt:
        verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        say("interrupted; the same command resumes where this one stopped" if verb in RESUMABLE else "interrupted")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader has left (`... | head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(128 + 13) from None
    except Paras2sError as error:
        _traceback_if_debugging()
        say(str(error))
        raise typer.Exit(error.exit_code) from None
    except Exception as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        _traceback_if_debugging()
        say(trouble)
        raise typer.Exit(UsageError.exit_code) from None


def disk_trouble(error: Exception) -> str | None:
    """The sentence for a full disk, a read-only folder, a lack of rights or an impossible name; None when it is something else.

    Libraries written in other languages (safetensors) pass the system's message on without its number.
    """
    if isinstance(error, OSError):
        trouble = (DISK_TROUBLE | NAME_TROUBLE).get(error.errno or 0)
    else:
        trouble = next((said for code, said in DISK_TROUBLE.items() if os.strerror(code).lower() in str(error).lower()), None)
    return trouble and f"{_path_of(error) or 'the output'}: {trouble}"


def _path_of(error: Exception) -> str | None:
    """The file an error is about; a failed write() does not say: then the innermost open file or path."""
    if isinstance(error, OSError) and error.filename is not None:
        return os.fsdecode(error.filename) if not isinstance(error.filename, int) else None
    found = None
    trace = error.__traceback__
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            name = value if isinstance(value, Path) else getattr(value, "name", None)
            if isinstance(name, Path) or (isinstance(name, str) and hasattr(value, "write")):
                found = str(name)
        trace = trace.tb_next
    return found


def _traceback_if_debugging() -> None:
    if os.environ.get("PARAS2S_DEBUG") == "1":
        import traceback

        traceback.print_exc()


def _rank() -> str | None:
    """Which one of several processes this is, if torchrun has started several."""
    return os.environ.get("RANK") if os.environ.get("WORLD_SIZE", "1") != "1" else None


def say(sentence: str) -> None:
    """One message to the user, on stderr."""
    print(f"paras2s{f' (rank {_rank()})' if _rank() else ''}: {sentence}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0, 1 failure, 2 usage, 3 too many failed, 130 interrupted."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed (`2>&-`): print() would turn to the other one
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for as long as the process lives)
    try:
        get_command(app).main(args=arguments, prog_name="paras2s")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
