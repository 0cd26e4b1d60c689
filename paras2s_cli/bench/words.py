"""Words written against words heard: normalisation, word errors and exact agreement."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_APOSTROPHES = re.compile("['`\u2018\u2019\u02bc]")
_NOT_A_WORD = re.compile(r"[\W_]+")


def normalise(text: str) -> str:
    """A text's words: case folded, apostrophes closed up, other punctuation a space ("Don't!" -> "dont")."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NOT_A_WORD.sub(" ", _APOSTROPHES.sub("", folded)).strip()


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(edits, words): the fewest insertions, deletions and substitutions, and the reference's word count.

    Both texts are normalised first. Sum both over a corpus and divide: a mean of per-sentence rates would
    give short sentences too much weight.
    """
    said, heard = normalise(reference).split(), normalise(hypothesis).split()
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1], len(said)


def text_agreement(pairs: Iterable[tuple[str, str]]) -> float | None:
    """The share of (written, heard) pairs that hold the same words; None for no pairs."""
    same = [normalise(written) == normalise(heard) for written, heard in pairs]
    return sum(same) / len(same) if same else None
