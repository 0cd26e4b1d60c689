"""A chat endpoint over real HTTP that speaks OpenAI's protocol, with faults on demand, and counts what reaches it.

A pair is known by its query's words. `plan(words)` names the faults of its requests one after the other; past their end, and for
`ok`, there is a verdict. It runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Plan = Callable[[str], Sequence[str]]
HTML = b"<!DOCTYPE html><html><body>Bad gateway</body></html>"
TOKENS_OUT = 20


@dataclass
class Arrival:
    """One request: when it came, of which pair, what it was given, and the tokens that were billed."""

    at: float
    words: str
    given: str
    body: dict[str, Any]
    headers: dict[str, str]
    billed: int = 0


@dataclass
class ChatServer:
    """A context manager; `url` is the base_url."""

    plan: Plan = lambda words: ()
    latency: float = 0.0
    retry_after: str = "0.05"
    most: int = 10**9
    """More requests at a time than this get a 429."""
    verdict: Callable[[dict[str, Any]], str] | None = None
    arrivals: list[Arrival] = field(default_factory=list)
    active: int = 0
    peak: int = 0

    def __enter__(self) -> ChatServer:
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(10)

    def given(self, words: str) -> list[str]:
        """What a pair's requests were given, in order."""
        return [arrival.given for arrival in self.arrivals if arrival.words == words]

    def _run(self, started: threading.Event) -> None:
        async def serve() -> None:
            self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
            server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            started.set()
            await self._done.wait()
            server.close()

        asyncio.run(serve())

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
                method, path, _ = head[0].split(" ")
                assert method == "POST"
                body = self._parse(path, headers, await reader.readexactly(int(headers["content-length"])))
                if not await self._answer(body, headers, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _parse(self, path: str, headers: dict[str, str], raw: bytes) -> dict[str, Any]:
        """A request's body."""
        assert path == "/v1/chat/completions", path
        return json.loads(raw)

    def _words(self, body: dict[str, Any]) -> str:
        """What a request is known by."""
        return heard_in(body)["query"]["words"]

    async def _answer(self, body: dict[str, Any], headers: dict[str, str], writer: asyncio.StreamWriter) -> bool:
        words = self._words(body)
        faults = self.plan(words)
        turn = len(self.given(words)) if faults else 0
        given = faults[turn] if turn < len(faults) else "ok"
        if self.active >= self.most:
            given = "429"
        arrival = Arrival(time.monotonic(), words, given, body, headers)
        self.arrivals.append(arrival)
        self.active += 1
        self.peak = max(self.peak, self.active)
        try:
            await asyncio.sleep(self.latency)
            if given == "hang":
                await self._done.wait()
            if given in ("hang", "drop"):
                return False
            status, more, data = self._response(given, arrival)
            lines = [f"HTTP/1.1 {status} X", f"content-length: {len(data)}", *(f"{name}: {value}" for name, value in more.items())]
            writer.write("\r\n".join([*lines, "", ""]).encode() + data)
            await writer.drain()
            return True
        finally:
            self.active -= 1

    def _response(self, given: str, arrival: Arrival) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; notes what is billed."""
        kind = {"content-type": "application/json"}
        if given == "429":
            return 429, kind | {"retry-after": self.retry_after}, _error("slow down")
        if given == "broke":
            return 429, kind, _error("no credit", "insufficient_quota")
        if given in ("400", "401", "500", "503"):
            return int(given), kind, _error("the server says no")
        if given == "html":
            return 200, {"content-type": "text/html"}, HTML
        if given == "nothing":
            return 200, kind, b""
        message: dict[str, Any] = {"role": "assistant", "content": (self.verdict or verdict_on)(arrival.body)}
        finish = "stop"
        if given == "empty":
            message["content"] = ""
        elif given == "refusal":
            message = {"role": "assistant", "content": None, "refusal": "I will not grade this."}
        elif given == "wrong":
            message["content"] = '{"reason": "Fine.", "content": 9, "style": 5, "score": 5}'
        elif given == "prose":
            message["content"] = "I would give it a five."
        elif given == "cut":
            message["content"], finish = message["content"][:25], "length"
        elif given == "half":
            message["content"] = message["content"][:25]
        reply = completion(arrival.body, message, finish)
        arrival.billed = reply["usage"]["prompt_tokens"] + TOKENS_OUT
        data = json.dumps(reply).encode()
        return 200, kind, data[: len(data) // 2] if given == "truncated" else data


def heard_in(body: dict[str, Any]) -> dict[str, Any]:
    """The data of a request."""
    return json.loads(body["messages"][1]["content"].split("\n")[2])


def score_of(words: str) -> int:
    """The score that `verdict_on` gives."""
    return sum(words.encode()) % 5 + 1


def verdict_on(body: dict[str, Any]) -> str:
    """A sound verdict; its score depends on the query's words."""
    score = score_of(heard_in(body)["query"]["words"])
    return json.dumps({"reason": "Because.", "content": score, "style": score, "score": score})


def completion(body: dict[str, Any], message: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    """A chat completion. Tokens are a quarter of the prompt's letters, and TOKENS_OUT."""
    letters = sum(len(each["content"]) for each in body["messages"])
    usage = {"prompt_tokens": letters // 4, "completion_tokens": TOKENS_OUT, "total_tokens": letters // 4 + TOKENS_OUT}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}


def _error(message: str, code: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode()
