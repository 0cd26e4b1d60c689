"""`cmd:` systems: a program of the user's, run once for each answer, without a shell."""

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from paras2s_cli.bench.stage import Ask, Reply, Settle
from paras2s_cli.data.atomic import remove, temp_beside
from paras2s_cli.endpoint.cost import Estimate
from paras2s_cli.endpoint.reply import Fault, short
from paras2s_cli.errors import UsageError
from paras2s_cli.recipe.benching import Programs

_PLACE = re.compile(r"\{(query|text|style|answer)\}")
_PRINTED = 65536
"""Bytes of what a program prints that are read."""


class Program:
    """A command line with {query}, {text}, {style} and {answer} in it: files but for the text and the style.

    It answers by the file {answer}, or, without that, by what it prints. What it says on stderr goes to `folder`/KEY.log. It is run in the
    working folder, in a process group of its own, and no longer than the timeout.
    """

    def __init__(self, where: str, template: str, needs: Sequence[str], settings: Programs, folder: Path, may: Sequence[str] = ()) -> None:
        """`where`: what an error names. `needs` and `may`: the places that there have to be and may be.

        Raises:
            UsageError: the template is no command line, the program is not there, or a place is missing or of no use.
        """
        self.settings, self.folder = settings, folder
        try:
            self.words = shlex.split(template)
        except ValueError as error:
            raise UsageError(f"{where}: {template!r} is no command line ({error}); close the quotes") from None
        places = {place for word in self.words for place in _PLACE.findall(word)}
        wanted = " and ".join(f"{{{place}}}" for place in needs)
        if not places >= set(needs):
            raise UsageError(f"{where}: {template!r} needs {wanted} where the program gets and leaves its files")
        if extra := places - {*needs, *may}:
            raise UsageError(f"{where}: there is no {{{min(extra)}}} here, only {', '.join(f'{{{p}}}' for p in (*needs, *may))}")
        if shutil.which(self.words[0]) is None:
            raise UsageError(f"{where}: there is no program {self.words[0]!r} that may be run; check the path and chmod +x")
        self.gives: Literal["audio", "text"] = "audio" if "answer" in needs else "text"
        self.about: tuple[Any, ...] = ("cmd", self.words, _stamps(self.words))

    def estimate(self, count: int, seconds: float) -> Estimate | None:
        """None: a program is not paid."""
        return None

    def reply(self, asks: Mapping[str, Ask], settle: Settle) -> None:
        """See `Stage`. Whatever ends this early, Ctrl-C among it, ends the programs too."""
        asyncio.run(self._all(asks, settle))

    async def _all(self, asks: Mapping[str, Ask], settle: Settle) -> None:
        turn = asyncio.Semaphore(self.settings.concurrency)

        async def one(key: str, ask: Ask) -> None:
            async with turn:
                settle(key, await self._one(key, ask))

        await asyncio.gather(*(one(key, ask) for key, ask in asks.items()))

    async def _one(self, key: str, ask: Ask) -> Reply | Fault:
        log = self.folder / f"{key}.log"
        with _scratch(self.folder) as scratch:
            answer, printed = scratch / "answer.wav", scratch / "printed"
            given = {"query": str(ask.query), "text": (ask.text or "").replace("\0", " "), "style": ask.style or "", "answer": str(answer)}
            words = [_PLACE.sub(lambda place: given[place[1]], word) for word in self.words]
            code = await self._run(words, printed, log)
            last = _last_line(log)
            if code is None:
                return Fault("deadline", f"no answer within {self.settings.timeout:g} s{last}")
            if code:
                how = f"exit code {code}" if code > 0 else f"ended by signal {-code} ({signal.strsignal(-code)})"
                return Fault("exit-code", how + last)
            if self.gives == "text":
                with open(printed, "rb") as file:
                    text = file.read(_PRINTED).decode("utf-8", "replace").strip()
                return Reply(text=text) if text else Fault("empty", f"the program printed nothing{last}")
            sound = answer.read_bytes() if answer.is_file() else b""
            return Reply(audio=sound) if sound else Fault("no-answer", f"the program left no answer{last}")

    async def _run(self, words: Sequence[str], printed: Path, log: Path) -> int | None:
        """The exit code; None after the timeout."""
        with open(printed, "wb") as stdout, open(log, "wb") as stderr:
            try:
                process = await asyncio.create_subprocess_exec(
                    *words, stdin=asyncio.subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
                )
            except OSError as error:
                raise UsageError(f"{words[0]} cannot be run ({error.strerror}); a script needs #! and its interpreter") from None
            try:
                async with asyncio.timeout(self.settings.timeout):
                    return await process.wait()
            except TimeoutError:
                return None
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    scratch = temp_beside(folder.absolute() / "scratch")
    scratch.mkdir()
    try:
        yield scratch
    finally:
        remove(scratch)


def _last_line(log: Path) -> str:
    """`: ` and the last thing that a program said; its log is removed where it said nothing."""
    lines = log.read_bytes()[-4096:].decode("utf-8", "replace").split("\n")
    said = [line for line in lines if line.strip()]
    if not said:
        log.unlink()
    return f": {short(said[-1])}" if said else ""


def _stamps(words: Sequence[str]) -> list[list[int]]:
    """Size and time of the program and of the scripts among its words: what has changed since is asked again. Other files may be logs."""
    found = [shutil.which(words[0]), *(word for word in words[1:] if word.endswith((".py", ".sh")))]
    stats = [os.stat(path) for path in found if path and os.path.isfile(path)]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]
