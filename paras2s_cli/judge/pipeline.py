"""The three stages in a row. Every distinct utterance is listened to once, however many pairs it is in."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from paras2s_cli.judge.stages import Listener, Scorer, Utterance, Verdict

BATCH = 64
"""Utterances listened to at a time."""


@dataclass
class Judge:
    """A listener (stages one and two), a scorer (stage three), and what has been heard already."""

    listener: Listener
    scorer: Scorer
    remembered: dict[str, Utterance] = field(default_factory=dict)
    listened: int = 0
    """Utterances that were not remembered."""

    @property
    def name(self) -> dict[str, str]:
        """Which backends judge, for the rows."""
        return {"listener": self.listener.name, "scorer": self.scorer.name}

    def hear(self, waves: Sequence[np.ndarray], role: str, progress: Callable[[int], None] | None = None) -> list[Utterance]:
        """Stages one and two. What a server failed to hear is not remembered.

        Args:
            waves: mono float32 at 16 kHz, [T] each.
            role: `query` or `answer`.
            progress: told how many more are done.
        """
        keys = [utterance_key(wave, role) for wave in waves]
        missing = {key: wave for key, wave in zip(keys, waves, strict=True) if key not in self.remembered}
        names = sorted(missing, key=lambda key: len(missing[key]))  # batches of like length
        failed: dict[str, Utterance] = {}
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            for key, utterance in zip(batch, self.listener.listen([missing[k] for k in batch], role), strict=True):
                (self.remembered if utterance.heard.failure is None else failed)[key] = utterance
            self.listened += len(batch)
            if progress:
                progress(len(batch))
        return [failed[key] if key in failed else self.remembered[key] for key in keys]

    def judge(
        self, queries: Sequence[np.ndarray], answers: Sequence[np.ndarray], *, closed: bool = False
    ) -> list[tuple[Utterance, Utterance, Verdict]]:
        """All three stages on pairs of waves."""
        sides = list(zip(self.hear(queries, "query"), self.hear(answers, "answer"), strict=True))
        return [(q, a, v) for (q, a), v in zip(sides, self.scorer.score(sides, closed=closed), strict=True)]


def utterance_key(wave: np.ndarray, role: str) -> str:
    """Equal for equal samples in an equal role."""
    return hashlib.sha256(role.encode() + np.ascontiguousarray(wave, dtype=np.float32).tobytes()).hexdigest()
