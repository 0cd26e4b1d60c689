"""Sends requests to a server, as many at a time as it bears; each ends in a result or in the fault that it met last."""

import asyncio
import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import httpx2

from paras2s_cli.endpoint.cost import Ledger, Purse
from paras2s_cli.endpoint.limits import Budget, Concurrency, Pace, Sent, Slots
from paras2s_cli.endpoint.reply import Fault, Usage
from paras2s_cli.errors import Paras2sError, UsageError
from paras2s_cli.recipe.servers import Endpoint

LONGEST_BACKOFF = 60.0


class Result(Protocol):
    """What a reader makes of a response that is no fault."""

    @property
    def usage(self) -> Usage | None: ...


R = TypeVar("R", bound=Result)
Read = Callable[[int, Mapping[str, str], bytes], R | Fault]
"""Status, headers with lower-case names and body of a response -> its result, or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `key` names all that its answer depends on."""

    key: str
    body: dict[str, Any]
    tokens: int
    """Of the prompt, by `count_tokens`."""
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Name and content of uploads: a request that has any is a form, and else JSON."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """How a call ended, and what all its requests cost."""

    result: R | Fault
    cost: float = 0.0


Keep = Callable[[Call, R], None]
"""Told of every result at once, so that no kill loses one that was paid for."""


def count_tokens(texts: Sequence[str]) -> int:
    """What messages are likely to count, on the safe side: a token for three bytes of UTF-8, and a few for each message."""
    return sum(math.ceil(len(text.encode("utf-8", "replace")) / 3) + 8 for text in texts)


class Client(Generic[R]):
    """A server over HTTP. What it has learnt of the server's bearing lasts from one `send` to the next."""

    def __init__(
        self, endpoint: Endpoint, read: Read[R], path: str = "chat/completions", purse: Purse | None = None, minute: float = 60.0
    ) -> None:
        """`path`: what is put after the base_url. `minute`: the seconds that the budgets a minute are for.

        Raises:
            UsageError: the key's variable is not set.
        """
        self.endpoint, self.read, self.url = endpoint, read, f"{endpoint.base_url}/{path}"
        self.ledger = Ledger(endpoint, purse or Purse())
        self.concurrency = Concurrency(endpoint.concurrency)
        self._budget = Budget(endpoint.requests_a_minute, endpoint.tokens_a_minute, minute)
        self._headers: dict[str, str] = {}
        if endpoint.key_env:
            key = os.environ.get(endpoint.key_env)
            if not key:
                raise UsageError(
                    f"key_env: {endpoint.key_env} is not set; export it, or write key_env: '' for a server that asks for no key"
                )
            if not (key.isascii() and key.isprintable()):
                raise UsageError(f"key_env: {endpoint.key_env} holds a line break or a letter that no key has; export it again")
            self._headers["authorization"] = f"Bearer {key}"

    def send(self, calls: Sequence[Call], keep: Keep[R]) -> list[Outcome[R]]:
        """One outcome a call, in their order.

        Raises:
            Paras2sError: the endpoint refuses all (a wrong key, no such model, no credit), or the cost limit is reached. What was
                answered by then has been kept.
        """
        return asyncio.run(self._send(calls, keep)) if calls else []

    async def _send(self, calls: Sequence[Call], keep: Keep[R]) -> list[Outcome[R]]:
        most = self.endpoint.concurrency
        limits = httpx2.Limits(max_connections=most, max_keepalive_connections=most)
        async with httpx2.AsyncClient(headers=self._headers, limits=limits, timeout=None) as http:
            run = _Run(self, http, keep)
            outcomes = await asyncio.gather(*(run.settle(call) for call in calls))
        if run.stop is not None:
            raise run.stop
        return outcomes


class _Run(Generic[R]):
    """The calls of one `send`, in one event loop."""

    def __init__(self, client: Client[R], http: httpx2.AsyncClient, keep: Keep[R]) -> None:
        self.endpoint, self.ledger, self.concurrency = client.endpoint, client.ledger, client.concurrency
        self.read, self.url, self.http = client.read, client.url, http
        self.keep = keep
        self.slots = Slots(client.concurrency)
        self.pace = Pace(client._budget)
        self.settled = asyncio.Event()
        self.stop: Paras2sError | None = None

    async def settle(self, call: Call) -> Outcome[R]:
        """Asks until there is a result, or a fault that no further request would mend."""
        fault = Fault("rate-limited", "the server asks for a pause that is longer than the deadline")
        cost, left, spoilt = 0.0, self.endpoint.deadline, 0
        for attempt in range(self.endpoint.retries + 1):
            if attempt:
                wait = max(fault.wait or 0.0, self._backoff(call, attempt))
                if wait >= left:
                    break
                await self.pace.rest(wait)
                left -= wait
            async with self.slots.slot():
                if not await self._affords(call):
                    break
                sent = await self.pace.admit(call.tokens + self.endpoint.max_tokens, left)
                if sent is None:
                    self.ledger.release(call.tokens)
                    self.settled.set()
                    break
                result = await self._ask(call, sent, min(self.endpoint.timeout, left))
            left -= time.monotonic() - sent.at
            cost += self.ledger.cost(result.usage)
            if not isinstance(result, Fault):
                self.keep(call, result)
                return Outcome(result, cost)
            fault = result
            spoilt += fault.retry == "once"
            if fault.fatal:
                self._end(Paras2sError(f"{self.endpoint.base_url} cannot be used: {fault.reason}"))
            if fault.retry == "no" or spoilt > 1 or left <= 0:
                break
        return Outcome(fault, cost)

    async def _affords(self, call: Call) -> bool:
        """Reserves what the request may cost, once those under way leave enough; False, and the end, if even then it is too much."""
        while not self.ledger.reserve(call.tokens):
            if not self.ledger.open:
                self._end(self.ledger.limit_reached())
                return False
            self.settled.clear()
            await self.settled.wait()
        return True

    def _end(self, why: Paras2sError) -> None:
        """Sends nothing more; what is under way still ends."""
        self.stop = self.stop or why
        self.pace.shut.set()

    async def _ask(self, call: Call, sent: Sent, seconds: float) -> R | Fault:
        """One request, and what it says of the server's bearing."""
        result: R | Fault | None = None
        try:
            async with asyncio.timeout(seconds):
                response = await self.http.post(self.url, **_content(call))
            result = self.read(response.status_code, {k.lower(): v for k, v in response.headers.items()}, response.content)
        except TimeoutError:
            result = Fault("deadline", f"no reply within {seconds:.3g} s", "yes", congestion=True)
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            what = f"{self.endpoint.base_url}: {type(error).__name__}: {error}"
            result = Fault("unreachable", what, "yes", congestion=True)
        finally:
            self.ledger.settle(call.tokens, result if isinstance(result, Fault) else None, result.usage if result else None)
            self.settled.set()
        if result.usage is not None:
            sent.tokens = result.usage.tokens_in + result.usage.tokens_out
        if not isinstance(result, Fault):
            self.concurrency.grow()
        elif result.congestion:
            self.concurrency.shrink(sent.at)
            if result.wait:
                self.pace.pause(result.wait)
        return result

    def _backoff(self, call: Call, attempt: int) -> float:
        """Seconds before the attempt: twice as long each time, less a share of up to a half that seed, call and attempt alone decide."""
        longest = min(LONGEST_BACKOFF, self.endpoint.backoff * 2 ** (attempt - 1))
        return longest * random.Random(f"{self.endpoint.seed} {call.key} {attempt}").uniform(0.5, 1.0)


def _content(call: Call) -> dict[str, Any]:
    """A request's body, as httpx takes it."""
    if call.files:
        return {"data": call.body, "files": call.files}
    return {"content": json.dumps(call.body).encode(), "headers": {"content-type": "application/json"}}
