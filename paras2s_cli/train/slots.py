"""The words in which otherwise equal sentences differ."""

from collections import defaultdict
from collections.abc import Sequence

from paras2s_cli.judge.ears import spell


def slot_words(texts: Sequence[str]) -> frozenset[str]:
    """Words of which another text has a different one in the same place and all else alike: "... the lake", "... the party".

    A judge's digit does not hang on which of them it is, only on whether query and answer have the same.
    """
    slots: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for text in texts:
        words = spell(text).split()
        for i, word in enumerate(words):
            slots[(*words[:i], "", *words[i + 1 :])].add(word)
    return frozenset(word for words in slots.values() if len(words) > 1 for word in words)
