"""The client against a real HTTP server: every pair ends scored or null with its reason, and no limit is passed."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from chat_server import TOKENS_OUT, ChatServer, score_of

from paras2s_cli.endpoint.client import Client
from paras2s_cli.endpoint.cost import Purse
from paras2s_cli.errors import Paras2sError, UsageError
from paras2s_cli.judge.endpoint.scorer import EndpointScorer
from paras2s_cli.judge.endpoint.verdict import read_response
from paras2s_cli.judge.stages import Heard, Toned, Utterance, Verdict
from paras2s_cli.recipe.servers import Endpoint

QUICK = {"key_env": "", "backoff": 0.005, "timeout": 60.0, "retries": 3}


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def utterance(words: str, tone: str = "happy") -> Utterance:
    return Utterance(Heard(words, True), Toned({tone: 1.0}, {"adult": 1.0}, {"male": 1.0}), tone)


def ask(server: ChatServer, names: list[str], minute: float = 60.0, max_cost: float | None = None, **settings: object) -> list[Verdict]:
    endpoint = Endpoint.model_validate({"base_url": server.url, "model": "m"} | QUICK | settings)
    scorer = EndpointScorer(endpoint, Client(endpoint, read_response, purse=Purse(max_cost), minute=minute), None)
    return scorer.score([(utterance(name), utterance("an answer", "sad")) for name in names], closed=False)


FOREVER = {
    "429": "rate-limited",
    "500": "server-error",
    "truncated": "truncated-json",
    "half": "truncated-json",
    "cut": "truncated-json",
    "html": "html",
    "empty": "empty",
    "nothing": "empty",
    "refusal": "refusal",
    "wrong": "wrong-schema",
    "prose": "wrong-schema",
    "drop": "unreachable",
    "400": "rejected",
}
TRIES = {"half": 2, "cut": 2, "empty": 2, "wrong": 2, "prose": 2, "refusal": 1, "400": 1}
"""Requests of a pair where they are not as many as the retries allow: replies that were paid for, and refusals."""
ONCE = [*(fault for fault in FOREVER if fault not in ("refusal", "400")), "503"]


def test_of_a_thousand_pairs_every_one_is_scored_or_null_with_its_reason() -> None:
    plans: dict[str, list[str]] = {}
    names = []
    for i in range(1000):
        kind = i % 50
        if kind < len(FOREVER) and i < 150:
            fault, plan = list(FOREVER)[kind], "forever"
        elif 20 <= kind < 20 + len(ONCE):
            fault, plan = ONCE[kind - 20], "once"
        else:
            fault, plan = "", "fine"
        names.append(f"{plan} {fault} {i}")
        plans[names[-1]] = [fault] * {"forever": 50, "once": 1, "fine": 0}[plan]
    with ChatServer(plans.__getitem__, latency=0.002) as server:
        verdicts = ask(server, names, price_in=1.0, price_out=1.0)
    assert len(verdicts) == 1000
    for name, verdict in zip(names, verdicts, strict=True):
        plan, fault, *_ = name.split(" ")
        if plan == "forever":
            assert (verdict.score, verdict.failure) == (None, FOREVER[fault]), (name, verdict)
            assert verdict.reason
        else:
            assert (verdict.score, verdict.failure) == (score_of(name), None), (name, verdict)
            assert server.given(name).count("ok") == 1, "asked again after a verdict"
    requests = Counter(arrival.words for arrival in server.arrivals)
    assert set(requests) == set(names)
    for name in (name for name in names if name.startswith("forever ")):
        assert requests[name] == TRIES.get(name.split(" ")[1], QUICK["retries"] + 1), name
    # Replies that were cut on the way were billed too, but their bill did not arrive.
    billed = sum(arrival.billed for arrival in server.arrivals if arrival.given != "truncated")
    assert sum(verdict.cost for verdict in verdicts) == pytest.approx(billed / 1e6)


def test_equal_pairs_are_asked_once_and_paid_once() -> None:
    with ChatServer() as server:
        verdicts = ask(server, ["a", "b", "a", "a"], price_in=1e6, price_out=0.0)
    assert [v.score for v in verdicts] == [score_of(n) for n in "abaa"] and len(server.arrivals) == 2
    assert [v.cost > 0 for v in verdicts] == [True, True, False, False]


def test_no_reply_in_time_is_tried_again_and_then_null() -> None:
    plans = {"never": ["hang"] * 9, "late": ["hang"], "well": []}
    with ChatServer(plans.__getitem__) as server:
        never, late, well = ask(server, list(plans), timeout=0.25, retries=2)
    assert (never.score, never.failure, len(server.given("never"))) == (None, "deadline", 3)
    assert late.score and well.score
    with ChatServer(lambda words: ["hang"] * 99) as server:
        verdicts = ask(server, ["a"], timeout=0.05, retries=98, deadline=0.2)
    assert verdicts[0].failure == "deadline" and len(server.given("a")) <= 5


def test_a_pause_that_the_server_asks_for_is_kept_by_all() -> None:
    names = [f"p{i}" for i in range(30)]
    with ChatServer(lambda words: ["429"] if words == "p0" else [], retry_after="0.3") as server:
        verdicts = ask(server, names, concurrency=4)
    assert all(v.score for v in verdicts)
    refused = next(a.at for a in server.arrivals if a.given == "429")
    meanwhile = [a for a in server.arrivals if refused < a.at < refused + 0.3]
    assert len(meanwhile) <= 8, "those on their way"


def test_a_pause_beyond_the_deadline_ends_the_pair() -> None:
    with ChatServer(lambda words: ["429"] * 9, retry_after="3600") as server:
        verdicts = ask(server, [f"p{i}" for i in range(200)], deadline=30)
    assert {v.failure for v in verdicts} == {"rate-limited"} and len(server.arrivals) <= 64


def test_requests_a_minute_are_kept_at_the_server() -> None:
    begun = time.monotonic()
    with ChatServer() as server:
        verdicts = ask(server, [f"p{i}" for i in range(50)], minute=0.4, requests_a_minute=20)
    assert all(v.score for v in verdicts) and len(server.arrivals) == 50
    for index, at in enumerate(sorted(a.at for a in server.arrivals)):
        assert at - begun >= index // 20 * 0.4, index


def test_tokens_a_minute_are_kept_at_the_server() -> None:
    with ChatServer() as server:
        ask(server, ["p0"])
        each = server.arrivals.pop().billed
        begun, limit = time.monotonic(), 20 * each
        verdicts = ask(server, [f"p{i}" for i in range(40)], minute=0.3, tokens_a_minute=limit, max_tokens=2 * TOKENS_OUT)
    assert all(v.score for v in verdicts) and len(server.arrivals) == 40
    billed = 0
    for arrival in sorted(server.arrivals, key=lambda a: a.at):
        billed += arrival.billed
        assert billed <= limit * (1 + (arrival.at - begun) // 0.3)


def test_a_server_that_bears_little_is_asked_little() -> None:
    with ChatServer(latency=0.005, most=10, retry_after="0.01") as server:
        verdicts = ask(server, [f"p{i}" for i in range(300)], retries=20)
    assert all(v.score for v in verdicts)
    assert Counter(a.given for a in server.arrivals)["429"] < 100
    with ChatServer(latency=0.005) as server:
        ask(server, [f"p{i}" for i in range(100)], concurrency=5)
    assert server.peak == 5


@pytest.mark.parametrize("fault", ["401", "broke"])
def test_what_no_pair_can_fare_better_with_ends_the_run(fault: str) -> None:
    with ChatServer(lambda words: [fault] * 9) as server, pytest.raises(Paras2sError, match="cannot be used: HTTP 4"):
        ask(server, [f"p{i}" for i in range(200)], backoff=30.0)
    assert len(server.arrivals) <= 16


def test_nobody_there() -> None:
    with ChatServer() as server:
        pass
    verdicts = ask(server, ["a", "b"], retries=1)
    assert [v.failure for v in verdicts] == ["unreachable"] * 2 and server.url in verdicts[0].reason


def test_the_key_comes_from_its_variable_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with ChatServer() as server:
        with pytest.raises(UsageError, match="MY_KEY is not set"):
            ask(server, ["a"], key_env="MY_KEY")
        for key in ("sk-\u00e9", "sk-1\n"):
            monkeypatch.setenv("MY_KEY", key)
            with pytest.raises(UsageError, match="MY_KEY holds a line break"):
                ask(server, ["a"], key_env="MY_KEY")
        monkeypatch.setenv("MY_KEY", "sesame")
        ask(server, ["a"], key_env="MY_KEY")
        ask(server, ["b"])
    assert [a.headers.get("authorization") for a in server.arrivals] == ["Bearer sesame", None]


def test_the_request_asks_for_what_the_recipe_says() -> None:
    with ChatServer() as server:
        ask(server, ["a"], temperature=None, max_tokens=77, max_tokens_key="max_completion_tokens", extra={"top_k": 1})
        ask(server, ["b"])
    first, second = (a.body for a in server.arrivals)
    assert "temperature" not in first and first["max_completion_tokens"] == 77 and first["top_k"] == 1 and "max_tokens" not in first
    assert second["temperature"] == 0 and second["max_tokens"] == 400
    assert second["response_format"]["json_schema"]["strict"] is True


def test_the_cost_limit_is_never_passed() -> None:
    with ChatServer(latency=0.002) as server, pytest.raises(Paras2sError, match="--max-cost"):
        ask(server, [f"p{i}" for i in range(300)], max_cost=0.1, price_in=1.0, price_out=1.0)
    spent = sum(a.billed for a in server.arrivals) / 1e6
    assert 0.09 < spent <= 0.1, "and nearly all of it may be spent"
