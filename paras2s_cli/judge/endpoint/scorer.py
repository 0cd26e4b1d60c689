"""The third stage by an endpoint: pairs to calls, calls to verdicts, each distinct call made once and none twice."""

from collections.abc import Sequence
from typing import Protocol

from paras2s_cli.endpoint.client import Call, Keep, Outcome
from paras2s_cli.judge.endpoint.prompt import make_call, rubric_hash
from paras2s_cli.judge.endpoint.response_cache import ResponseCache
from paras2s_cli.judge.endpoint.verdict import Answer
from paras2s_cli.judge.silence import verdict_on_silence
from paras2s_cli.judge.stages import Utterance, Verdict
from paras2s_cli.recipe.servers import Endpoint


class Sender(Protocol):
    """Whoever gets calls answered: a Client, or the files of a batch."""

    def send(self, calls: Sequence[Call], keep: Keep[Answer]) -> list[Outcome[Answer]]:
        """One outcome a call, in their order; every verdict is told to `keep`."""
        ...


class EndpointScorer:
    """An endpoint as a stage of the judge. Verdicts that `cache` has are not asked for."""

    def __init__(self, endpoint: Endpoint, sender: Sender, cache: ResponseCache | None) -> None:
        self._endpoint, self._sender, self._cache = endpoint, sender, cache
        self._about = {"model": endpoint.model, "revision": endpoint.revision, "rubric": rubric_hash()}
        model = f"{endpoint.model}@{endpoint.revision}" if endpoint.revision else endpoint.model
        self.name = f"endpoint {model} rubric {rubric_hash()}"
        self.asked = self.found = 0
        """Distinct calls that were asked, and those that the cache knew."""

    @property
    def report(self) -> str:
        """How much was asked."""
        return f"{self.found} of {self.found + self.asked} verdicts from the cache"

    def score(
        self, pairs: Sequence[tuple[Utterance, Utterance]], *, closed: bool, requirements: Sequence[str | None] | None = None
    ) -> list[Verdict]:
        """See `Scorer`. An endpoint knows no closed world."""
        wanted = requirements or [None] * len(pairs)
        given = [verdict_on_silence(query.heard, answer.heard) for query, answer in pairs]
        calls = [
            None if verdict else make_call(self._endpoint, query, answer, requirement)
            for verdict, (query, answer), requirement in zip(given, pairs, wanted, strict=True)
        ]
        outcomes = self._outcomes({call.key: call for call in calls if call})
        verdicts = []
        for verdict, call in zip(given, calls, strict=True):
            if call is not None:
                outcome = outcomes[call.key]
                verdict = _verdict(outcome)
                outcomes[call.key] = Outcome(outcome.result)  # paid for once, however many pairs are alike
            assert verdict is not None
            verdicts.append(verdict)
        return verdicts

    def _outcomes(self, calls: dict[str, Call]) -> dict[str, Outcome[Answer]]:
        known = self._cache.fetch(calls) if self._cache else {}
        missing = [call for key, call in calls.items() if key not in known]
        self.asked += len(missing)
        self.found += len(known)
        fresh = zip(missing, self._sender.send(missing, self._keep), strict=True)
        return {key: Outcome(answer) for key, answer in known.items()} | {call.key: outcome for call, outcome in fresh}

    def _keep(self, call: Call, answer: Answer) -> None:
        if self._cache is not None:
            self._cache.store(call.key, answer, self._about)


def _verdict(outcome: Outcome[Answer]) -> Verdict:
    result = outcome.result
    if isinstance(result, Answer):
        opinion = result.opinion
        return Verdict(opinion.content, opinion.style, opinion.score, opinion.reason, cost=outcome.cost)
    return Verdict(None, None, None, result.reason, result.failure, outcome.cost)
