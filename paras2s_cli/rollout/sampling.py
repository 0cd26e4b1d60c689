"""Sampling that depends on (seed, row, step, stream) only, never on the batch a row rides in."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from paras2s_kernels import dispatch, sample_logprob

TEXT, AUDIO = 0, 1
_GOLDEN = -7046029254386353131


@dataclass(frozen=True, slots=True)
class Warp:
    """What is done to a stream's logits before a token is drawn: divided by the temperature (0 is greedy, and scored at 1), then cut
    to the top k (0: all), then to the nucleus of top p (1: all)."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, each stream over its legal ids. text_temperature None is `temperature`. The log-probability of a token is
    that of the distribution after temperature, top k and top p."""

    temperature: float = 1.0
    audio_top_k: int = 0
    audio_top_p: float = 1.0
    text_temperature: float | None = None
    text_top_k: int = 0
    text_top_p: float = 1.0

    @property
    def audio(self) -> Warp:
        return Warp(self.temperature, self.audio_top_k, self.audio_top_p)

    @property
    def text(self) -> Warp:
        return Warp(self.temperature if self.text_temperature is None else self.text_temperature, self.text_top_k, self.text_top_p)


KIMI_AUDIO = Sampling(temperature=0.8, audio_top_k=10, text_temperature=0.0)
"""What Kimi-Audio's authors recommend for its answers. Reinforcement learning has to draw the text too."""


def row_keys(seed: int, rows: Tensor) -> Tensor:
    """What tells the rows [B] int64 of all seeds apart: [B] int64."""
    state = rows.long() * _GOLDEN + seed * 6364136223846793005 % 2**62
    for _ in range(2):  # twice: neighbouring rows differ in few bits
        state = _mixed(state + _GOLDEN)
    return state


def uniforms(keys: Tensor, step: int | Tensor, stream: int) -> Tensor:
    """Uniform numbers in [0, 1) for rows of these keys [B], one step for all or [B] int64: SplitMix64 (Steele et al. 2014), counted."""
    count = torch.as_tensor(step, device=keys.device) * 2 + stream + 1
    return _shift(_mixed(keys + count * _GOLDEN), 11).double() * 2.0**-53


def _mixed(state: Tensor) -> Tensor:
    state = (state ^ _shift(state, 30)) * -4658895280553007687
    state = (state ^ _shift(state, 27)) * -7723592293110705685
    return state ^ _shift(state, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def restrict(logits: Tensor, warp: Warp, drawn: Tensor | None = None) -> Tensor:
    """Logits [N, V], -inf outside the top k and the nucleus; ids that are equal to the last one that is kept are kept.

    Args:
        drawn: [N] int64, columns that are kept always: rounding, an update or another model may rank a token below those that were kept
            when it was drawn.
    """
    if 0 < warp.top_k < logits.shape[-1]:
        logits = _cut(logits, logits.detach().topk(warp.top_k, dim=-1).values[..., -1:], drawn)
    if warp.top_p < 1:
        ranked = logits.detach().float().sort(dim=-1, descending=True).values
        reached = (ranked / (warp.temperature or 1.0)).softmax(-1).cumsum(-1)
        last = (reached < warp.top_p).sum(-1, keepdim=True).clamp(max=ranked.shape[-1] - 1)
        logits = _cut(logits, ranked.gather(-1, last), drawn)
    return logits


def _cut(logits: Tensor, least: Tensor, drawn: Tensor | None) -> Tensor:
    if drawn is not None:
        least = torch.minimum(least, logits.detach().gather(-1, drawn[:, None]))
    return logits.masked_fill(logits < least, -torch.inf)


def draw(logits: Tensor, keys: Tensor, step: int | Tensor, stream: int, warp: Warp, uniform: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One token a row.

    Args:
        logits: [B, V]. keys: [B], see `row_keys`. step: of all rows, or [B] int64. uniform: what `uniforms` gives for them, if that is
            known: it is what plain torch draws by.

    Returns:
        columns [B] int64 and their log-probabilities [B] fp32 under the distribution sampled from (temperature 1 when greedy).
    """
    if dispatch.choose(logits.device) == "triton":
        return sample_logprob(logits, 0, keys, step, stream, warp.temperature, warp.top_k, warp.top_p)
    # On the CPU one number a row and a running sum take a third of the time of one number a column (64 x 1026).
    logits = logits.float()
    if 0 < warp.top_k < logits.shape[1]:
        # what `restrict` keeps, less the least of it: a difference is exactly 0 for equals, and to compare and to fill takes far longer
        best = logits.topk(warp.top_k).values
        least = torch.where(best > -torch.inf, best, best[:, :1]).amin(-1, keepdim=True)  # fewer than k may be legal
        logits = F.threshold(logits - least, -1e-38, -torch.inf)
    logits = restrict(logits, Warp(warp.temperature, 0, warp.top_p))
    if warp.temperature not in (0, 1):
        logits = logits / warp.temperature
    shares = logits.softmax(-1)
    if warp.temperature == 0:
        columns = logits.argmax(-1)
    else:
        uniform = uniforms(keys, step, stream) if uniform is None else uniform
        columns = inverse(shares, uniform)
    return columns, shares.gather(1, columns[:, None])[:, 0].log()


def inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """The inverse of the distribution function: [B] int64, the column that each number stands for. Sums are float64: every column has its
    share but for fp32's rounding of that share, however rare it is.

    Args:
        weights: [B, V] fp32, at least 0. uniform: [B] float64 in [0, 1).
    """
    sums = weights.cumsum(-1, dtype=torch.float64)
    # rounding may bring the target to the last sum, above which there is no column
    below = torch.nextafter(sums[:, -1], sums.new_zeros(()))
    columns = torch.searchsorted(sums, torch.minimum(uniform * sums[:, -1], below)[:, None], right=True)[:, 0]
    return columns.clamp_(max=weights.shape[1] - 1)  # weights that are no numbers have no column
