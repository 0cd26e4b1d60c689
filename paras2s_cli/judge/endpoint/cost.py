"""What a run will cost, has cost, and may cost."""

from dataclasses import dataclass

from paras2s_cli.errors import Paras2sError, UsageError
from paras2s_cli.judge.endpoint.prompt import FRAME, count_tokens, rubric
from paras2s_cli.judge.endpoint.verdict import Answer, Fault, Usage
from paras2s_cli.recipe.schema import Endpoint

TOKENS_A_SECOND = 4.0
"""Of speech: three words, and a little more."""
TOKENS_A_TONE = 12
TOKENS_OF_A_REPLY = 80
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """What pairs are likely to take if none has been asked before. `cost` is None without prices."""

    requests: int
    tokens_in: int
    tokens_out: int
    cost: float | None

    def __str__(self) -> str:
        price = "no prices in the recipe" if self.cost is None else f"cost {self.cost:.2f}"
        return f"up to {self.requests:,} requests, about {self.tokens_in:,} tokens in and {self.tokens_out:,} out, {price}"


def estimate(endpoint: Endpoint, pairs: int, seconds: float) -> Estimate:
    """Of so many pairs with so many seconds of sound in all."""
    each = count_tokens([rubric(), " ".join(FRAME)]) + 2 * TOKENS_A_TONE
    usage = Usage(round(pairs * each + seconds * TOKENS_A_SECOND), pairs * min(TOKENS_OF_A_REPLY, endpoint.max_tokens))
    return Estimate(pairs, usage.tokens_in, usage.tokens_out, price(endpoint, usage))


def check_cost(found: Estimate, max_cost: float | None) -> None:
    """Raises UsageError if the estimate is over the limit, or knows no prices to hold against it."""
    if max_cost is None:
        return
    if found.cost is None:
        raise UsageError("--max-cost needs prices: write score.price_in and score.price_out (of a million tokens) into the judge's recipe")
    if found.cost > max_cost:
        raise UsageError(f"the run is likely to cost {found.cost:.2f}, more than --max-cost {max_cost:g}; judge fewer pairs or allow more")


def price(endpoint: Endpoint, usage: Usage | None) -> float | None:
    """What so many tokens cost; None without prices."""
    if endpoint.price_in is None or endpoint.price_out is None:
        return None
    return (usage.tokens_in * endpoint.price_in + usage.tokens_out * endpoint.price_out) / MILLION if usage else 0.0


class Ledger:
    """What was spent, and what the requests under way may cost at most: both together never pass `max_cost`."""

    def __init__(self, endpoint: Endpoint, max_cost: float | None) -> None:
        self.spent = 0.0
        self.open = 0
        """Requests under way."""
        self._reserved = 0.0
        self._endpoint = endpoint
        self._max_cost = max_cost

    def cost(self, usage: Usage | None) -> float:
        """Of tokens that the server has counted; 0 without prices."""
        return price(self._endpoint, usage) or 0.0

    def reserve(self, tokens_in: int) -> bool:
        """Sets aside what a request may cost with the longest reply; False if that could be too much."""
        most = self._most(tokens_in)
        if self._max_cost is not None and self.spent + self._reserved + most > self._max_cost:
            return False
        self._reserved += most
        self.open += 1
        return True

    def settle(self, tokens_in: int, result: Answer | Fault | None) -> None:
        """Takes the reserve back and notes what was spent. A request that was given up may be billed all the same: it counts whole."""
        self.release(tokens_in)
        given_up = result is None or (isinstance(result, Fault) and result.failure == "deadline")
        uncounted = isinstance(result, Answer) and result.usage is None
        self.spent += self._most(tokens_in) if given_up or uncounted else self.cost(result.usage if result else None)

    def release(self, tokens_in: int) -> None:
        """Takes the reserve of a request back that was never sent."""
        self._reserved -= self._most(tokens_in)
        self.open -= 1

    def limit_reached(self) -> Paras2sError:
        """What to say when the next request could pass the limit."""
        return Paras2sError(
            f"stopped before --max-cost {self._max_cost:g} could be passed ({self.spent:.4g} spent); what was answered is in the cache,"
            " and the same command with a higher limit goes on"
        )

    def _most(self, tokens_in: int) -> float:
        return self.cost(Usage(tokens_in, self._endpoint.max_tokens))
