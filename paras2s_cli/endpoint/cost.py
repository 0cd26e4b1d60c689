"""What a run will cost, has cost, and may cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from paras2s_cli.endpoint.reply import Fault, Usage
from paras2s_cli.errors import Paras2sError, UsageError
from paras2s_cli.recipe.servers import Endpoint

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run is likely to take if nothing has been asked before. `cost` is None without prices."""

    requests: int
    tokens_in: int
    tokens_out: int
    cost: float | None
    minutes: float | None = None
    """Of sound, where that is what has a price."""

    def __str__(self) -> str:
        price = "no prices in the recipe" if self.cost is None else f"cost {self.cost:.2f}"
        tokens = f"{self.tokens_in:,} tokens in and {self.tokens_out:,} out"
        size = tokens if self.minutes is None else f"{self.minutes:.1f} minutes of sound"
        return f"up to {self.requests:,} requests, about {size}, {price}"


def check_cost(found: Sequence[Estimate], max_cost: float | None) -> None:
    """Raises UsageError if the estimates are together over the limit, or one knows no prices to hold against it."""
    costs = [each.cost for each in found if each.cost is not None]
    if max_cost is None:
        return
    if len(costs) < len(found):
        raise UsageError(
            "--max-cost needs prices: write price_in and price_out (of a million tokens) beside the model in the recipe,"
            " and price (of a minute of sound) in transcribe"
        )
    if sum(costs) > max_cost:
        raise UsageError(f"the run is likely to cost {sum(costs):.2f}, more than --max-cost {max_cost:g}; ask for less or allow more")


def price(endpoint: Endpoint, usage: Usage | None) -> float | None:
    """What so many tokens cost; None without prices."""
    if endpoint.price_in is None or endpoint.price_out is None:
        return None
    return (usage.tokens_in * endpoint.price_in + usage.tokens_out * endpoint.price_out) / MILLION if usage else 0.0


@dataclass(slots=True)
class Purse:
    """What a run may spend at all servers together (None: any amount), has spent, and has set aside for requests under way."""

    limit: float | None = None
    spent: float = 0.0
    reserved: float = 0.0


class Ledger:
    """One server's accounts: what was spent, and what the requests under way may cost at most, never pass the purse's limit together."""

    def __init__(self, endpoint: Endpoint, purse: Purse) -> None:
        self.open = 0
        """Requests under way."""
        self._endpoint, self._purse = endpoint, purse

    def cost(self, usage: Usage | None) -> float:
        """Of tokens that the server has counted; 0 without prices."""
        return price(self._endpoint, usage) or 0.0

    def reserve(self, tokens_in: int) -> bool:
        """Sets aside what a request may cost with the longest reply; False if that could be too much."""
        most = self._most(tokens_in)
        purse = self._purse
        if purse.limit is not None and purse.spent + purse.reserved + most > purse.limit:
            return False
        purse.reserved += most
        self.open += 1
        return True

    def settle(self, tokens_in: int, fault: Fault | None, usage: Usage | None) -> None:
        """Takes the reserve back and notes what was spent. A request that was given up may be billed all the same: it counts whole."""
        self.release(tokens_in)
        unknown = usage is None and (fault is None or fault.failure == "deadline")
        self._purse.spent += self._most(tokens_in) if unknown else self.cost(usage)

    def release(self, tokens_in: int) -> None:
        """Takes the reserve of a request back that was never sent."""
        self._purse.reserved -= self._most(tokens_in)
        self.open -= 1

    def limit_reached(self) -> Paras2sError:
        """What to say when the next request could pass the limit."""
        return Paras2sError(
            f"stopped before --max-cost {self._purse.limit:g} could be passed ({self._purse.spent:.4g} spent); what was answered is kept,"
            " and the same command with a higher limit goes on"
        )

    def _most(self, tokens_in: int) -> float:
        return self.cost(Usage(tokens_in, self._endpoint.max_tokens))
