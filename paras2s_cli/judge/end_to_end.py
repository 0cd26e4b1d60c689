"""A judge without the first two stages: what scores hears both sides itself. It is the baseline that the stages improve on
(ParaS2S, arXiv 2511.08723)."""

from collections.abc import Callable, Sequence

import numpy as np

from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.judge.stages import Heard, Recording, Scorer, Toned, Utterance, is_silent


class Recorder:
    """A listener that puts nothing into words."""

    name = "none"

    def listen(self, waves: Sequence[np.ndarray], role: str) -> list[Utterance]:
        """See `judge.stages.Listener`."""
        return [Recording(_heard(wave), Toned({}, {}, {}), "", wave) for wave in waves]


class EndToEndJudge(Judge):
    """Recordings that go to the scorer as they are; none is remembered, for they are large."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(Recorder(), scorer)

    def hear(self, waves: Sequence[np.ndarray], role: str, progress: Callable[[int], None] | None = None) -> list[Utterance]:
        """See `Judge.hear`."""
        if progress:
            progress(len(waves))
        return self.listener.listen(waves, role)


def _heard(wave: np.ndarray) -> Heard:
    return Heard("", False, False, "silence") if is_silent(wave) else Heard("", False)
