"""What GRPO and its monitor ask of a reward model: of the small one that reads audio codes, or of an audio language model that hears."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from paras2s_cli.data.worlds import Spoken
from paras2s_cli.judge.reward import RewardModel, agreeing
from paras2s_cli.recipe.training import Train
from paras2s_cli.train.distill import Judged, Lessons, digits_loss, reading_loss
from paras2s_cli.train.loop import precision


class Reward(Protocol):
    """A judge that was distilled. A reward is the expected Likert digit; an answer without codes gets 1."""

    @property
    def module(self) -> nn.Module:
        """What is taught and kept in checkpoints."""
        ...

    def rewards(self, queries: Sequence[Spoken], codes: Sequence[np.ndarray], texts: Tensor | None = None, group: int = 1) -> Tensor:
        """Rewards [Q * group] fp32 on the CPU, of `group` answers to each query in turn.

        Args:
            codes: [N] int64 an answer. texts: [Q * group, L] text ids beside them, for a model that holds sound against text; None: it does
                not.
        """
        ...

    def thaw(self) -> None:
        """Lets be trained what is taught."""
        ...

    def teach(self, rows: Sequence[Judged], seed: int) -> float:
        """Adds the gradients of a batch that the judge has scored; returns its loss. Rows without a score teach no digit."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what was taught into an existing folder."""
        ...

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""
        ...


class CodeReward:
    """The small reward model, which reads codes as words and tones.

    Args:
        decode: text ids to text. agreement: how far an answer loses its reward whose sound says other words than its text. settings: of
            the stage that it serves in.
    """

    def __init__(self, model: RewardModel, lessons: Lessons, decode: Callable[[list[int]], str], agreement: float, settings: Train) -> None:
        self.module, self.lessons = model, lessons
        self._decode, self._agreement, self._settings = decode, agreement, settings

    def rewards(self, queries: Sequence[Spoken], codes: Sequence[np.ndarray], texts: Tensor | None = None, group: int = 1) -> Tensor:
        """See `Reward`."""
        given, spoken = self.module.grade([q.features for q in queries], codes, group)
        if texts is None:
            return given
        written = self.lessons.vocabulary.words_in([self._decode(row.tolist()) for row in texts])
        return agreeing(given, spoken, written, self._agreement)

    def thaw(self) -> None:
        """See `Reward`."""
        self.module.thaw()

    def teach(self, rows: Sequence[Judged], seed: int) -> float:
        """See `Reward`. Every query of the rows meets every answer."""
        torch.manual_seed(seed)
        with precision(self._settings):
            loss = reading_loss(self.module, self.lessons, rows)
        target = self.lessons.digits([r.asked for r in rows], [r.said for r in rows])
        with torch.no_grad():
            queries, answers = self.module.queries([r.query.features for r in rows]), self.module.answers([r.codes for r in rows])
        loss = loss + digits_loss(self.module, self.lessons, queries, answers, target, torch.Generator().manual_seed(seed))
        loss.backward()
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        """See `Reward`."""
        from safetensors.torch import save_file

        save_file(self.module.state_dict(), folder / "reward.safetensors")

    def load(self, folder: Path) -> None:
        """See `Reward`."""
        from safetensors.torch import load_file

        self.module.load_state_dict(load_file(folder / "reward.safetensors"))
