"""The whole judge in one audio language model: the score is the expectation of the digit that it would write, having heard the pair."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paras2s_cli.data.cache import content_key
from paras2s_cli.judge.content_cache import ContentCache
from paras2s_cli.judge.hearing.pair import PAIR
from paras2s_cli.judge.hearing.pair_lm import PairHearer
from paras2s_cli.judge.label_verdict import LABELS, label_verdict
from paras2s_cli.judge.pipeline import BATCH, utterance_key
from paras2s_cli.judge.silence import verdict_on_silence
from paras2s_cli.judge.stages import Recording, Utterance, Verdict
from paras2s_cli.recipe.judging import EndToEnd


class GradeCache(ContentCache[list[float]]):
    """Probabilities of pairs by the content of both sides, of one version of a model: the five labels', and what they have together."""

    def __init__(self, model: str, say: Callable[[str], None]) -> None:
        super().__init__(model, "pairs.sqlite", say)

    def _dump(self, value: list[float]) -> str:
        return json.dumps(value)

    def _parse(self, text: str) -> list[float] | None:
        try:
            values = [float(value) for value in json.loads(text)]
        except (ValueError, TypeError):
            return None
        return values if len(values) == len(LABELS) + 1 else None


class PairReader(PairHearer):
    """An audio language model whose probabilities of the labels are read, beside all else that it could say."""

    def __init__(self, settings: EndToEnd) -> None:
        """Raises UsageError as `PairHearer`."""
        super().__init__(settings, "e2e")
        self._model.get_output_embeddings().register_forward_hook(self._precise)

    @torch.inference_mode()
    def read(self, asked: Sequence[np.ndarray], said: Sequence[np.ndarray]) -> list[list[float]]:
        """Of each pair the probabilities of the labels 1 to 5 among themselves, and of all five. Waves: mono float32 [T] at 16 kHz."""
        found: dict[int, list[float]] = {}
        for rows in self.batches(asked, said):
            logits = self.logits([asked[i] for i in rows], [said[i] for i in rows])
            five = logits[:, self._digits]
            mass = (five.logsumexp(1) - logits.logsumexp(1)).exp()
            found |= dict(zip(rows, torch.cat([five.softmax(1), mass[:, None]], 1).tolist(), strict=True))
        return [found[i] for i in range(len(asked))]

    def _precise(self, head: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Logits in fp32, the digits' without the rounding of the half precisions: neighbouring scores would be one."""
        logits = output.float()
        logits[..., self._digits] = inputs[0].float() @ head.weight[self._digits].float().T
        return logits


class PairScorer:
    """Scores recordings; see `judge.end_to_end`."""

    def __init__(self, settings: EndToEnd, say: Callable[[str], None]) -> None:
        """Raises UsageError for a model or an adapter that cannot be loaded, or one without a token for each label."""
        self._settings, self._reader = settings, PairReader(settings)
        self.name = f"end-to-end audio-lm {self._reader.name} {content_key(PAIR.text)[:8]}"
        self._cache = GradeCache(self.name, say)

    @property
    def report(self) -> str:
        """How much was heard."""
        asked, known = len(self._cache.asked), self._cache.found
        return f"{asked} pairs heard end to end by {self._settings.model}, {known} of them from the cache"

    def score(
        self, pairs: Sequence[tuple[Utterance, Utterance]], *, closed: bool, requirements: Sequence[str | None] | None = None
    ) -> list[Verdict]:
        """See `Scorer`. The pairs are recordings. The question is the reward model's, which knows no closed world and no requirements."""
        verdicts = [verdict_on_silence(query.heard, answer.heard) for query, answer in pairs]
        loud = {i: (_wave(pairs[i][0]), _wave(pairs[i][1])) for i, verdict in enumerate(verdicts) if verdict is None}
        keys = {i: utterance_key(asked, "query") + utterance_key(said, "answer") for i, (asked, said) in loud.items()}
        grades = self._grades({keys[i]: waves for i, waves in loud.items()})
        for i, key in keys.items():
            *labels, mass = grades[key]
            verdicts[i] = label_verdict(labels, mass, self._settings.floor, "e2e.floor")
        return [verdict for verdict in verdicts if verdict is not None]

    def _grades(self, pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, list[float]]:
        """By the pairs' keys. What is not known is kept a window at a time, but for what has failed."""
        grades = self._cache.fetch(pairs)
        missing = [key for key in pairs if key not in grades]
        for start in range(0, len(missing), BATCH):
            window = missing[start : start + BATCH]
            asked, said = zip(*(pairs[key] for key in window), strict=True)
            read = dict(zip(window, self._reader.read(asked, said), strict=True))
            self._cache.store({key: values for key, values in read.items() if all(map(math.isfinite, values))})
            grades |= read
        return grades


def _wave(side: Utterance) -> np.ndarray:
    assert isinstance(side, Recording)
    return side.wave
