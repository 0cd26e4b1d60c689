"""Which utterances there are: twins, takes, and every sentence in every tone."""

from __future__ import annotations

from collections import Counter, defaultdict

from paras2s_cli.pocket import plan
from paras2s_cli.pocket.world import load_world

RULES = load_world()


def test_ids_are_distinct_and_seeds_depend_on_them_alone() -> None:
    all_of_them = [*plan.queries(RULES), *plan.polytone(RULES), *plan.carriers(RULES), *plan.answers(RULES)]
    assert len({u.id for u in all_of_them}) == len(all_of_them)
    assert len({u.seed for u in all_of_them}) == len(all_of_them)
    assert all(u == v for u, v in zip(plan.queries(RULES), plan.queries(RULES), strict=True))


def test_a_query_and_its_twin_differ_in_style_and_share_words_and_mostly_the_speaker() -> None:
    found = {u.id: u for u in plan.queries(RULES)}
    for query in found.values():
        twin = found[query.contrast or ""]
        assert twin.contrast == query.id and twin.text == query.text and twin.style != query.style
        if query.style in ("male", "female"):
            assert query.voice.sex == query.style and twin.voice.sex == twin.style
        else:
            assert twin.speaker == query.speaker


def test_takes_of_a_query_are_by_different_speakers_where_there_are_enough() -> None:
    speakers = defaultdict(list)
    for u in plan.queries(RULES):
        speakers[u.sentence, u.style, u.split].append(u.speaker)
    for (_, style, split), names in speakers.items():
        assert len(names) == plan.TAKES[split]
        able = [v for v in RULES.voices[split].values() if style not in ("male", "female") or v.sex == style]
        assert len(set(names)) == min(len(names), len(able))


def test_polytone_has_every_training_sentence_in_every_tone_and_no_other() -> None:
    tones = defaultdict(set)
    for u in plan.polytone(RULES):
        tones[u.sentence].add(u.tone)
        assert u.split == "train" and u.speaker in RULES.voices["train"]
    for sentence in RULES.sentences():
        assert tones.get(sentence.name, set()) == (set(RULES.query_tones()) if sentence.split == "train" else set())
    for answer in RULES.answer_texts():
        assert tones[answer.name] == set(RULES.tones)


def test_neither_the_speaker_nor_the_age_tells_the_tone() -> None:
    queries = [u for u in plan.polytone(RULES) if u.tone in RULES.query_tones()]
    by_tone = Counter(u.tone for u in queries)
    for speaker in RULES.voices["train"]:
        of = Counter(u.tone for u in queries if u.speaker == speaker)
        assert len(of) == len(by_tone) and max(of.values()) < 0.35 * sum(of.values())
    children = Counter(u.tone for u in queries if u.child)
    assert all(0.05 < children[tone] / by_tone[tone] < 0.4 for tone in by_tone)


def test_answers_are_every_text_in_every_tone_of_the_one_assistant() -> None:
    found = plan.answers(RULES)
    assert {(u.sentence, u.tone) for u in found} == {(a.name, t) for a in RULES.answer_texts() for t in RULES.tones}
    assert all(u.voice == RULES.assistant and not u.varies and not u.child for u in found)


def test_a_childs_voice_goes_on_top_of_a_tone() -> None:
    sad, young = RULES.styles["sad"], RULES.styles["child"]
    both = plan.spoken_style(RULES, "sad", child=True)
    assert plan.spoken_style(RULES, "sad", child=False) == sad
    assert both.pitch == sad.pitch + young.pitch and both.formants == young.formants and both.breath == sad.breath


def test_carriers_have_every_topic_by_several_training_speakers_in_many_tones() -> None:
    found = plan.carriers(RULES)
    assert len(found) == len(RULES.carriers) * len(RULES.topics) * plan.CARRIER_TAKES
    by_text = defaultdict(set)
    for u in found:
        by_text[u.text].add(u.speaker)
        assert u.split == "train" and u.speaker in RULES.voices["train"] and u.purpose == "carrier"
    assert all(len(speakers) == plan.CARRIER_TAKES for speakers in by_text.values())
    assert {u.tone for u in found} == {"neutral", *RULES.query_tones()}
    known = {s.text for s in RULES.sentences()} | {a.text for a in RULES.answer_texts()}
    assert not known & set(by_text)
