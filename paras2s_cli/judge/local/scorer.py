"""The third stage by a causal LM on this machine: the score is the expectation of the digit that it would write next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.label_verdict import label_verdict
from paras2s_cli.judge.local.load import load_lm
from paras2s_cli.judge.local.prompt import Prompts, rubric_hash
from paras2s_cli.judge.local.reader import LabelReader
from paras2s_cli.judge.silence import verdict_on_silence
from paras2s_cli.judge.stages import Utterance, Verdict
from paras2s_cli.recipe.judging import LocalLM

_EXACT, _ROUNDED = 1e-3, 0.1
"""How far a probability may be from the model's own forward, in float32 and in the half precisions, whose logits are rounded."""


def load_scorer(settings: LocalLM, say: Callable[[str], None]) -> LocalScorer:
    """Raises UsageError if the model is not there, or cannot serve as a scorer."""
    say(f"loading {settings.model}")
    return LocalScorer(settings, *load_lm(settings))


class LocalScorer:
    """A model and its tokenizer as a stage of the judge."""

    def __init__(self, settings: LocalLM, model: Any, tokenizer: Any) -> None:
        """Raises UsageError for a model without a chat template, without a token for each label, or with layers that cannot share a
        prefix."""
        self._settings = settings
        self._prompts = Prompts(tokenizer, settings)
        config = model.config.get_text_config()
        limits = [getattr(config, key, None) for key in ("max_position_embeddings", "sliding_window")]
        self._longest = min((limit for limit in limits if limit), default=math.inf)
        if len(self._prompts.shared) >= self._longest:
            raise UsageError(f"{settings.model} reads {self._longest} tokens, and the rubric has more; name another score.model")
        self._reader = self._checked(model)
        revision = getattr(model.config, "_commit_hash", None) or settings.revision
        named = f"{settings.model}@{revision}" if revision else settings.model
        self.name = f"local {named} {str(model.dtype).removeprefix('torch.')} rubric {rubric_hash()}"
        self._pairs = self._tokens = 0

    @property
    def report(self) -> str:
        """How much was read."""
        own = f", {self._tokens / self._pairs:.0f} more a pair" if self._pairs else ""
        return f"{self._pairs} pairs scored by {self._settings.model}: {len(self._prompts.shared)} tokens of rubric read once{own}"

    def score(
        self, pairs: Sequence[tuple[Utterance, Utterance]], *, closed: bool, requirements: Sequence[str | None] | None = None
    ) -> list[Verdict]:
        """See `Scorer`. A language model knows no closed world, and grades content and style together only."""
        wanted = requirements or [None] * len(pairs)
        verdicts = [verdict_on_silence(query.heard, answer.heard) for query, answer in pairs]
        asked = [i for i, verdict in enumerate(verdicts) if verdict is None]
        prompts = self._prompts.encode([pairs[i] for i in asked], [wanted[i] for i in asked]) if asked else []
        fits = [place for place, prompt in enumerate(prompts) if len(prompt) <= self._longest]
        found: dict[int, Verdict] = {}
        for batch in self._batches(fits, prompts):
            labels, mass = self._reader.read([prompts[place] for place in batch])
            for place, row, whole in zip(batch, labels.tolist(), mass.tolist(), strict=True):
                found[place] = label_verdict(row, whole, self._settings.floor, "score.floor")
        too_long = Verdict(None, None, None, f"The prompt has more than the {self._longest} tokens that the model reads.", "judge-failed")
        for place, i in enumerate(asked):
            verdicts[i] = found.get(place, too_long)
        return [verdict for verdict in verdicts if verdict is not None]

    def _batches(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Prompts of like length together, as many as `tokens` allows beside the rubric, and at least one."""
        batch: list[int] = []
        held = 0
        for place in sorted(places, key=lambda place: len(prompts[place])):
            own = len(prompts[place]) - len(self._prompts.shared)
            if batch and held + own > self._settings.tokens:
                yield batch
                batch, held = [], 0
            batch.append(place)
            held += own
            self._pairs += 1
            self._tokens += own
        if batch:
            yield batch

    def _checked(self, model: Any) -> LabelReader:
        """A reader that agrees with the model's own forward on one prompt: layers that overlook the prefix, or a head that is more than a
        product, would go unnoticed otherwise."""
        prompts = self._prompts
        try:
            reader = LabelReader(model, prompts.shared, prompts.labels)
            (found, mass), (wanted, whole) = reader.read([prompts.probe]), reader.read_plainly(prompts.probe)
            off = (found * mass - wanted * whole).abs().max().item()
            if off <= (_EXACT if model.dtype == torch.float32 else _ROUNDED):
                return reader
            said = f"a probability is off by {off:.2g}"
        except (ValueError, TypeError, RuntimeError) as error:
            said = str(error)
        raise UsageError(f"{self._settings.model} cannot score behind a rubric that is read once ({said}); name another score.model")
