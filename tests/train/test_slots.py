"""Which words sentences differ in."""

from __future__ import annotations

from paras2s_cli.pocket.embedded import PocketWorld
from paras2s_cli.train.slots import slot_words


def test_words_that_stand_in_the_same_place() -> None:
    texts = ["I saw the lake.", "I saw the party!", "We saw the party.", "We met.", "No more"]
    assert slot_words(texts) == {"lake", "party", "i", "we"}
    assert slot_words(["one two", "two one", "one two three"]) == frozenset()


def test_the_worlds_slots_are_its_topics(silent_world: PocketWorld) -> None:
    topics = {q.row["sentence"].split("-")[1] for q in silent_world.queries("train")}
    assert slot_words([q.row["text"] for q in silent_world.queries("train")]) == topics and len(topics) == 6
