"""Sampling that depends on (seed, row, step) only, never on the batch a row rides in."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy. top_k 0 keeps every legal token; the log-probability returned is that of the
    distribution after temperature and top_k."""

    temperature: float = 1.0
    audio_top_k: int = 0


def uniforms(seed: int, rows: Tensor, step: int, stream: int) -> Tensor:
    """Uniform numbers in [0, 1) for rows [B] int64: a counter-based generator (splitmix64's finaliser over the counters)."""
    state = rows.long() * -7046029254386353131 + seed * 6364136223846793005 % 2**62 + step * 2 + stream + 1
    for _ in range(2):  # twice: neighbouring counters differ in few bits
        state = state + -7046029254386353131
        state = (state ^ _shift(state, 30)) * -4658895280553007687
        state = (state ^ _shift(state, 27)) * -7723592293110705685
        state = state ^ _shift(state, 31)
    return _shift(state, 11).double() * 2.0**-53


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def warp(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """The log-probabilities that are sampled from: [B, V] fp32, -inf outside the top k."""
    logits = logits.float() / (temperature if temperature > 0 else 1.0)
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits.log_softmax(-1)


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int) -> tuple[Tensor, Tensor]:
    """One token a row.

    Args:
        logits: [B, V]. uniform: [B] float64 in [0, 1).

    Returns:
        columns [B] int64 and their log-probabilities [B] fp32 under the distribution sampled from (temperature 1 when greedy).
    """
    logprobs = warp(logits, temperature, top_k)
    if temperature == 0:
        columns = logprobs.argmax(-1)
    else:
        # Inverse of the distribution function, in float64 so that the last columns keep their share.
        total = logprobs.double().exp().cumsum(-1)
        columns = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return columns, logprobs.gather(1, columns[:, None])[:, 0]
