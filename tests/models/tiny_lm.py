"""A speech LM of a few thousand numbers whose every number matters, and random queries for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from paras2s_cli.models.small import new_model, word_tokenizer
from paras2s_cli.models.speech_lm import SpeechLM, Streams
from paras2s_cli.models.tokenizer import TextTokenizer

CODES, FEATURES = 20, 8
TEXTS = ("the train is late .", "oh dear , come in ; we shall wait .", "what luck !")


def tiny_tokenizer() -> TextTokenizer:
    return word_tokenizer(TEXTS)


def tiny_model(seed: int = 1, delay: int = 3, hidden: int = 32, branch: int = 1) -> SpeechLM:
    """2 shared layers, `branch` in each branch. Biases and norms are moved off 0 and 1, where a mistake in them would not show."""
    model = new_model(
        tiny_tokenizer(),
        codes=CODES,
        features=FEATURES,
        hidden_size=hidden,
        intermediate_size=48,
        shared_layers=2,
        text_layers=branch,
        audio_layers=branch,
        heads=4,
        kv_heads=2,
        delay=delay,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def random_frames(lengths: Sequence[int], seed: int = 5) -> list[np.ndarray]:
    """Feature tables [F, FEATURES] of queries of these many 20 ms frames; each depends on its own length and the seed alone."""
    return [np.random.default_rng([seed, n]).standard_normal((n, FEATURES)).astype(np.float32) for n in lengths]


def double(streams: Streams) -> Streams:
    """The same with features in float64."""
    features = None if streams.features is None else streams.features.double()
    return Streams(streams.audio, streams.text, streams.valid, streams.continuous, features)
