"""What the options say about endpoints, and the stages that come of it. Nothing that sends is imported before there is one to ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from paras2s_cli.errors import UsageError

if TYPE_CHECKING:
    from paras2s_cli.endpoint.cost import Estimate, Purse
    from paras2s_cli.judge.endpoint.scorer import EndpointScorer, Sender
    from paras2s_cli.judge.hearing.endpoint import EndpointTranscriber
    from paras2s_cli.recipe.judging import JudgeRecipe, Transcriptions
    from paras2s_cli.recipe.servers import Endpoint

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asking:
    """Whether answers are kept and taken from the cache, what may be spent, where requests go, and where replies are that came already."""

    cache: bool = True
    max_cost: float | None = None
    emit: Path | None = None
    replies: tuple[Path, ...] = ()

    @cached_property
    def purse(self) -> Purse:
        """What all stages spend from."""
        from paras2s_cli.endpoint.cost import Purse

        return Purse(self.max_cost)

    def check(self, recipe: JudgeRecipe, judge: str) -> None:
        """Raises UsageError where an option has no use."""
        of_any = Asking(self.cache, self.max_cost) if recipe.transcriptions else Asking()
        if recipe.endpoint is None and self != of_any:
            raise UsageError(
                f"--no-cache, --max-cost, --emit-batch and --read-batch are of a judge whose score stage is an endpoint, and '{judge}'"
                " has none: --judge endpoint, or a copy of it"
            )
        if self.emit is not None and self.replies:
            raise UsageError("--emit-batch writes what --read-batch gets replies to; give one of them")

    def plan(self, recipe: JudgeRecipe, pairs: int, seconds: float) -> list[str]:
        """A line an endpoint about what pairs with so many seconds of sound are likely to take."""
        return [f"{model}: {what}" for model, what in self._estimates(recipe, pairs, seconds)]

    def tell_cost(self, recipe: JudgeRecipe, pairs: int, seconds: float, say: Say) -> None:
        """Says the plan. Raises UsageError if it is over the limit."""
        found = self._estimates(recipe, pairs, seconds)
        if found:
            from paras2s_cli.endpoint.cost import check_cost

            for line in self.plan(recipe, pairs, seconds):
                say(line)
            check_cost([what for _, what in found], self.max_cost)

    def _estimates(self, recipe: JudgeRecipe, pairs: int, seconds: float) -> list[tuple[str, Estimate]]:
        """By model: of the endpoints that are asked."""
        found = []
        if recipe.transcriptions:
            from paras2s_cli.endpoint import transcription

            found.append((recipe.transcriptions.model, transcription.estimate(recipe.transcriptions, 2 * pairs, seconds)))
        if recipe.endpoint and not self.replies:
            from paras2s_cli.judge.endpoint.estimate import estimate

            found.append((recipe.endpoint.model, estimate(recipe.endpoint, pairs, seconds)))
        return found

    def transcriber(self, settings: Transcriptions, say: Say) -> EndpointTranscriber:
        """Raises UsageError if the key's variable is not set."""
        from paras2s_cli.judge.hearing.endpoint import EndpointTranscriber

        return EndpointTranscriber(settings, self.purse, say, keep=self.cache)

    def scorer(self, endpoint: Endpoint | None, say: Say, sender: Sender | None = None) -> EndpointScorer | None:
        """Asks `sender`, else the replies, else the endpoint itself; None where there is no endpoint.

        Raises UsageError if the key's variable is not set, or a file of replies cannot be used.
        """
        if endpoint is None:
            return None
        from paras2s_cli.endpoint.client import Client
        from paras2s_cli.judge.endpoint.batch import BatchReplies
        from paras2s_cli.judge.endpoint.response_cache import ResponseCache
        from paras2s_cli.judge.endpoint.scorer import EndpointScorer
        from paras2s_cli.judge.endpoint.verdict import read_response

        if sender is None:
            sender = BatchReplies(endpoint, self.replies) if self.replies else Client(endpoint, read_response, purse=self.purse)
        return EndpointScorer(endpoint, sender, ResponseCache(say) if self.cache else None)
