"""Word errors against an independent implementation, and normalisation by hand."""

import random

import pytest

from paras2s_cli.bench.words import normalise, text_agreement, word_errors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't, NOW!", "dont now"),
        ("It\u2019s well-known \u2026", "its well known"),
        ("  two\n lines\t", "two lines"),
        ("snake_case", "snake case"),
        ("...", ""),
    ],
)
def test_normalise(text, words):
    assert normalise(text) == words


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a b c", "a b c", (0, 3)),
        ("a b c", "a x c", (1, 3)),
        ("a b c", "a c", (1, 3)),
        ("a c", "a b c", (1, 2)),
        ("", "a b", (2, 0)),
        ("a b", "", (2, 2)),
        ("Hello, there!", "hello there", (0, 2)),
    ],
)
def test_word_errors_by_hand(reference, hypothesis, expected):
    assert word_errors(reference, hypothesis) == expected


def test_word_errors_agree_with_jiwer():
    jiwer = pytest.importorskip("jiwer")
    rng = random.Random(0)
    for _ in range(200):
        said, heard = (" ".join(rng.choices("abcde", k=rng.randint(1, 9))) for _ in range(2))
        found = jiwer.process_words(said, heard)
        edits = found.substitutions + found.deletions + found.insertions
        assert word_errors(said, heard) == (edits, len(said.split()))


def test_text_agreement():
    assert text_agreement([("Yes, sure.", "yes sure"), ("No.", "now")]) == 0.5
    assert text_agreement([]) is None
