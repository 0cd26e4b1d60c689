"""Judged answers of a warm model, kept in a run's folder in pieces: what a killed run has sampled and judged is not made again."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from paras2s_cli.data.atomic import write_text
from paras2s_cli.data.cache import content_key, is_complete, publish_folder
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.heard_cache import utterance_fields, utterance_of
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.train.distill import Judged
from paras2s_cli.train.loop import Say, WatchOf

PART = 2048
"""Answers that are sampled, made sound, judged and kept at a time: a killed run loses so many at most."""
_ANSWERS, _HEARD, _MADE_OF = "answers.jsonl", "heard.jsonl", "made-of.json"

Answered = Callable[[Sequence[Spoken], int], list[Judged]]
"""Queries, and the number of the first -> an answer to each, sampled by its number and judged in full."""


@dataclass(frozen=True)
class Pieces:
    """Answers to queries in turn, a folder for each PART of them. All are read back from there, so a broken run has what a whole one has.

    Sounds are not kept, only codes and what was heard. Pieces stay when the reward model is made: they took longest of all, and are small.

    Attributes:
        folder: has a folder for each split. warm: `weights_key` of the model that answers.
    """

    folder: Path
    seed: int
    warm: str
    judge: Judge
    answered: Answered
    say: Say
    watch: WatchOf

    def of(self, split: str, pool: Sequence[Spoken], count: int) -> list[Judged]:
        """`count` answers to the queries of a split. What is not in the folder is made.

        Raises:
            UsageError: what is there is damaged, or of another model, of other queries or by another judge.
        """
        folder, watch = self.folder / split, self.watch(f"{split} answers")
        self._bind(folder, pool)
        order = np.random.default_rng([self.seed, 37]).permutation(len(pool))
        queries = [pool[order[i % len(pool)]] for i in range(count)]
        pieces = {first: folder / f"{first:07d}-{min(first + PART, count):07d}" for first in range(0, count, PART)}
        there = next((first for first, piece in pieces.items() if not is_complete(piece)), count)
        self.say(_told(split, there, count))
        rows: list[Judged] = []
        for first, piece in pieces.items():
            some = queries[first : first + PART]
            if not is_complete(piece):
                remembered = len(self.judge.remembered)
                made = self.answered(some, first)
                self._write(piece, made, dict(islice(self.judge.remembered.items(), remembered, None)))
                watch(first + len(some), {"of": count})
            rows += self._read(piece, some)
        return rows

    def _bind(self, folder: Path, pool: Sequence[Spoken]) -> None:
        """The recipe, to which the run's folder is bound, does not know what is in the files that it names."""
        made_of = {"the warm model": self.warm, "the judge": self.judge.name, "the queries": content_key([query.row for query in pool])}
        path = folder / _MADE_OF
        if not path.exists():
            write_text(path, json.dumps(made_of, indent=1) + "\n")
        try:
            saved = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            saved = {}
        if changed := [name for name, value in made_of.items() if saved.get(name) != value]:
            raise UsageError(
                f"{folder} holds answers from before {' and '.join(changed)} changed: delete {self.folder.parent} to make them anew, "
                "or choose another --out"
            )

    @staticmethod
    def _write(piece: Path, rows: Sequence[Judged], remembered: dict) -> None:
        """remembered: what the judge has come to know by these rows."""
        keys = {id(utterance): key for key, utterance in remembered.items()}
        sides = {id(side): side for row in rows for side in (row.asked, row.said)}
        place = {name: number for number, name in enumerate(sides)}
        heard = [{"key": keys.get(name), **utterance_fields(side)} for name, side in sides.items()]
        answers = [
            {
                "query": row.query.id,
                "codes": row.codes.tolist(),
                "asked": place[id(row.asked)],
                "said": place[id(row.said)],
                "score": row.score,
                "failure": row.failure,
                "reason": row.reason,
            }
            for row in rows
        ]
        with publish_folder(piece) as temporary:
            for name, lines in ((_HEARD, heard), (_ANSWERS, answers)):
                (temporary / name).write_text("".join(json.dumps(line, default=float) + "\n" for line in lines))

    def _read(self, piece: Path, queries: Sequence[Spoken]) -> list[Judged]:
        """The judge remembers what it has heard in them: in what batches it hears the rest, and so the last bits of that, goes by it."""
        try:
            heard, answers = ([json.loads(line) for line in (piece / name).read_bytes().splitlines()] for name in (_HEARD, _ANSWERS))
            sides = [utterance_of(fields) for fields in heard]
            rows = [
                Judged(
                    query,
                    np.array(row["codes"], dtype=np.int64),
                    sides[row["asked"]],
                    sides[row["said"]],
                    row["score"],
                    row["failure"],
                    row["reason"],
                )
                for query, row in zip(queries, answers, strict=True)
            ]
            self.judge.remembered |= {row["key"]: side for row, side in zip(heard, sides, strict=True) if row["key"]}
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise UsageError(f"{piece} is damaged ({error}); delete it, and its answers are made again") from error
        return rows


def weights_key(folder: Path) -> str:
    """16 hex digits that name the weights in a model's folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _told(split: str, there: int, count: int) -> str:
    if there == count:
        return f"all {count} answers to {split} queries are judged already"
    return f"judging {count} answers to {split} queries" + (f": going on from answer {there} of {count}" if there else "")
