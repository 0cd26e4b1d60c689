"""`paras2s judge` with an endpoint: the networks of the ears are a stand-in, the server is a real one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paras2s_cli.audio.write import write_wav
from paras2s_cli.judge import auto, backends
from paras2s_cli.main import main

sys.path.insert(0, str(Path(__file__).parents[1] / "judge" / "support"))

from chat_server import ChatServer, completion, heard_in, score_of, verdict_on
from stand_in_judge import MAKER, make_pairs, rows_of

COUNT = 12
ASKED = [f"{200 + 10 * (i % 3)} samples" for i in range(COUNT)]
"""What the stand-in hears in the queries."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of COUNT pairs in the working folder."""
    monkeypatch.setitem(backends.MAKERS, "pocket", MAKER)
    monkeypatch.setattr(auto, "MODELS", {})  # whatever this machine has
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    make_pairs(tmp_path / "data", COUNT)
    monkeypatch.chdir(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as running:
        yield running


def recipe(server: ChatServer | str, *more: str) -> str:
    """A judge's recipe that names the server."""
    url = server if isinstance(server, str) else server.url
    keys = {"base_url": url, "model": "tiny", "key_env": '""', "backoff": "0.002"} | dict(line.split(": ", 1) for line in more)
    lines = "".join(f"  {key}: {value}\n" for key, value in keys.items())
    Path("judge.yaml").write_text(f"kind: judge\nears: pocket/polytone\nscore:\n{lines}")
    return "judge.yaml"


def test_a_manifest_is_judged_and_the_second_time_nothing_is_asked(server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--judge", recipe(server, "revision: r1", "price_in: 2.0", "price_out: 8.0")]
    assert main(["judge", "pairs.jsonl", "-o", "scores.jsonl", *options]) == 0
    out, err = capsys.readouterr()
    rows = rows_of(Path("scores.jsonl"))
    assert [row["score"] for row in rows] == [score_of(words) for words in ASKED]
    assert rows[0]["judge"]["scorer"].startswith("endpoint tiny@r1 rubric ") and rows[0]["reason"] == "Because."
    spent = sum((a.billed - 20) * 2e-6 + 20 * 8e-6 for a in server.arrivals)
    assert sum(row["cost"] for row in rows) == pytest.approx(spent) and spent > 0
    assert "tiny: up to 12 requests, about " in err and "cost 0.0" in err and "0 of 12 verdicts from the cache" in err
    assert len(server.arrivals) == COUNT
    assert main(["judge", "pairs.jsonl", *options]) == 0
    out, err = capsys.readouterr()
    assert [row["score"] for row in rows_of(out)] == [row["score"] for row in rows]
    assert "12 of 12 verdicts from the cache" in err and len(server.arrivals) == COUNT
    assert main(["judge", "pairs.jsonl", "--no-cache", *options]) == 0
    assert len(server.arrivals) == 2 * COUNT


def test_a_pair_and_what_its_row_requires(server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    name = recipe(server)
    assert main(["judge", "q0.wav", "a3.wav", "--judge", name, "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == score_of("200 samples")
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()[:3]]
    rows[1]["requirement"] = "Console her."
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server.arrivals.clear()
    assert main(["judge", "pairs.jsonl", "--judge", name]) == 0
    required = {a.words: heard_in(a.body).get("requirement") for a in server.arrivals}
    assert required == {"200 samples": None, "210 samples": "Console her.", "220 samples": None}


def test_failures_are_null_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    faults = {"200 samples": ["refusal"] * 9, "210 samples": ["500"] * 9, "220 samples": []}
    with ChatServer(faults.__getitem__) as server:
        assert main(["judge", "pairs.jsonl", "--judge", recipe(server, "retries: 1")]) == 3
    out, err = capsys.readouterr()
    assert [row["failure"] for row in rows_of(out)] == ["refusal", "server-error", None] * 4
    assert "scored 4 of 12" in err and "4 refusal, 4 server-error" in err


def test_the_same_command_asks_again_where_a_failure_may_have_passed(capsys: pytest.CaptureFixture[str]) -> None:
    down = {"200 samples": ["refusal"] * 9, "210 samples": ["500"] * 9, "220 samples": []}
    with ChatServer(down.__getitem__) as server:
        words = ["judge", "pairs.jsonl", "-o", "scores.jsonl", "--judge", recipe(server, "retries: 1")]
        assert main(words) == 3
        before = rows_of(Path("scores.jsonl"))
        down["200 samples"], down["210 samples"] = [], []
        server.arrivals.clear()
        capsys.readouterr()
        assert main(words) == 0
        assert {a.words for a in server.arrivals} == {"210 samples"}
    after, err = rows_of(Path("scores.jsonl")), capsys.readouterr().err
    assert "judging 4 pairs of scores.jsonl again" in err and "scored 8 of 12" in err
    kept = [row for row in before if row["failure"] != "server-error"]
    assert after[: len(kept)] == kept and [row["score"] for row in after[len(kept) :]] == [score_of("210 samples")] * 4
    assert {row["id"] for row in after} == {row["id"] for row in before} and len(after) == COUNT


def test_silence_is_not_asked_about(server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    write_wav("silence.wav", np.zeros(400))
    name = recipe(server)
    assert main(["judge", "q0.wav", "silence.wav", "--judge", name, "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 1
    assert main(["judge", "silence.wav", "a0.wav", "--judge", name, "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["failure"] == "outside-world"
    assert server.arrivals == []


def batch_output(requests: Path, skip: str) -> list[dict[str, Any]]:
    """What a batch API makes of a file of requests: in another order, one of them failed."""
    rows = []
    for line in requests.read_text().splitlines():
        asked = json.loads(line)
        assert set(asked) == {"custom_id", "method", "url", "body"} and asked["url"] == "/v1/chat/completions"
        reply: dict[str, Any] = {"status_code": 200, "request_id": "r"}
        reply["body"] = completion(asked["body"], {"content": verdict_on(asked["body"])})
        if heard_in(asked["body"])["answer"]["words"] == skip:
            reply = {"status_code": 500, "request_id": "r", "body": {"error": {"message": "lost"}}}
        rows.append({"id": "b", "custom_id": asked["custom_id"], "response": reply, "error": None})
    return rows[::-1]


def test_a_batch_goes_out_and_comes_back(server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["pairs.jsonl", "--judge", recipe(server)]
    assert main(["judge", *options, "--emit-batch", "asked.jsonl"]) == 0
    assert "12 requests in asked.jsonl; 0 of 12 pairs need none" in capsys.readouterr().err
    output = batch_output(Path("asked.jsonl"), "300 samples")
    assert len({row["custom_id"] for row in output}) == COUNT
    Path("one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in output[:5]))
    Path("two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in output[5:]))
    assert main(["judge", *options, "--read-batch", "one.jsonl", "--no-cache"]) == 3
    missing = rows_of(capsys.readouterr().out)
    assert [row["failure"] for row in missing] == ["no-reply"] * 7 + [None] * 5
    assert main(["judge", *options, "--read-batch", "one.jsonl", "--read-batch", "two.jsonl", "-o", "scores.jsonl"]) == 0
    rows = rows_of(Path("scores.jsonl"))
    assert [row["score"] for row in rows] == [None, *map(score_of, ASKED[1:])]
    assert rows[0]["failure"] == "server-error" and "lost" in rows[0]["reason"]
    assert server.arrivals == [], "nothing has been sent"
    capsys.readouterr()
    assert main(["judge", *options, "--emit-batch", "asked.jsonl"]) == 0
    assert "1 requests in asked.jsonl; 11 of 12 pairs need none" in capsys.readouterr().err


def test_equal_pairs_are_one_request_of_a_batch(server: ChatServer) -> None:
    rows = Path("pairs.jsonl").read_text().splitlines()
    Path("pairs.jsonl").write_text("\n".join([*rows, rows[0].replace('"p0"', '"again"')]) + "\n")
    assert main(["judge", "pairs.jsonl", "--judge", recipe(server), "--emit-batch", "asked.jsonl", "--batch", "3"]) == 0
    assert len({json.loads(line)["custom_id"] for line in Path("asked.jsonl").read_text().splitlines()}) == COUNT
    assert Path("asked.jsonl").read_text().count("\n") == COUNT


def test_a_dry_run_tells_the_recipe_and_the_cost(server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "pairs.jsonl", "--judge", recipe(server, "price_in: 1.0", "price_out: 1.0"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"base_url: {server.url}" in out and "# tiny: up to 12 requests" in out and server.arrivals == []


def test_the_estimate_is_near_what_is_billed(server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "pairs.jsonl", "--judge", recipe(server, "price_in: 1000000", "price_out: 0")]) == 0
    out, err = capsys.readouterr()
    estimate = float(err.partition("cost ")[2].split()[0])
    spent = sum(row["cost"] for row in rows_of(out))
    assert spent <= estimate < 1.5 * spent, "four letters a token are billed, three bytes a token are reckoned with"


@pytest.mark.parametrize(
    ("words", "keys", "said"),
    [
        (["--max-cost", "0.000001"], ["price_in: 1.0", "price_out: 1.0"], "more than --max-cost 1e-06"),
        (["--max-cost", "1"], [], "write price_in"),
        (["--max-cost", "1"], ["price_in: 1.0"], "price_in and price_out go together"),
        ([], ["key_env: NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        ([], ["base_url: ftp://there"], "judge.yaml:4: score.base_url: write http://HOST/v1"),
        ([], ["base_url: https://me:key@there/v1"], "the key stands in the variable"),
        ([], ["tokens_a_minute: 100"], "no room for one reply"),
        (["--read-batch", "gone.jsonl"], [], "gone.jsonl cannot be read"),
        (["--read-batch", "pairs.jsonl"], [], "pairs.jsonl:1: not a reply of a batch"),
        (["--emit-batch", "a", "--read-batch", "pairs.jsonl"], [], "give one of them"),
        (["--emit-batch", "a", "-o", "b"], [], "leave out -o"),
        (["--emit-batch", "."], [], "it is not a file"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence_and_nothing_is_written(
    server: ChatServer, capsys: pytest.CaptureFixture[str], words: list[str], keys: list[str], said: str
) -> None:
    name = recipe(server, *keys)
    before = sorted(Path().iterdir())
    assert main(["judge", "pairs.jsonl", "--judge", name, *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and "Traceback" not in err
    assert sorted(Path().iterdir()) == before and server.arrivals == []


@pytest.mark.parametrize("option", [["--no-cache"], ["--max-cost", "1"], ["--emit-batch", "a"], ["--read-batch", "a"]])
def test_options_of_an_endpoint_are_refused_by_a_judge_without_one(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "pairs.jsonl", *option]) == 2
    assert "'auto' has none" in capsys.readouterr().err


def test_a_wrong_key_ends_the_run_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with ChatServer(lambda words: ["401"] * 99) as server:
        assert main(["judge", "pairs.jsonl", "--judge", recipe(server), "-o", "scores.jsonl"]) == 1
    err = capsys.readouterr().err
    assert "cannot be used: HTTP 401: the server says no" in err and "Traceback" not in err
    assert rows_of(Path("scores.jsonl")) == []


def test_the_installed_recipes_are_sound(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("endpoint/judge", "pocket/judge"):
        assert main(["recipes", "--check", name]) == 0
        assert "a sound judge recipe" in capsys.readouterr().out
    assert main(["judge", "pairs.jsonl", "--judge", "endpoint", "--dry-run"]) == 0
    assert "no prices in the recipe" in capsys.readouterr().out
