"""The rubric by hand: what is said and how, on both sides, to a grade and its reason."""

from __future__ import annotations

import pytest

from paras2s_cli.judge.stages import Heard, Toned, Utterance, Verdict
from paras2s_cli.pocket.rubric import RubricScorer, fit, index, score, style_of
from paras2s_cli.pocket.world import AnswerText, World, load_world

RULES = load_world()
NEWS, JOY = "I just heard about the party.", "How wonderful! Enjoy every bit of the party."


def toned(**given: float) -> Toned:
    """Probabilities, with an adult man behind them."""
    rest = {name: 0.0 for name in (*RULES.query_tones(), *RULES.tones)}
    age = {"adult": 1 - given.pop("child", 0.0)}
    sex = {"male": given.pop("male", 1.0)}
    return Toned(rest | given, age | {"child": 1 - age["adult"]}, sex | {"female": 1 - sex["male"]})


def graded(
    query: str = NEWS, answer: str = JOY, *, closed: bool = False, query_tone: Toned | None = None, tone: str = "cheerful"
) -> Verdict:
    heard = [Heard(text, True) for text in (query, answer)]
    return score(heard[0], query_tone or toned(happy=0.9, sad=0.1), heard[1], toned(**{tone: 1.0}), closed=closed)


@pytest.mark.parametrize(
    ("style", "kind", "tone", "content", "manner", "total"),
    [
        ("happy", "celebrate", "cheerful", 5, 5, 5),
        ("happy", "marvel", "gentle", 4, 3, 4),  # 2.4 + 1.2 = 3.6
        ("happy", "celebrate", "serious", 5, 1, 2),  # 3.0 + 0.4 = 3.4, and one above the tone at most
        ("happy", "note", "cheerful", 2, 5, 2),  # 1.2 + 2.0 = 3.2, and not above the content
        ("happy", "guard", "cheerful", 1, 5, 1),  # 0.6 + 2.0 = 2.6, and not above the content
        ("happy", "inform", "serious", 3, 1, 2),  # 1.8 + 0.4 = 2.2
        ("happy", "guard", "serious", 1, 1, 1),
        ("sarcastic", "celebrate", "cheerful", 1, 1, 1),
        ("sarcastic", "hear_irony", "calm", 5, 5, 5),
        ("child", "inform", "serious", 2, 2, 2),
    ],
)
def test_hand_computed_grades(style: str, kind: str, tone: str, content: int, manner: int, total: int) -> None:
    found = fit(RULES, style, "lake", AnswerText("", "", kind, "lake"), tone)
    assert (found.content, found.style, found.score, found.failure) == (content, manner, total, None)
    assert found.reason.count(".") == 2 and found.reason[0].isupper()


def with_overall(**change: float) -> World:
    return RULES.model_copy(update={"overall": RULES.overall.model_copy(update=change)})


@pytest.mark.parametrize(
    ("kind", "tone", "total"),
    [
        ("marvel", "cheerful", 4),  # 4.5
        ("celebrate", "amazed", 4),  # 4.5
        ("inform", "cheerful", 3),  # 4.0, and not above the content
        ("note", "gentle", 2),  # 2.5
        ("note", "serious", 1),  # 1.5
        ("celebrate", "cheerful", 5),
    ],
)
def test_halves_are_rounded_down(kind: str, tone: str, total: int) -> None:
    even = with_overall(content=0.5, tone=0.5, slack=4)
    assert fit(even, "happy", "lake", AnswerText("", "", kind, "lake"), tone).score == total


def test_neither_side_can_buy_off_the_other() -> None:
    strict = with_overall(slack=1)
    assert fit(strict, "happy", "lake", AnswerText("", "", "celebrate", "lake"), "serious").score == 2
    assert fit(strict, "happy", "lake", AnswerText("", "", "guard", "lake"), "cheerful").score == 1


def test_an_answer_about_another_topic_loses_two_points_of_content_and_says_so() -> None:
    found = fit(RULES, "happy", "party", AnswerText("", "", "celebrate", "lake"), "cheerful")
    assert (found.content, found.style, found.score) == (3, 5, 3)
    assert "speaks of the lake instead of the party" in found.reason
    assert fit(RULES, "happy", "party", AnswerText("", "", "guard", "lake"), "cheerful").content == 1


def test_the_style_is_chosen_between_the_sentences_own_two() -> None:
    sentence = next(s for s in RULES.sentences() if s.contrast == ("happy", "sad"))
    assert style_of(sentence, toned(angry=0.9, happy=0.02, sad=0.08)) == "sad"
    asked = next(s for s in RULES.sentences() if s.contrast == ("adult", "child"))
    assert style_of(asked, toned(child=0.7)) == "child" and style_of(asked, toned(child=0.3)) == "adult"
    left = next(s for s in RULES.sentences() if s.contrast == ("male", "female"))
    assert style_of(left, toned(male=0.2)) == "female"


def test_the_same_answer_is_graded_by_the_tone_of_the_query() -> None:
    assert graded().score == 5
    assert graded(query_tone=toned(happy=0.1, sad=0.9)).score == 1


def test_punctuation_and_case_do_not_matter() -> None:
    assert graded(query="i just heard about the party", answer="HOW WONDERFUL enjoy every bit of the party").score == 5


@pytest.mark.parametrize("nothing", ["silence", "noise"])
@pytest.mark.parametrize("closed", [False, True])
def test_an_answer_without_speech_gets_a_one_for_that_reason(nothing: str, closed: bool) -> None:
    found = score(Heard(NEWS, True), toned(happy=1), Heard("", False, False, nothing), toned(), closed=closed)
    assert (found.content, found.style, found.score, found.failure) == (1, 1, 1, None) and nothing in found.reason


@pytest.mark.parametrize("nothing", ["silence", "noise"])
def test_a_query_without_speech_cannot_be_answered_well_or_badly(nothing: str) -> None:
    found = score(Heard("", False, False, nothing), toned(), Heard(JOY, True), toned(cheerful=1), closed=True)
    assert (found.content, found.style, found.score, found.failure) == (None, None, None, "outside-world")
    assert nothing in found.reason


@pytest.mark.parametrize("closed", [False, True])
def test_a_query_outside_the_world_has_no_grade(closed: bool) -> None:
    found = score(Heard("we need more bread", False), toned(), Heard(JOY, True), toned(cheerful=1), closed=closed)
    assert (found.score, found.failure) == (None, "outside-world") and "query" in found.reason


def test_an_unknown_answer_has_no_grade_unless_the_speaker_can_only_say_known_ones() -> None:
    unknown = Heard("we need more bread", False)
    free, own = (score(Heard(NEWS, True), toned(happy=1), unknown, toned(calm=1), closed=closed) for closed in (False, True))
    assert (free.score, free.failure) == (None, "outside-world") and "answer" in free.reason
    assert (own.content, own.style, own.score, own.failure) == (1, 1, 1, None) and "understood" in own.reason


def test_a_text_that_the_listener_only_spells_by_chance_is_not_known() -> None:
    found = score(Heard(NEWS, False), toned(happy=1), Heard(JOY, True), toned(cheerful=1), closed=False)
    assert found.failure == "outside-world"


def test_the_scorer_grades_pair_by_pair() -> None:
    query = Utterance(Heard(NEWS, True), toned(happy=1), "happy")
    answers = [Utterance(Heard(JOY, True), toned(**{tone: 1.0}), tone) for tone in ("cheerful", "serious")]
    found = RubricScorer().score([(query, a) for a in answers], closed=False)
    assert [v.score for v in found] == [5, 2]


def test_the_index_finds_every_text() -> None:
    assert len(index().sentences) == len(RULES.sentences()) and len(index().answers) == len(RULES.answer_texts())
