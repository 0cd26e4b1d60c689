"""What a model is shown: how many, how evenly, how good."""

from __future__ import annotations

from collections import Counter

import pytest

from paras2s_cli.pocket.embedded import PocketWorld
from paras2s_cli.recipe.speaking import Demonstrations
from paras2s_cli.train.demonstrations import best_demonstrations, draw_demonstrations, speaking_lessons


def settings(count: int = 96, tone_deaf: float = 0.5, **shares: float) -> Demonstrations:
    return Demonstrations(count=count, tone_deaf=tone_deaf, **shares)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [12, 50, 120])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_as_many_and_as_poor_as_the_recipe_says(silent_world: PocketWorld, count: int, share: float) -> None:
    found = draw_demonstrations(silent_world, settings(count, share), 1)
    assert len(found) == count and sum(d.tone_deaf for d in found) == round(share * count)
    for demonstration in found:
        assert demonstration.task == "answer" and demonstration.answer is not None
        assert demonstration.query.row["split"] == "train" and demonstration.query.row["purpose"] == "query"
        if not demonstration.tone_deaf:
            assert silent_world.truth(demonstration.query, demonstration.answer) == 5


def test_tone_deaf_ones_are_on_the_topic_and_worse(silent_world: PocketWorld) -> None:
    found = draw_demonstrations(silent_world, settings(300, 1.0), 1)
    topics = [(d.query.row["sentence"].split("-")[1], d.answer.row["sentence"].split("-")[1]) for d in found if d.answer]
    assert len(topics) == len(found) and all(asked == said for asked, said in topics)
    grades = [silent_world.truth(d.query, d.answer) for d in found]
    assert 1.5 < sum(grades) / len(grades) < 3


def test_styles_are_shown_equally_often(silent_world: PocketWorld) -> None:
    counts = Counter(d.query.row["style"] for d in draw_demonstrations(silent_world, settings(120), 1))
    assert len(counts) == 12 and max(counts.values()) - min(counts.values()) <= 1
    deaf = Counter(d.query.row["dimension"] for d in draw_demonstrations(silent_world, settings(120), 1) if d.tone_deaf)
    assert len(deaf) == 4


def test_no_query_is_shown_twice_and_more_than_there_are_is_all(silent_world: PocketWorld) -> None:
    found = draw_demonstrations(silent_world, settings(10_000), 1)
    ids = [d.query.id for d in found]
    assert len(ids) == len(set(ids)) == len(silent_world.queries("train"))


def test_the_seed_alone_decides(silent_world: PocketWorld) -> None:
    first, again, other = (draw_demonstrations(silent_world, settings(), seed) for seed in (1, 1, 2))
    assert first == again != other


def test_best_demonstrations_answer_each_query_well(silent_world: PocketWorld) -> None:
    queries = silent_world.queries("validation")
    found = best_demonstrations(silent_world, queries, 1)
    assert [d.query for d in found] == queries
    assert all(silent_world.truth(d.query, d.answer) == 5 and not d.tone_deaf for d in found)
    assert len({(d.query.row["style"], d.answer.row["tone"]) for d in found if d.answer}) > len({d.query.row["style"] for d in found})


def test_lessons_in_speaking_are_of_three_kinds_in_their_shares(silent_world: PocketWorld) -> None:
    shares = settings(0, 1.0, transcriptions=0.25, readings=0.5)
    lessons = speaking_lessons(silent_world, shares, 64, 1, 0)
    assert Counter(d.task for d in lessons) == {"transcription": 16, "reading": 32, "answer": 16}
    for lesson in lessons:
        assert (lesson.answer is None) == (lesson.task == "transcription")
        assert lesson.tone_deaf == (lesson.task == "answer")
        assert lesson.query.row["split"] == "train"
        if lesson.task == "answer" and lesson.answer:
            assert lesson.query.row["sentence"].split("-")[1] == lesson.answer.row["sentence"].split("-")[1]


def test_lessons_differ_from_step_to_step_and_not_from_run_to_run(silent_world: PocketWorld) -> None:
    shares = settings(0, 1.0, transcriptions=0.2, readings=0.3)
    assert speaking_lessons(silent_world, shares, 16, 1, 5) == speaking_lessons(silent_world, shares, 16, 1, 5)
    assert speaking_lessons(silent_world, shares, 16, 1, 5) != speaking_lessons(silent_world, shares, 16, 1, 6)
    assert speaking_lessons(silent_world, shares, 16, 1, 5) != speaking_lessons(silent_world, shares, 16, 2, 5)


def test_carrier_sentences_are_answered_and_written_down_in_their_share_and_never_read_for(silent_world: PocketWorld) -> None:
    shares = settings(0, 1.0, transcriptions=0.4, readings=0.2, carriers=0.5)
    lessons = [lesson for step in range(40) for lesson in speaking_lessons(silent_world, shares, 20, 1, step)]
    for task, share in (("transcription", 0.5), ("answer", 0.5), ("reading", 0.0)):
        carried = [lesson.query.row["purpose"] == "carrier" for lesson in lessons if lesson.task == task]
        assert sum(carried) / len(carried) == pytest.approx(share, abs=0.08), task
    for lesson in lessons:
        if lesson.task == "answer" and lesson.answer:
            assert lesson.query.row["sentence"].split("-")[1] == lesson.answer.row["sentence"].split("-")[1]
