"""Words and their columns, and what a misspelling means."""

from __future__ import annotations

from paras2s_cli.judge.vocabulary import Vocabulary

WORDS = Vocabulary(["lake", "market", "museum", "the"])


def test_words_are_found_whatever_stands_around_them() -> None:
    assert WORDS.words_in(["The lake, the lake!", "", "blake market"]).tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_a_misspelling_is_the_nearest_known_word_and_others_stay() -> None:
    assert WORDS.nearest("te lak") == "the lake"
    assert WORDS.nearest("gonueteum marke zebra") == "gonueteum market zebra"
