"""What was heard is kept, exactly; a cache that fails costs time and nothing else."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from paras2s_cli.judge.heard_cache import HeardCache
from paras2s_cli.judge.stages import Heard, Toned, Utterance

UTTERANCE = Utterance(Heard("Grüß dich", True, fit=0.1 + 0.2), Toned({"sad": 1 / 3}, {"adult": 1.0}, {"male": 0.5}), "sad")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def said() -> list[str]:
    return []


def test_what_is_stored_is_there_again_exactly(root: Path, said: list[str]) -> None:
    first = HeardCache("ears-1", said.append)
    assert first.fetch(["a"]) == {} and not root.exists(), "looking makes nothing"
    many = {str(number): UTTERANCE for number in range(1200)}
    first.store(many)
    again = HeardCache("ears-1", said.append)
    assert again.fetch([*many, "b"]) == many
    assert (again.found, len(again.asked)) == (1200, 1201)
    assert HeardCache("ears-2", said.append).fetch(["1"]) == {}, "another listener hears anew"
    assert said == []


def test_a_key_counts_once(said: list[str]) -> None:
    cache = HeardCache("ears-1", said.append)
    cache.fetch(["a", "a"])
    cache.store({"a": UTTERANCE})
    cache.fetch(["a"])  # by now it is there, but it had to be listened to
    assert (cache.found, len(cache.asked)) == (0, 1)


def test_numpy_numbers_are_kept(said: list[str]) -> None:
    toned = Toned({"sad": np.float32(0.1)}, {}, {})
    HeardCache("e", said.append).store({"a": Utterance(UTTERANCE.heard, toned, "sad")})
    assert HeardCache("e", said.append).fetch(["a"])["a"].toned.tones["sad"] == np.float32(0.1)


def test_a_name_with_slashes_stays_below_the_cache(root: Path, said: list[str]) -> None:
    paths = [HeardCache(name, said.append).path for name in ("../../x", "..-..-x", "a/b", "a-b")]
    assert all(path.parents[2] == root and path.parents[1].name == "heard" for path in paths)
    assert len(set(paths)) == 4


def test_what_another_version_left_is_heard_anew(said: list[str]) -> None:
    cache = HeardCache("e", said.append)
    cache.store({"a": UTTERANCE, "b": UTTERANCE})
    with sqlite3.connect(cache.path) as base:
        base.execute("UPDATE heard SET utterance = '{\"heard\": {}}' WHERE key = 'a'")
    base.close()
    assert set(cache.fetch(["a", "b"])) == {"b"} and said == []


def test_a_damaged_cache_is_said_once_and_gone_on_without(said: list[str]) -> None:
    cache = HeardCache("e", said.append)
    cache.path.parent.mkdir(parents=True)
    cache.path.write_bytes(b"this is no database, and it is long enough to tell" * 100)
    assert cache.fetch(["a"]) == {}
    cache.store({"a": UTTERANCE})
    assert cache.fetch(["a"]) == {"a": UTTERANCE}, "remembered while the process lives"
    assert len(said) == 1 and str(cache.path) in said[0]


def test_a_cache_that_cannot_be_made_is_gone_on_without(root: Path, said: list[str]) -> None:
    root.write_text("a file where a folder should be")
    cache = HeardCache("e", said.append)
    cache.store({"a": UTTERANCE})
    assert cache.fetch(["a"]) == {"a": UTTERANCE} and len(said) == 1
