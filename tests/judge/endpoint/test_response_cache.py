"""The response cache: what it keeps, who may share it, and what a kill or a damaged disk costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from chat_server import ChatServer

from paras2s_cli.endpoint.client import Client
from paras2s_cli.endpoint.reply import Usage
from paras2s_cli.judge.endpoint.response_cache import ResponseCache
from paras2s_cli.judge.endpoint.scorer import EndpointScorer
from paras2s_cli.judge.endpoint.verdict import Answer, Opinion, read_response
from paras2s_cli.judge.stages import Heard, Toned, Utterance
from paras2s_cli.recipe.servers import Endpoint

ROOT = Path(__file__).parents[3]
ABOUT = {"model": "m"}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def said() -> list[str]:
    return []


def answer(score: int) -> Answer:
    opinion = Opinion(reason=f"Grade {score}.", content=score, style=score, score=score)
    return Answer(opinion, opinion.model_dump_json(), Usage(10, 2))


def test_what_is_kept_is_found_by_another(said: list[str]) -> None:
    cache = ResponseCache(said.append)
    assert cache.fetch(["a"]) == {}
    cache.store("a", answer(3), ABOUT)
    cache.store("b", Answer(answer(4).opinion, answer(4).text, None), ABOUT)
    assert ResponseCache(said.append).fetch(["a", "b", "c"]) == {"a": answer(3), "b": Answer(answer(4).opinion, answer(4).text, None)}
    cache.store("a", answer(5), ABOUT)
    assert cache.fetch(["a"]) == {"a": answer(5)} and said == []
    assert len(cache.path.read_text().splitlines()) == 3, "the file only grows"


def test_a_torn_last_line_is_cut_off_and_said(said: list[str]) -> None:
    cache = ResponseCache(said.append)
    cache.store("a", answer(3), ABOUT)
    whole = cache.path.read_bytes()
    for use in (lambda: cache.fetch(["a"]), lambda: cache.store("b", answer(1), ABOUT)):
        said.clear()
        cache.path.write_bytes(whole + b'{"key": "torn", "text": "{')
        use()
        assert len(said) == 1 and "torn" in said[0] and str(cache.path) in said[0]
        assert cache.path.read_bytes().startswith(whole) and b'"torn"' not in cache.path.read_bytes()
    assert set(cache.fetch(["a", "b", "torn"])) == {"a", "b"}


def beside() -> dict[str, str]:
    """The environment of a process that imports this file."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests" / "judge" / "support")])
    return {**os.environ, "PYTHONPATH": paths}


def test_two_processes_share_it(root: Path, said: list[str]) -> None:
    program = (
        "import sys\n"
        "from tests.judge.endpoint.test_response_cache import *\n"
        "mine, other = sys.argv[1:]\n"
        "cache, seen = ResponseCache(print), 0\n"
        "for i in range(150):\n"
        "    cache.store(f'{mine}{i}', answer(i % 5 + 1), ABOUT)\n"
        "    seen = max(seen, len(cache.fetch([f'{other}{j}' for j in range(150)])))\n"
        "while len(cache.fetch([f'{other}{j}' for j in range(150)])) < 150: pass\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", program, *names], env=beside(), stdout=subprocess.PIPE) for names in ("xy", "yx")]
    assert [run.communicate(timeout=60)[0] for run in runs] == [b"", b""] and [run.returncode for run in runs] == [0, 0]
    cache = ResponseCache(said.append)
    rows = [json.loads(line) for line in cache.path.read_text().splitlines()]
    assert sorted(row["key"] for row in rows) == sorted(f"{name}{i}" for name in "xy" for i in range(150))
    found = cache.fetch([row["key"] for row in rows])
    assert {key: value.opinion.score for key, value in found.items()} == {f"{n}{i}": i % 5 + 1 for n in "xy" for i in range(150)}


def test_a_line_that_another_process_is_writing_is_waited_for(said: list[str]) -> None:
    program = (
        "from tests.judge.endpoint.test_response_cache import *\n"
        "from paras2s_cli.data.cache import folder_lock\n"
        "path = ResponseCache(print).path\n"
        "line = json.dumps({'key': 'slow', 'text': answer(2).text})\n"
        "with folder_lock(path), open(path, 'a') as file:\n"
        "    print(line[:20], file=file, end='', flush=True)\n"
        "    print('half', flush=True)\n"
        "    input()\n"
        "    print(line[20:], file=file)\n"
    )
    cache = ResponseCache(said.append)
    cache.store("first", answer(1), ABOUT)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], env=beside(), text=True, **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "half\n"
        thread = threading.Thread(target=cache.store, args=("second", answer(3), ABOUT))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive(), "it waits"
        other.communicate("\n", timeout=30)
        thread.join(30)
    assert set(cache.fetch(["first", "slow", "second"])) == {"first", "slow", "second"} and said == []


def test_the_index_is_made_anew_from_the_file(said: list[str]) -> None:
    cache = ResponseCache(said.append)
    cache.store("a", answer(3), ABOUT)
    assert set(cache.fetch(["a"])) == {"a"}
    for damage in (Path.unlink, lambda path: path.write_bytes(b"this is no database " * 1000)):
        damage(cache.index)
        assert cache.fetch(["a"]) == {"a": answer(3)}
    cache.path.unlink()
    other = ResponseCache(said.append)
    for i in range(20):
        other.store(f"b{i}", answer(2), ABOUT)
    assert set(other.fetch(["a", "b0", "b19"])) == {"b0", "b19"}, "of another file the index knows nothing"
    assert said == []


def test_lines_that_are_no_answers_are_passed_over(said: list[str]) -> None:
    cache = ResponseCache(said.append)
    cache.store("a", answer(3), ABOUT)
    with open(cache.path, "ab") as file:
        file.write(b'{"key": 3}\n{"key": "b", "text": "no verdict"}\nnoise\n[]\n')
    cache.store("c", answer(1), ABOUT)
    assert set(cache.fetch(["a", "b", "c"])) == {"a", "c"}
    assert said == [f"3 lines of {cache.path} are no answers and were passed over"]


def test_a_cache_that_cannot_be_made_is_gone_on_without(root: Path, said: list[str]) -> None:
    root.write_text("a file where a folder should be")
    cache = ResponseCache(said.append)
    cache.store("a", answer(3), ABOUT)
    assert cache.fetch(["a"]) == {"a": answer(3)} and len(said) == 1


def test_failures_and_empty_answers_never_enter(said: list[str]) -> None:
    names = ["ok", "empty", "refusal", "wrong", "html", "500", "cut"]
    sound = Toned({}, {}, {})
    pairs = [(Utterance(Heard(name, True), sound, "sad"), Utterance(Heard("yes", True), sound, "sad")) for name in names]
    with ChatServer(lambda words: [words] * 9) as server:
        endpoint = Endpoint(base_url=server.url, model="m", key_env="", retries=1, backoff=0.001, price_in=1.0, price_out=1.0)
        cache = ResponseCache(said.append)
        scorers = [EndpointScorer(endpoint, Client(endpoint, read_response), kept) for kept in (cache, cache, None)]
        verdicts = [scorer.score(pairs, closed=False) for scorer in scorers]
        asked = server.given("ok")
    assert len(cache.path.read_text().splitlines()) == 1
    assert len(asked) == 2, "asked by the first, known to the second, asked by the one without a cache"
    assert [(s.found, s.asked) for s in scorers] == [(0, 7), (1, 6), (0, 7)]
    assert all([v.failure for v in each] == [v.failure for v in verdicts[0]] for each in verdicts)
    assert verdicts[0][0].cost > 0 and verdicts[1][0].cost == 0 and verdicts[1][0].score == verdicts[0][0].score
