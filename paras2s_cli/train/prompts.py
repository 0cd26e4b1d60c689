"""Recorded speech as a speech LM takes it in, whichever kind of model it is."""

from collections.abc import Sequence

import numpy as np
import torch

from paras2s_cli.audio.read import read_audio
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.judge.ears import augment, pad
from paras2s_cli.models.hearing import Hearing
from paras2s_cli.models.prompt import spoken_queries
from paras2s_cli.models.speech_lm import SpeechLM, Streams


def prompts_of(
    model: SpeechLM,
    queries: Sequence[Spoken],
    generator: torch.Generator | None = None,
    *,
    answer_in_text: bool = False,
    rows: Sequence[int] | None = None,
) -> Streams:
    """Prompts of recorded queries: a model with its own encoder takes the world's features, Kimi-Audio hears the recordings.

    Args:
        generator: augments the features of a model with its own encoder, as another speaker might have said them.
        rows: prompts of these queries only, each augmented as it is among all.

    Raises:
        UsageError: see `Hearing.hear`.
    """
    rows = range(len(queries)) if rows is None else rows
    if model.config.encoder_features:
        tables = [q.features for q in queries]
        if generator is not None:
            x, lengths = pad(tables)
            tables = [t[:n].numpy() for t, n in zip(augment(x, generator), lengths, strict=True)]
        tables = [tables[i] for i in rows]
        return spoken_queries(tables, model.config, model.specials, answer_in_text=answer_in_text)
    heard = _hearing(model).hear([read_audio(queries[i].path) for i in rows])
    frames, codes = [h.frames for h in heard], [h.codes for h in heard]
    return spoken_queries(frames, model.config, model.specials, codes=codes, answer_in_text=answer_in_text)


def answer_codes(model: SpeechLM, answers: Sequence[Spoken | None]) -> list[np.ndarray | None]:
    """The codes of recorded answers in the model's own code: the world's for a small model, the speech tokenizer's for Kimi-Audio."""
    if model.config.encoder_features:
        return [a.codes if a else None for a in answers]
    spoken = iter(_hearing(model).encode([read_audio(a.path) for a in answers if a]))
    return [next(spoken) if a else None for a in answers]


def _hearing(model: SpeechLM) -> Hearing:
    assert model.hearing is not None, "load_model gives it to every model without an encoder of its own"
    return model.hearing
