"""The endpoint's client beside a loop that asks one request at a time, on a local server that takes 50 ms for each.

    pytest benchmarks/bench_judge_endpoint.py -s

1,000 pairs for the client, connections and all; 100 for the loop, which keeps one connection open. The server is a process of its own.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import httpx2
import pytest

from paras2s_cli.endpoint.client import Client
from paras2s_cli.judge.endpoint.prompt import make_call
from paras2s_cli.judge.endpoint.scorer import EndpointScorer
from paras2s_cli.judge.endpoint.verdict import Answer, read_response
from paras2s_cli.judge.stages import Heard, Toned, Utterance
from paras2s_cli.recipe.servers import Endpoint

SUPPORT = Path(__file__).parents[1] / "tests" / "judge" / "support"
LATENCY, PAIRS, ALONE, TURNS = 0.05, 1000, 100, 3
TARGET = 20
SERVER = (
    f"from chat_server import ChatServer\nwith ChatServer(latency={LATENCY}) as server:\n    print(server.url, flush=True)\n    input()\n"
)


@pytest.fixture
def url() -> Iterator[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SERVER], cwd=SUPPORT, text=True, **pipes) as server:  # type: ignore[call-overload]
        yield server.stdout.readline().strip()
        server.communicate("\n")


def pairs(count: int) -> list[tuple[Utterance, Utterance]]:
    toned = Toned({}, {}, {})
    answer = Utterance(Heard("Oh no, that must have been hard.", True), toned, "gentle")
    return [(Utterance(Heard(f"I have just met my ex, {i}.", True), toned, "sad"), answer) for i in range(count)]


def one_at_a_time(endpoint: Endpoint) -> float:
    """Pairs a second of the plain loop."""
    calls = [make_call(endpoint, *pair, None) for pair in pairs(ALONE)]
    begun = time.perf_counter()
    with httpx2.Client() as http:
        for call in calls:
            reply = http.post(f"{endpoint.base_url}/chat/completions", content=json.dumps(call.body).encode())
            assert isinstance(read_response(reply.status_code, {}, reply.content), Answer)
    return ALONE / (time.perf_counter() - begun)


def by_the_client(endpoint: Endpoint) -> float:
    """Pairs a second of the scorer, without its cache; nothing is known of the server when it begins."""
    begun = time.perf_counter()
    verdicts = EndpointScorer(endpoint, Client(endpoint, read_response), None).score(pairs(PAIRS), closed=False)
    assert all(verdict.score for verdict in verdicts)
    return PAIRS / (time.perf_counter() - begun)


def test_ratio(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    endpoint = Endpoint(base_url=url, model="m", key_env="")
    turns = [(one_at_a_time(endpoint), by_the_client(endpoint)) for _ in range(TURNS)]
    ratio = median(client / alone for alone, client in turns)
    for alone, client in turns:
        print(f"\none at a time {alone:.1f} pairs/s, client {client:.1f} pairs/s, {client / alone:.1f}x", end="")
    print(f"\nmedian {ratio:.1f}x (wanted: {TARGET}x)")
