"""The pocket world as the rest of the package asks it: best, blind and random answers, the truth, and what codes say."""

from __future__ import annotations

import numpy as np
import pytest

from paras2s_cli.pocket.embedded import GARBLED, PocketWorld, edit_distances


def naive_distance(first: list[int], second: list[int]) -> int:
    """Levenshtein's recursion, cell by cell."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(second) + 1)] for i in range(len(first) + 1)]
    for i in range(1, len(first) + 1):
        for j in range(1, len(second) + 1):
            change = table[i - 1][j - 1] + (first[i - 1] != second[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, change)
    return table[-1][-1]


@pytest.mark.parametrize("seed", range(8))
def test_edit_distances_are_levenshteins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidates = [rng.integers(4, size=rng.integers(1, 14)) for _ in range(9)]
    for codes in (rng.integers(4, size=seed * 2), candidates[0]):
        expected = [naive_distance(codes.tolist(), c.tolist()) for c in candidates]
        assert edit_distances(codes, candidates).tolist() == expected


def test_edit_distance_to_nothing_is_the_length() -> None:
    assert edit_distances(np.zeros(0, np.int64), [np.arange(3), np.arange(5)]).tolist() == [3, 5]


def test_every_query_has_best_answers_and_they_are_all_fives(silent_world: PocketWorld) -> None:
    for split in ("train", "validation", "test"):
        for query in silent_world.queries(split):
            best = silent_world.best_answers(query)
            assert best and all(silent_world.truth(query, answer) == 5 for answer in best)
            others = [a for a in silent_world.answers() if a not in best]
            assert len(others) > 300


def test_the_truth_goes_by_the_rows_and_not_by_ears(silent_world: PocketWorld) -> None:
    queries = {q.id: q for q in silent_world.queries("train")}
    happy = next(q for q in queries.values() if q.row["style"] == "happy")
    sad = next(q for q in queries.values() if q.row["style"] == "sad")
    topic = happy.row["sentence"].split("-")[1]
    joyful = next(a for a in silent_world.answers() if a.id == f"answer.celebrate-{topic}.cheerful")
    assert silent_world.truth(happy, joyful) == 5
    assert silent_world.truth(sad, joyful) == 1
    assert silent_world.truth(happy, None) == 1


def test_answers_and_texts_are_complete(silent_world: PocketWorld) -> None:
    rules = silent_world.rules
    assert len(silent_world.answers()) == len(rules.answers) * len(rules.topics) * len(rules.tones)
    assert len(silent_world.known_texts("query")) == len(rules.frames) * len(rules.topics)
    assert len(silent_world.known_texts("answer")) == len(rules.answers) * len(rules.topics)


def test_a_blind_answer_is_one_for_both_styles_and_is_calm(silent_world: PocketWorld) -> None:
    for query in silent_world.queries("test"):
        twin = next(q for q in silent_world.queries("test") if q.id == query.row["contrast"])
        answer = silent_world.blind_answer(query.row["text"])
        assert answer is silent_world.blind_answer(twin.row["text"]) and answer.row["tone"] == "calm"
        grades = [silent_world.truth(q, answer) for q in (query, twin)]
        assert answer.row["sentence"].split("-")[1] == query.row["sentence"].split("-")[1]
        for other in silent_world.answers():
            if other.row["tone"] == "calm":
                assert np.mean(grades) >= np.mean([silent_world.truth(q, other) for q in (query, twin)])


def test_a_blind_answer_to_words_that_are_not_known_takes_note(silent_world: PocketWorld) -> None:
    for text in ("We need more bread.", "", "???"):
        assert silent_world.blind_answer(text).row["sentence"].startswith("note-")


def test_random_answers_keep_to_the_topic_where_asked(silent_world: PocketWorld) -> None:
    query, rng = silent_world.queries("train")[0], np.random.default_rng(0)
    topic = query.row["sentence"].split("-")[1]
    same = [silent_world.random_answer(query, rng).row for _ in range(200)]
    free = [silent_world.random_answer(query, rng, same_topic=False).row for _ in range(200)]
    assert {r["sentence"].split("-")[1] for r in same} == {topic}
    assert {r["sentence"].split("-")[1] for r in free} == set(silent_world.rules.topics)
    assert {r["tone"] for r in same} == set(silent_world.rules.tones)
    assert {r["sentence"].split("-")[0] for r in same} == set(silent_world.rules.answers)


def test_codes_are_recognised_though_some_are_wrong(silent_world: PocketWorld) -> None:
    rng = np.random.default_rng(1)
    for answer in silent_world.answers()[::23]:
        assert answer.codes is not None
        assert silent_world.recognise(answer.codes) is answer
        spoilt = answer.codes.copy()
        wrong = rng.permutation(len(spoilt))[: round(0.7 * GARBLED * len(spoilt))]
        spoilt[wrong] = 1000
        assert silent_world.recognise(spoilt) is answer
        assert silent_world.recognise(np.delete(answer.codes, 3)) is answer


def test_codes_of_nothing_are_not_recognised(silent_world: PocketWorld) -> None:
    assert silent_world.recognise(np.full(30, 1000)) is None
    assert silent_world.recognise(np.zeros(0, np.int64)) is None


def test_decoding_many_is_decoding_each(
    silent_world: PocketWorld, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("world")
    silent_world.codec.save(folder / "codec.safetensors")
    monkeypatch.setattr(silent_world, "rendering", type("Rendering", (), {"folder": folder}))
    codes = [np.array([3, 1, 4]), np.zeros(0, np.int64), np.array([5])]
    waves = silent_world.decode(codes)
    assert all((wave == silent_world.codec.decode(c)).all() for wave, c in zip(waves, codes, strict=True))


@pytest.mark.slow
def test_rendered_answers_are_told_apart_by_their_codes(pocket_world: PocketWorld) -> None:
    answers = pocket_world.answers()
    assert all(a.codes is not None and a.codes.dtype == np.int64 and a.codes.max() < pocket_world.codec.size for a in answers)
    for answer in answers[::11]:
        assert answer.codes is not None
        assert pocket_world.recognise(answer.codes) is answer
    rng = np.random.default_rng(0)
    assert [pocket_world.recognise(rng.integers(pocket_world.codec.size, size=35)) for _ in range(5)] == [None] * 5


@pytest.mark.slow
def test_what_is_rendered_is_what_was_planned(pocket_world: PocketWorld, silent_world: PocketWorld) -> None:
    rendered, planned = pocket_world.rendering.utterances, silent_world.rendering.utterances
    assert list(rendered) == list(planned)
    for name, spoken in rendered.items():
        assert {k: v for k, v in spoken.row.items() if k != "requirement"} == planned[name].row
        assert spoken.path.exists() and np.isfinite(spoken.features).all() and len(spoken.features) > 20
        assert (spoken.codes is not None) == (spoken.row["purpose"] == "answer")
    assert all(q.row["requirement"].endswith(".") for q in pocket_world.queries("test"))
