"""How much may be asked at a time: as many requests as the server bears, and so many requests and tokens a minute."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

START = 8
"""Requests at a time before anything is known of the server."""


class Concurrency:
    """Additive increase, multiplicative decrease (Chiu and Jain 1989): every round of successes adds one request, congestion halves them.

    Until the first congestion a round doubles them. `limit` outlives an event loop; a gate is of one.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(START, most))
        self._shrunk_at: float | None = None

    def grow(self) -> None:
        """A request went well."""
        self.limit = min(self.most, self.limit + (1.0 if self._shrunk_at is None else 1.0 / self.limit))

    def shrink(self, sent_at: float) -> None:
        """A request that was sent at this monotonic second met congestion. What was sent before the last cut tells nothing new."""
        if self._shrunk_at is None or sent_at > self._shrunk_at:
            self.limit = max(1.0, self.limit / 2)
            self._shrunk_at = time.monotonic()


class Slots:
    """Lets in as many as a Concurrency allows, first come first served."""

    def __init__(self, concurrency: Concurrency) -> None:
        self.concurrency = concurrency
        self.active = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Waits for a slot, and holds it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.active < int(self.concurrency.limit))
            self.active += 1
        try:
            yield
        finally:
            self.active -= 1
            async with self._changed:
                self._changed.notify(max(0, int(self.concurrency.limit) - self.active))


class Sent:
    """One request in a Budget's window; `tokens` may be set right once the server has counted them."""

    __slots__ = ("at", "tokens")

    def __init__(self, at: float, tokens: int) -> None:
        self.at = at
        self.tokens = tokens


class Budget:
    """Requests and tokens a minute, over any minute and not only full ones. 0 is no limit."""

    def __init__(self, requests: int, tokens: int, window: float = 60.0) -> None:
        self.requests = requests
        self.tokens = tokens
        # A little more than what is promised: a request that is sent later can still arrive sooner.
        self._window = 1.05 * window
        self._sent: deque[Sent] = deque()

    def wait(self, tokens: int, now: float) -> float:
        """Seconds until a request of so many tokens may be sent. One with more tokens than the budget goes alone."""
        while self._sent and self._sent[0].at <= now - self._window:
            self._sent.popleft()
        until, count, total = now, len(self._sent), sum(sent.tokens for sent in self._sent) if self.tokens else 0
        for sent in self._sent:
            if not (self.requests and count >= self.requests) and not (self.tokens and total + tokens > self.tokens):
                break
            until, count, total = sent.at + self._window, count - 1, total - sent.tokens
        return until - now

    def spend(self, tokens: int, now: float) -> Sent:
        """Notes a request that is sent now."""
        sent = Sent(now, tokens)
        if self.requests or self.tokens:
            self._sent.append(sent)
        return sent


class Pace:
    """The door of all requests, one after the other: a Budget, a pause that the server has asked for, and an end before time."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.shut = asyncio.Event()
        """Set it, and nothing more is sent."""
        self._paused_until = 0.0
        self._door = asyncio.Lock()

    def pause(self, seconds: float) -> None:
        """Nothing is sent for so long."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    async def rest(self, seconds: float) -> None:
        """Sleeps, but not past the shutting."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.shut.wait(), seconds)

    async def admit(self, tokens: int, patience: float) -> Sent | None:
        """Waits until a request may be sent. None once the door is shut, and where the server's pause is longer than `patience` seconds."""
        async with self._door:
            while not self.shut.is_set():
                now = time.monotonic()
                pause = self._paused_until - now
                if pause > patience:
                    return None
                wait = max(pause, self.budget.wait(tokens, now))
                if wait <= 0:
                    return self.budget.spend(tokens, now)
                await self.rest(wait)
        return None
