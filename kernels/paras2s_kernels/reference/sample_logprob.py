"""Plain-torch twin of the sampling kernel: the CPU path, with the same random numbers.

argmax z + Gumbel is drawn as argmax exp(z) / e with e exponential: the same draw, one logarithm less. The random words are those
of philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four columns share a call, and when ids are
left out only those that remain are given numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEG_INF = float("-inf")
_MASK = 0xFFFFFFFF
# rows are taken so many logits at a time: the working memory is then a few MB at any batch
_CHUNK = 1 << 18


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits for a counter of four, int64 tensors in [0, 2^32) that broadcast together, and a key of two.

    A product of two words wraps around in int64, and its 64 bits are right all the same. What stands above bit 31 is cut off only
    where the next multiplication would see it.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0 = ((second >> 32) ^ (c1 ^ k0)).bitwise_and_(_MASK)
        c2 = ((first >> 32) ^ (c3 ^ k1)).bitwise_and_(_MASK)
        c1, c3 = second, first
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1 & _MASK, c2, c3 & _MASK


def column_words(seed: int, row_ids: Tensor, steps: Tensor, stream: int, quads: Tensor) -> Tensor:
    """Words of the columns 4 q ... 4 q + 3 of each q in `quads`, in a last dimension of 4; row_ids, steps, quads broadcast."""
    counter = (stream * 2**22 + quads, steps & _MASK, row_ids & _MASK, (row_ids >> 32) & _MASK)
    return torch.stack(philox(counter, (seed & _MASK, (seed >> 32) & _MASK)), dim=-1)


def exponentials(words: Tensor) -> Tensor:
    """Exponential variables -log(1 - v) of v = (words + 1/2) / 2^32, fp32, exact to a few ulp at both ends.

    1 - v comes from the complement of the words, so it is never 0; where it is rounded, v / (1 - (1 - v)) makes up for it.
    """
    v = words.float().add_(0.5).mul_(2.0**-32)
    rest = (_MASK - words).float().add_(0.5).mul_(2.0**-32)
    lost = 1.0 - rest
    return torch.where(lost == 0, v, rest.log_().neg_().mul_(v / lost))


def _nucleus(x: Tensor, w: Tensor, top_p: float) -> Tensor:
    """[N, V] bool: the logits at or above the largest value whose w, summed from there up, reaches top_p of all.

    A few largest logits are taken, and four times as many as long as some row needs more.
    """
    target = top_p * w.sum(1, keepdim=True)
    size = 16
    while True:
        size = min(4 * size, x.shape[1])
        values, places = x.topk(size)
        mass = w.gather(1, places).cumsum(1)
        if size == x.shape[1] or bool((mass[:, -1:] >= target).all()):
            break
    last = (mass < target).sum(1, keepdim=True).clamp_(max=size - 1)
    return x >= values.gather(1, last)


def _race(w: Tensor, kept: Tensor | None, seed: int, row_ids: Tensor, steps: Tensor, stream: int) -> Tensor:
    """argmax of w over exponential variables among the kept columns, [N]; the lowest id of equals."""
    if kept is None:
        quads = torch.arange((w.shape[1] + 3) // 4, device=w.device)
        words = column_words(seed, row_ids.unsqueeze(1), steps.unsqueeze(1), stream, quads).flatten(1)[:, : w.shape[1]]
        return (w / exponentials(words)).argmax(1)
    rows, columns = kept.nonzero(as_tuple=True)
    words = column_words(seed, row_ids[rows], steps[rows], stream, columns >> 2).gather(1, (columns & 3).unsqueeze(1)).squeeze(1)
    score = torch.full_like(w, -1.0)
    score[rows, columns] = w[rows, columns] / exponentials(words)
    return score.argmax(1)


def _rows(
    x: Tensor, seed: int, row_ids: Tensor, steps: Tensor, stream: int, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities of the fp32 rows x."""
    row_max = x.amax(1, keepdim=True)
    dead = (row_max == _NEG_INF).squeeze(1)
    z = x - row_max.masked_fill(row_max == _NEG_INF, 0.0)
    if temperature > 0:
        z *= 1.0 / temperature
    w = z.exp()
    kept = None
    if 0 < top_k < x.shape[1]:
        kept = x >= x.topk(top_k).values[:, -1:]
        w = w.masked_fill_(~kept, 0.0)
    if top_p < 1:
        inside = _nucleus(x, w, top_p)
        kept = inside if kept is None else kept & inside
        w = w.masked_fill_(~kept, 0.0)
    ids = x.argmax(1) if temperature == 0 else _race(w, kept, seed, row_ids, steps, stream)
    logprob = z.gather(1, ids.unsqueeze(1)).squeeze(1) - w.sum(1).log_()
    return ids.masked_fill_(dead, 0), logprob.masked_fill_(dead, _NEG_INF)


def forward(
    logits: Tensor, seed: int, row_ids: Tensor, steps: Tensor, stream: int, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor]:
    """(ids [N] int64, logprob [N] fp32); steps [N] int64. ValueError for steps out of range."""
    if bool((steps < 0).any()) or bool((steps >= 2**32).any()):
        raise ValueError(f"step: expected numbers in [0, 2^32), got {int(steps.min())} to {int(steps.max())}")
    size = max(1, _CHUNK // logits.shape[1])
    done = [
        _rows(x.float(), seed, rows, step, stream, temperature, top_k, top_p)
        for x, rows, step in zip(logits.split(size), row_ids.split(size), steps.split(size), strict=True)
    ]
    return torch.cat([ids for ids, _ in done]), torch.cat([logprob for _, logprob in done])
