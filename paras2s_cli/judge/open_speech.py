"""Words that no closed set holds: pocketsphinx and its language model, on speech from outside the small world."""

from functools import cached_property
from typing import Any

import numpy as np

_NOISE_DB = -30.0
"""White noise under the speech, relative to its level: synthetic and denoised speech has digital silence, in which pocketsphinx's
noise estimate is lost and it returns nothing."""


class OpenTranscriber:
    """English text from any speech. It loads on first use, and hears every utterance by itself: nothing carries over."""

    def transcribe(self, wave: np.ndarray) -> str:
        """float32 [T] at 16 kHz -> words in lower case, maybe none."""
        level = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if len(wave) else 0.0
        if level == 0.0:
            return ""
        noise = np.random.default_rng(0).normal(size=len(wave)) * level * 10 ** (_NOISE_DB / 20)
        loud = np.clip((wave + noise) * 32767, -32768, 32767).astype(np.int16)
        decoder = self._decoder
        decoder.start_utt()
        decoder.process_raw(loud.tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return str(found.hypstr) if found else ""

    @cached_property
    def _decoder(self) -> Any:  # pocketsphinx has no types
        from pocketsphinx import Config, Decoder, get_model_path

        model = get_model_path()
        files = {"hmm": f"{model}/en-us/en-us", "dict": f"{model}/en-us/cmudict-en-us.dict", "lm": f"{model}/en-us/en-us.lm.bin"}
        return Decoder(Config(**files, loglevel="FATAL"))
