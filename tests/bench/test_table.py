"""The terminal table: its figures, its width, and what it says of missing scores."""

import io

from paras2s_cli.bench.stats import summarise
from paras2s_cli.bench.table import print_table


def printed(summary) -> str:
    out = io.StringIO()
    print_table(summary, out)
    return out.getvalue()


def test_the_table_fits_a_hundred_columns_and_is_plain(bench_rows):
    text = printed(summarise(bench_rows, compare=[("aligned", "sft")], draws=200))
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    for word in ("greedy", "T=1", "emotion", "sarcasm", "age", "gender", "truth", "topline", "aligned - sft"):
        assert word in text


def test_figures_intervals_and_missing_scores_are_printed(scored):
    rows = [scored(query=q, text=q, score=s) for q, s in (("a", 4.0), ("b", 4.0), ("c", None))]
    rows += [scored(system="sft", query=q, text=q, score=2.0) for q in "ab"]
    text = printed(summarise(rows, compare=[("aligned", "sft")]))
    assert "4.00 [4.00 4.00]" in text
    assert "+2.00 [+2.00 +2.00]" in text and "+100.0" in text
    assert "scored 2 of 3; the mean would be 3.00 if the rest were all 1, 4.33 if all 5" in " ".join(text.split())


def test_markup_in_a_name_is_text(scored):
    assert "[red]x[/red]" in printed(summarise([scored(system="[red]x[/red]")]))
