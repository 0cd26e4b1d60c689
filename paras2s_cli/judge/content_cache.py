"""What models have made of sounds, on disk, by the sounds' content: what was heard once is not heard again."""

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Generic, TypeVar

from paras2s_cli.data.cache import cache_root, file_name

T = TypeVar("T")
_AT_ONCE = 500  # keys in one query; SQLite allows 999 in old versions
_TABLE = "CREATE TABLE IF NOT EXISTS heard (key TEXT PRIMARY KEY, utterance TEXT NOT NULL) WITHOUT ROWID"


class ContentCache(ABC, Generic[T]):
    """Values by the key of a sound's content, of one version of a model, in a file `name`. Made on the first `store`.

    A cache that cannot be read or written costs time, not results: `say` is told once, and what is heard is
    remembered for as long as this process runs.
    """

    def __init__(self, model: str, name: str, say: Callable[[str], None], *, keep: bool = True) -> None:
        """keep: on disk. Else what is heard is remembered only."""
        self.path: Path = cache_root() / "heard" / file_name(model) / name
        self.asked: set[str] = set()
        """Distinct keys that were ever fetched."""
        self.found = 0
        """Those of them that were there at the first time of asking."""
        self._say = say
        self._memory: dict[str, T] | None = None if keep else {}
        self._on_disk = keep

    def fetch(self, keys: Iterable[str]) -> dict[str, T]:
        """Those of `keys` that are known."""
        wanted = list(dict.fromkeys(keys))
        known = {key: self._memory[key] for key in wanted if key in self._memory} if self._memory else {}
        if self._on_disk and self.path.exists():
            try:
                known |= self._read([key for key in wanted if key not in known])
            except sqlite3.DatabaseError as error:
                self._give_up(error)
        self.found += sum(key in known and key not in self.asked for key in wanted)
        self.asked.update(wanted)
        return known

    def store(self, values: Mapping[str, T]) -> None:
        """Keeps `values`, all or none: a killed run finds whole windows, and so hears the rest alike."""
        if self._memory is not None:
            self._memory.update(values)
            return
        if not values:
            return
        rows = [(key, self._dump(value)) for key, value in values.items()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=60)) as base, base:
                base.execute(_TABLE)
                base.executemany("INSERT OR REPLACE INTO heard VALUES (?, ?)", rows)
        except (sqlite3.DatabaseError, OSError) as error:
            self._give_up(error)
            self.store(values)

    @abstractmethod
    def _dump(self, value: T) -> str:
        """A value as it is stored."""

    @abstractmethod
    def _parse(self, text: str) -> T | None:
        """A value as it was stored; None for what another version of the program may have left."""

    def _read(self, keys: list[str]) -> dict[str, T]:
        known: dict[str, T] = {}
        with closing(sqlite3.connect(self.path, timeout=60)) as base:
            base.execute(_TABLE)
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                for key, text in base.execute(f"SELECT * FROM heard WHERE key IN ({marks})", some):
                    value = self._parse(text)
                    if value is not None:
                        known[key] = value
        return known

    def _give_up(self, error: Exception) -> None:
        if self._memory is None:
            self._memory = {}
            self._say(f"what is heard cannot be kept in {self.path} ({error}); going on without that cache")
