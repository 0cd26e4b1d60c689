"""A listener of two stages that are chosen one by one."""

from collections.abc import Sequence

import numpy as np

from paras2s_cli.judge.stages import Describer, Heard, Listener, Toned, Transcriber, Utterance, is_silent

_NO_TONE = Toned({}, {}, {})


class StagedListener:
    """A transcriber and a describer; `ears` do what is left to them. What is silent is given to none of them."""

    def __init__(self, transcriber: Transcriber | None, describer: Describer | None, ears: Listener | None) -> None:
        self._transcriber, self._describer, self._ears = transcriber, describer, ears
        self.name = " | ".join(stage.name for stage in (transcriber, describer, ears) if stage is not None)

    def listen(self, waves: Sequence[np.ndarray], role: str) -> list[Utterance]:
        """See `judge.stages.Listener`."""
        found: list[Utterance] = [Utterance(Heard("", False, False, "silence"), _NO_TONE, "") for _ in waves]
        loud = [place for place, wave in enumerate(waves) if not is_silent(wave)]
        sounds = [waves[place] for place in loud]
        if not sounds:
            return found
        whole = self._ears.listen(sounds, role) if self._ears is not None else []
        heard = self._transcriber.transcribe(sounds) if self._transcriber is not None else [u.heard for u in whole]
        toned = self._describer.describe(sounds, role) if self._describer is not None else [u.toned for u in whole]
        for place, words, manner in zip(loud, heard, toned, strict=True):
            found[place] = Utterance(words, manner, manner.in_words(role))
        return found
