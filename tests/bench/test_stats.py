"""What a summary says of rows whose answer is known."""

import pytest

from paras2s_cli.bench.stats import summarise


def test_means_are_per_system_mode_and_dimension(scored):
    rows = [
        scored(query="a", text="a", dimension="age", score=4.0, truth=5.0),
        scored(query="b", text="b", dimension="emotion", score=2.0, truth=None),
        scored(query="a", text="a", dimension="age", score=1.0, mode="T=1"),
        scored(query="a", text="a", dimension="age", score=3.0, system="sft"),
    ]
    summary = summarise(rows)
    first = summary.systems[0]
    assert [(s.system, s.mode) for s in summary.systems] == [
        ("aligned", "greedy"),
        ("aligned", "T=1"),
        ("sft", "greedy"),
    ]
    assert summary.modes == ("greedy", "T=1") and summary.dimensions == ("emotion", "age")
    assert {part: m.interval.mean for part, m in first.score.items()} == {
        "all": 3.0,
        "emotion": 2.0,
        "age": 4.0,
    }
    assert first.truth["emotion"].interval is None and first.truth["all"].interval.mean == 5.0
    assert (summary.texts, summary.queries, summary.seeds) == (2, 2, (0,))


def test_missing_scores_are_left_out_counted_and_bounded(scored):
    rows = [scored(query=q, text=q, score=s) for q, s in (("a", 4.0), ("b", 5.0), ("c", None), ("d", None))]
    measure = summarise(rows).systems[0].score["all"]
    assert (measure.interval.mean, measure.scored, measure.total, measure.missing) == (4.5, 2, 4, 2)
    assert (measure.if_lowest, measure.if_highest) == ((9 + 2) / 4, (9 + 10) / 4)


def test_no_score_at_all_is_no_interval(scored):
    measure = summarise([scored(score=None)]).systems[0].score["all"]
    assert measure.interval is None and (measure.if_lowest, measure.if_highest) == (1.0, 5.0)


def test_word_error_is_over_the_corpus_and_agreement_over_answers(scored):
    rows = [
        scored(query="a", text="a", written_text="yes", heard_text="no"),
        scored(
            query="b",
            text="b",
            written_text="one two three four five six seven.",
            heard_text="One two three four five six seven",
        ),
        scored(query="c", text="c", written_text=None, heard_text="whatever"),
    ]
    system = summarise(rows).systems[0]
    assert system.word_error.mean == pytest.approx(1 / 8)
    assert system.text_heard.mean == 0.5 and system.text_heard.n == 2
    silent = summarise([scored(written_text=None)]).systems[0]
    assert silent.word_error is None and silent.text_heard is None
    wordless = scored(query="d", text="d", written_text="", heard_text="")
    assert summarise([*rows, wordless]).systems[0].text_heard == system.text_heard
    assert summarise([wordless]).systems[0].text_heard is None


def test_comparisons_pair_by_query_and_seed(scored):
    rows = []
    for query in "abcd":
        for seed, level in ((0, 1.0), (1, 3.0)):
            rows.append(scored(system="sft", query=query, text=query, seed=seed, score=level, truth=2.0))
            rows.append(scored(query=query, text=query, seed=seed, score=level + 1, truth=2.0))
    summary = summarise(reversed(rows), compare=[("aligned", "sft"), ("aligned", "absent")])
    judge, truth = summary.comparisons
    assert (judge.system, judge.baseline, judge.measure) == ("aligned", "sft", "score")
    found = judge.differences["all"]
    assert (found.absolute.mean, found.absolute.low, found.absolute.high) == (1.0, 1.0, 1.0)
    assert found.relative.mean == pytest.approx(50.0)
    assert truth.differences["all"].absolute.mean == 0.0


def test_a_baseline_of_one_seed_stands_beside_every_seed(scored):
    rows = [scored(query=q, text=q, seed=s, score=4.0) for q in "ab" for s in (1, 2, 3)]
    rows += [scored(system="cascade", query=q, text=q, seed=0, score=3.0) for q in "ab"]
    found = summarise(rows, compare=[("aligned", "cascade")]).comparisons[0].differences["all"]
    assert (found.absolute.n, found.unpaired, found.absolute.mean) == (6, 0, 1.0)


def test_judge_and_truth_are_correlated(bench_rows):
    summary = summarise(bench_rows, draws=200)
    assert summary.judge_truth["all"].low > 0.9 and set(summary.judge_truth) == {"all", *summary.dimensions}


def test_nothing_gives_an_empty_summary():
    summary = summarise([])
    assert summary.systems == [] and summary.modes == () and summary.texts == 0
