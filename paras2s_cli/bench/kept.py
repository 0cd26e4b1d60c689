"""What programs and servers have replied, kept in the bench's folder: a bench that goes on asks only for what is missing."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paras2s_cli.audio.read import read_audio
from paras2s_cli.bench.stage import Ask, Reply, Stage
from paras2s_cli.data.atomic import remove, sweep_temps, temp_beside, write_bytes, writing
from paras2s_cli.data.cache import content_key
from paras2s_cli.data.manifest import JsonlWriter
from paras2s_cli.endpoint.reply import Fault
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.scores import alone

Count = Callable[[int, int], None]
"""Told how many asks are settled, of how many."""


@dataclass(frozen=True, slots=True)
class Said:
    """A reply that is kept."""

    text: str | None
    audio: Path | None


class Kept:
    """Replies by what was asked of whom; faults are not kept. The files are `folder`/replies.jsonl and the sound beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self, stage: Stage, asks: Sequence[Ask], count: Count) -> list[Said | Fault]:
        """One reply or fault an ask, in their order. Equal asks are one."""
        keys = [content_key(*stage.about, *ask.content()) for ask in asks]
        known: dict[str, Said | Fault] = dict(self._read())
        missing = {key: ask for key, ask in zip(keys, asks, strict=True) if key not in known}
        if missing:
            total, found = len(set(keys)), len(set(keys)) - len(missing)
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            with alone(self.folder / "replies.jsonl"), JsonlWriter(self.folder / "replies.jsonl") as file:
                sweep_temps(self.folder)

                def settle(key: str, reply: Reply | Fault) -> None:
                    nonlocal found
                    assert key not in known
                    known[key] = reply if isinstance(reply, Fault) else self._keep(file, key, reply)
                    found += 1
                    count(found, total)

                stage.reply(missing, settle)
        return [known[key] for key in keys]

    def _keep(self, file: JsonlWriter, key: str, reply: Reply) -> Said | Fault:
        audio = None
        if reply.audio is not None:
            audio, temp = self.folder / f"{key}.wav", temp_beside(self.folder / key)
            write_bytes(temp, reply.audio)
            try:
                read_audio(temp)
            except UsageError as error:
                remove(temp)
                return Fault("unreadable-audio", str(error).replace(str(temp), "the answer"))
            with writing(audio):
                temp.replace(audio)
        file.write({"key": key, "text": reply.text, "audio": audio and audio.name})
        return Said(reply.text, audio)

    def _read(self) -> dict[str, Said]:
        known: dict[str, Said] = {}
        path = self.folder / "replies.jsonl"
        for line in path.read_bytes().splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # what a kill has torn
                row = json.loads(line)
                audio = self.folder / row["audio"] if row["audio"] else None
                if audio is None or audio.exists():
                    known[row["key"]] = Said(row["text"], audio)
        return known
