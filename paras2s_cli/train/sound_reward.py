"""The reward model that hears: an audio language model that is taught the judge's digits by cross-entropy (ParaS2S, arXiv 2511.08723)."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paras2s_cli.audio.read import read_audio
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.errors import Paras2sError
from paras2s_cli.judge.hearing.pair_lm import PairLM
from paras2s_cli.judge.pair_digits import DIGITS
from paras2s_cli.models.lora import WEIGHTS, Adapter
from paras2s_cli.recipe.training import Train
from paras2s_cli.train.distill import Judged
from paras2s_cli.train.loop import Stage, precision


class SoundReward:
    """An audio language model as a `Reward`. It hears the recordings of queries, and answers as the sound that their codes make.

    Args:
        speak: codes [N] int64 of many answers, none of them empty, to sound: float32 [T] at 16 kHz each.
        settings: of its training.
    """

    def __init__(self, model: PairLM, speak: Callable[[Sequence[np.ndarray]], list[np.ndarray]], settings: Train) -> None:
        self.model, self._speak, self._settings = model, speak, settings

    @property
    def module(self) -> Adapter:
        """See `Reward`."""
        return self.model.adapter

    def rewards(self, queries: Sequence[Spoken], codes: Sequence[np.ndarray], texts: Tensor | None = None, group: int = 1) -> Tensor:
        """See `Reward`. Texts are not looked at."""
        there = [i for i, row in enumerate(codes) if len(row)]
        found = torch.ones(len(codes))
        if there:
            found[there] = self.model.grade(*self._hear([queries[i // group] for i in there], [codes[i] for i in there]))
        return found

    def thaw(self) -> None:
        """See `Reward`."""
        self.module.thaw()

    def teach(self, rows: Sequence[Judged], seed: int) -> float:
        """See `Reward`. Cross-entropy of the digits, in the mean over the rows."""
        rows = teachable(rows)
        if not rows:
            return 0.0
        torch.manual_seed(seed)  # dropout draws from the global generator
        asked, said = self._hear([r.query for r in rows], [r.codes for r in rows])
        target, total = torch.tensor([digit_of(r.score) for r in rows if r.score is not None]) - 1, 0.0
        for some in self.model.batches(asked, said):
            with precision(self._settings):
                logits = self.model.logits([asked[i] for i in some], [said[i] for i in some])
            loss = F.cross_entropy(logits, target[some].to(logits.device), reduction="sum") / len(rows)
            loss.backward()
            total += float(loss.detach())
        return total

    def save(self, folder: Path) -> None:
        """See `Reward`. The adapter in peft's layout."""
        self.module.save(folder)

    def load(self, folder: Path) -> None:
        """See `Reward`."""
        from safetensors.torch import load_file

        self.module.load_state_dict(load_file(folder / WEIGHTS))

    def _hear(self, queries: Sequence[Spoken], codes: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Both sides' waves. What is there twice is read, and made sound, once."""
        recorded = {q.id: q for q in queries}
        asked = {name: read_audio(q.path) for name, q in recorded.items()}
        distinct = {row.tobytes(): row for row in codes}
        said = dict(zip(distinct, self._speak(list(distinct.values())), strict=True))
        return [asked[q.id] for q in queries], [said[row.tobytes()] for row in codes]


def teachable(rows: Sequence[Judged]) -> list[Judged]:
    """Those with a score and a sound."""
    return [r for r in rows if r.score is not None and len(r.codes)]


def digit_of(score: float) -> int:
    """The digit 1..5 that is nearest to a score; of two the higher."""
    return min(max(math.floor(score + 0.5), 1), DIGITS)


def hearing_stage(folder: Path, settings: Train, seed: int, reward: SoundReward, rows: Sequence[Judged]) -> Stage:
    """The stage in which the adapter learns the digits of pairs.

    Raises:
        Paras2sError: the judge has scored none of them.
    """
    rows = teachable(rows)
    if not rows:
        raise Paras2sError("the judge has scored none of the sampled answers: raise reward.answers, or see what the warm model says")

    def step(number: int) -> dict:
        rng = np.random.default_rng([seed, 61, number])
        picked = [rows[i] for i in rng.choice(len(rows), min(settings.batch, len(rows)), replace=False)]
        return {"loss": reward.teach(picked, seed * 1_000_003 + number)}

    return Stage(folder, {"adapter": reward.module}, settings, step)
