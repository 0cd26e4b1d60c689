"""The words that the reward model and its lessons speak of."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from rapidfuzz import fuzz, process
from torch import Tensor

from paras2s_cli.judge.ears import spell

_NEAR = 60
"""Percentage of letters that a misspelling has in common with the word that is meant, in order, of both's."""


class Vocabulary:
    """Words and their columns.

    Args:
        words: spelled as `ears.spell` does.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.columns = {word: i for i, word in enumerate(words)}
        self._nearest = lru_cache(65536)(self._look_up)

    def __len__(self) -> int:
        return len(self.columns)

    def words_in(self, texts: Sequence[str]) -> Tensor:
        """[B, words] float, 1 where a word is in the text."""
        table = torch.zeros(len(texts), len(self))
        for i, text in enumerate(texts):
            for word in spell(text).split():
                if word in self.columns:
                    table[i, self.columns[word]] = 1.0
        return table

    def nearest(self, text: str) -> str:
        """A text as a transcriber spelled it, with known words for those that are nearly one."""
        return " ".join(map(self._nearest, spell(text).split()))

    def _look_up(self, word: str) -> str:
        found = process.extractOne(word, list(self.columns), scorer=fuzz.ratio, score_cutoff=_NEAR)
        return word if found is None else found[0]
