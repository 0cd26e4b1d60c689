"""Words of a command line: systems, and overrides of the recipe."""

import pytest

from paras2s_cli.bench.systems import System, is_system, parse_systems


@pytest.mark.parametrize(
    ("word", "system"),
    [
        ("sft", System("sft", "sft")),
        ("cmd:./s2s --rate=8 {query} {answer}", System("cmd:./s2s --rate=8 {query} {answer}", "cmd", "./s2s --rate=8 {query} {answer}")),
        ("kimi-7b=cmd:./s2s a=b {query} {answer}", System("kimi-7b", "cmd", "./s2s a=b {query} {answer}")),
        ("openai:org/model:tag", System("openai:org/model:tag", "openai", "org/model:tag")),
        ("a=files:x=y.jsonl", System("a", "files", "x=y.jsonl")),
    ],
)
def test_what_names_a_system(word: str, system: System) -> None:
    assert is_system(word) and parse_systems([word]) == [system]


@pytest.mark.parametrize(
    "word", ["seed=1", "topline=cmd:./tts {text} {answer}", "cascade.tts=openai:tts-1", "judge=cmd.yaml", "queries=files:q"]
)
def test_what_is_an_override(word: str) -> None:
    assert not is_system(word)
