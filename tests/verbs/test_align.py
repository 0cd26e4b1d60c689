"""`paras2s align`: what a long training would fail on at its end is said before its beginning."""

from __future__ import annotations

from pathlib import Path

import pytest

from paras2s_cli.main import main
from paras2s_cli.recipe.benching import BenchRecipe
from paras2s_cli.recipe.load import load_recipe
from paras2s_cli.train.whole import check_bench


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ('bench.systems=["sft","nosuch"]', "no system is called 'nosuch'"),
        ("bench.systems=[]", "the list is empty"),
        ('bench.sampled=["nosuch"]', "no system is called 'nosuch'"),
        ('bench.systems=["cmd:no-such-program {query} {answer}"]', "there is no program 'no-such-program'"),
        ("bench.queries=gone.jsonl", "gone.jsonl does not exist"),
    ],
)
def test_a_bench_that_cannot_be_is_said_before_the_training(
    word: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["align", word]) == 2
    out, err = capsys.readouterr()
    assert says in err and err.count("\n") == 1 and out == "" and not list(tmp_path.iterdir())


def test_systems_that_are_not_our_own_are_told_from_ours() -> None:
    assert check_bench(load_recipe("pocket", [], BenchRecipe)) == {}
    words = ['systems=["sft","mine=cmd:cp {query} {answer}","cascade"]', "cascade.asr=cmd:cat {query}"]
    assert list(check_bench(load_recipe("pocket", words, BenchRecipe))) == ["mine", "cascade"]
