"""What was heard before, on disk: an utterance that was listened to once is not listened to again."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict

from paras2s_cli.data.cache import cache_root, file_name
from paras2s_cli.judge.stages import Heard, Span, Toned, Utterance

_AT_ONCE = 500  # keys in one query; SQLite allows 999 in old versions
_TABLE = "CREATE TABLE IF NOT EXISTS heard (key TEXT PRIMARY KEY, utterance TEXT NOT NULL) WITHOUT ROWID"


class HeardCache:
    """Utterances by `utterance_key`, of one version of a listener. Made on the first `store`.

    A cache that cannot be read or written costs time, not results: `say` is told once, and what is heard is
    remembered for as long as this process runs.
    """

    def __init__(self, listener: str, say: Callable[[str], None]) -> None:
        self.path = cache_root() / "heard" / file_name(listener) / "utterances.sqlite"
        self.asked: set[str] = set()
        """Distinct keys that were ever fetched."""
        self.found = 0
        """Those of them that were there at the first time of asking."""
        self._say = say
        self._memory: dict[str, Utterance] | None = None

    def fetch(self, keys: Iterable[str]) -> dict[str, Utterance]:
        """Those of `keys` that are known."""
        wanted = list(dict.fromkeys(keys))
        known = {key: self._memory[key] for key in wanted if key in self._memory} if self._memory else {}
        if self.path.exists():
            try:
                known |= self._read([key for key in wanted if key not in known])
            except sqlite3.DatabaseError as error:
                self._give_up(error)
        self.found += sum(key in known and key not in self.asked for key in wanted)
        self.asked.update(wanted)
        return known

    def store(self, utterances: Mapping[str, Utterance]) -> None:
        """Keeps `utterances`, all or none: a killed run finds whole windows, and so hears the rest alike."""
        if self._memory is not None:
            self._memory.update(utterances)
            return
        if not utterances:
            return
        rows = [(key, json.dumps(asdict(heard), default=float)) for key, heard in utterances.items()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=60)) as base, base:
                base.execute(_TABLE)
                base.executemany("INSERT OR REPLACE INTO heard VALUES (?, ?)", rows)
        except (sqlite3.DatabaseError, OSError) as error:
            self._give_up(error)
            self.store(utterances)

    def _read(self, keys: list[str]) -> dict[str, Utterance]:
        known: dict[str, Utterance] = {}
        with closing(sqlite3.connect(self.path, timeout=60)) as base:
            base.execute(_TABLE)
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                for key, text in base.execute(f"SELECT * FROM heard WHERE key IN ({marks})", some):
                    utterance = _parse(text)
                    if utterance is not None:
                        known[key] = utterance
        return known

    def _give_up(self, error: Exception) -> None:
        if self._memory is None:
            self._memory = {}
            self._say(f"what is heard cannot be kept in {self.path} ({error}); going on without that cache")


def _parse(text: str) -> Utterance | None:
    """An utterance as it was stored; None for what another version of the program may have left."""
    try:
        fields = json.loads(text)
        heard = fields["heard"]
        spans = tuple(Span(*span) for span in heard.get("spans", ()))
        return Utterance(Heard(**(heard | {"spans": spans})), Toned(**fields["toned"]), str(fields["words"]))
    except (ValueError, TypeError, KeyError):
        return None
