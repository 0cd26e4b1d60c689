"""What the options say about an endpoint, and the scorer that comes of it. Nothing that sends is imported before there is one to ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paras2s_cli.errors import UsageError

if TYPE_CHECKING:
    from paras2s_cli.judge.endpoint.scorer import EndpointScorer, Sender
    from paras2s_cli.recipe.schema import Endpoint

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asking:
    """Whether answers are kept and taken from the cache, what may be spent, where requests go, and where replies are that came already."""

    cache: bool = True
    max_cost: float | None = None
    emit: Path | None = None
    replies: tuple[Path, ...] = ()

    def check(self, endpoint: Endpoint | None, judge: str) -> None:
        """Raises UsageError where an option has no use."""
        if endpoint is None and self != Asking():
            raise UsageError(
                f"--no-cache, --max-cost, --emit-batch and --read-batch are of a judge whose score stage is an endpoint, and '{judge}'"
                " has none: --judge endpoint, or a copy of it"
            )
        if self.emit is not None and self.replies:
            raise UsageError("--emit-batch writes what --read-batch gets replies to; give one of them")

    def plan(self, endpoint: Endpoint | None, pairs: int, seconds: float) -> str:
        """A line about what pairs with so many seconds of sound are likely to take; empty where nothing is asked."""
        if endpoint is None or self.replies:
            return ""
        from paras2s_cli.judge.endpoint.estimate import estimate

        return f"{endpoint.model}: {estimate(endpoint, pairs, seconds)}"

    def tell_cost(self, endpoint: Endpoint | None, pairs: int, seconds: float, say: Say) -> None:
        """Says the plan. Raises UsageError if it is over the limit."""
        if endpoint is None or self.replies:
            return
        from paras2s_cli.endpoint.cost import check_cost
        from paras2s_cli.judge.endpoint.estimate import estimate

        say(self.plan(endpoint, pairs, seconds))
        check_cost([estimate(endpoint, pairs, seconds)], self.max_cost)

    def scorer(self, endpoint: Endpoint | None, say: Say, sender: Sender | None = None) -> EndpointScorer | None:
        """Asks `sender`, else the replies, else the endpoint itself; None where there is no endpoint.

        Raises UsageError if the key's variable is not set, or a file of replies cannot be used.
        """
        if endpoint is None:
            return None
        from paras2s_cli.endpoint.client import Client
        from paras2s_cli.endpoint.cost import Purse
        from paras2s_cli.judge.endpoint.batch import BatchReplies
        from paras2s_cli.judge.endpoint.response_cache import ResponseCache
        from paras2s_cli.judge.endpoint.scorer import EndpointScorer
        from paras2s_cli.judge.endpoint.verdict import read_response

        if sender is None:
            sender = BatchReplies(endpoint, self.replies) if self.replies else Client(endpoint, read_response, purse=Purse(self.max_cost))
        return EndpointScorer(endpoint, sender, ResponseCache(say) if self.cache else None)
