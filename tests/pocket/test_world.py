"""world.yaml is sound: the paper's classes, good answers for each, and nothing shared between what is trained on and what is tested."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from paras2s_cli.judge.ears import LETTERS, spell
from paras2s_cli.pocket import plan, rubric
from paras2s_cli.pocket.world import SPLITS, AnswerText, World, load_world

CLASSES = {
    "emotion": {"happy", "surprised", "sad", "angry", "fearful", "disgusted"},
    "sarcasm": {"sincere", "sarcastic"},
    "age": {"adult", "child"},
    "gender": {"male", "female"},
}
RULES = load_world()
STYLES = sorted(set().union(*CLASSES.values()))


def grades(style: str) -> dict[tuple[str, str], int]:
    """(kind, tone) -> score of an answer on the topic."""
    topic = RULES.topics[0]
    return {
        (kind, tone): int(rubric.fit(RULES, style, topic, AnswerText("", "", kind, topic), tone).score or 0)
        for kind in RULES.answers
        for tone in RULES.tones
    }


@pytest.mark.parametrize("split", SPLITS)
def test_every_class_of_the_paper_is_in_every_split(split: str) -> None:
    found: dict[str, set[str]] = {}
    for sentence in RULES.sentences():
        if sentence.split == split:
            found.setdefault(sentence.dimension, set()).update(sentence.contrast)
    assert found == CLASSES


def test_the_two_styles_of_a_sentence_differ_and_are_of_its_dimension() -> None:
    for frame in RULES.frames.values():
        assert frame.contrast[0] != frame.contrast[1]
        assert set(frame.contrast) <= CLASSES[frame.dimension]


def test_the_two_styles_of_a_sentence_want_different_answers() -> None:
    for frame in RULES.frames.values():
        first, second = (max(grades(s), key=grades(s).__getitem__) for s in frame.contrast)
        assert first != second
        assert grades(frame.contrast[1])[first] < 5 and grades(frame.contrast[0])[second] < 5


@pytest.mark.parametrize("style", STYLES)
def test_every_style_has_several_good_answers_and_a_best_one(style: str) -> None:
    good = {key for key, grade in grades(style).items() if grade >= 4}
    assert len(good) >= 4
    assert len({kind for kind, _ in good}) >= 2 and len({tone for _, tone in good}) >= 2
    assert max(grades(style).values()) == 5


@pytest.mark.parametrize("style", STYLES)
def test_every_grade_can_be_got_in_every_style(style: str) -> None:
    assert set(grades(style).values()) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("style", STYLES)
def test_every_grade_is_between_1_and_5_and_has_a_reason(style: str) -> None:
    fit = RULES.fits[style]
    assert fit.requirement.endswith(".")
    for grade, reason in [*fit.content.values(), *fit.tone.values()]:
        assert 1 <= grade <= 5
        assert len(reason.split()) >= 3 and re.match(r"(it|the voice) [a-z]", reason), reason


def test_sex_changes_the_form_of_address_and_nothing_else() -> None:
    male, female = RULES.fits["male"], RULES.fits["female"]
    swapped = {"sir": "madam", "madam": "sir", "gentleman": "lady", "lady": "gentleman"}
    assert male.tone == female.tone and male.requirement == female.requirement
    assert {swapped.get(kind, kind): grade for kind, grade in male.content.items()} == female.content


def test_no_sentence_no_voice_and_no_espeak_variant_is_in_two_splits() -> None:
    for first, second in combinations(SPLITS, 2):
        of = {split: {spell(s.text) for s in RULES.sentences() if s.split == split} for split in SPLITS}
        assert of[first] and not of[first] & of[second]
        assert not set(RULES.voices[first]) & set(RULES.voices[second])
        variants = [{v.variant for v in RULES.voices[split].values()} for split in (first, second)]
        assert not variants[0] & variants[1]


def test_what_is_rendered_keeps_the_splits_apart_too() -> None:
    used = [*plan.queries(RULES), *plan.polytone(RULES), *plan.carriers(RULES)]
    assert {u.speaker for u in plan.carriers(RULES)} <= set(RULES.voices["train"])
    for first, second in combinations(SPLITS, 2):
        for mark in (lambda u: spell(u.text), lambda u: u.speaker, lambda u: u.voice.variant):
            shared = [{mark(u) for u in used if u.split == split and u.sentence in SENTENCES} for split in (first, second)]
            assert not shared[0] & shared[1]
    variants = {u.voice.variant for u in used}
    assert RULES.assistant.variant not in variants


SENTENCES = {s.name for s in RULES.sentences()}


def test_every_topic_is_held_out_equally_often() -> None:
    for split, share in (("test", 2), ("validation", 1)):
        counts = Counter(s.topic for s in RULES.sentences() if s.split == split)
        assert set(counts) == set(RULES.topics) and len(set(counts.values())) == 1
        per_frame = Counter(s.frame for s in RULES.sentences() if s.split == split)
        assert set(per_frame.values()) == {share}


def test_every_training_frame_and_topic_is_heard() -> None:
    train = [s for s in RULES.sentences() if s.split == "train"]
    assert {s.frame for s in train} == set(RULES.frames) and {s.topic for s in train} == set(RULES.topics)


def test_every_text_is_spelled_differently_and_has_letters_only() -> None:
    texts = [*(s.text for s in RULES.sentences()), *(c.text for c in RULES.carrier_texts()), *(a.text for a in RULES.answer_texts())]
    assert len({spell(text) for text in texts}) == len(texts)
    assert all(set(spell(text)) <= set(LETTERS) for text in texts)
    assert not any(re.search(r"\d", text) for text in texts), "a digit is spoken but not spelled"


def test_there_are_voices_enough_of_both_sexes_and_tones_enough() -> None:
    assert sum(len(voices) for voices in RULES.voices.values()) >= 8
    assert all({v.sex for v in voices.values()} == {"male", "female"} for voices in RULES.voices.values())
    assert len(RULES.tones) >= 5 and set(RULES.tones) <= set(RULES.styles)
    assert len(RULES.query_tones()) == 8


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("fits", "happy", "tone", "cheerful"), None, "every tone"),
        (("fits", "happy", "content", "otherwise"), None, "otherwise"),
        (("fits", "happy", "content", "sing"), [5, "it sings"], "unknown answers"),
        (("frames", "heard", "contrast"), ["happy", "elated"], "elated"),
        (("voices", "train", "tom", "hair"), "red", "hair"),
    ],
)
def test_a_world_with_a_hole_in_it_is_refused(path: tuple[str, ...], value: Any, says: str) -> None:
    data = yaml.safe_load(yaml.safe_dump(RULES.model_dump(mode="json")))
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(ValidationError, match=says):
        World.model_validate(data)
