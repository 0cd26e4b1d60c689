"""Log-probabilities of chosen tokens from hidden states and a head, in memory that does not grow with tokens times vocabulary."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from paras2s_cli.rollout.sampling import Warp, restrict
from paras2s_kernels import linear_logprob, token_logprob

LOGITS = 1 << 24
"""Logits of a stream that may be held at once, 64 MB in fp32. Up to so many, computing them again for the backward is not worth it; and
glibc gives blocks above 32 MB back at once, where much smaller pieces leave its heap in holes (measured: 0.3 GB at 16k codes)."""
TOKENS = 256
"""Of a large vocabulary at least so many tokens at once: below that, what costs is to read the head and to write its gradient."""


class Scores(NamedTuple):
    """Of N tokens: their log-probabilities under the distribution that they were drawn from, and its entropies, [N] fp32 each."""

    logprobs: Tensor
    entropy: Tensor


def score(hidden: Tensor, head: Tensor, columns: Tensor, warp: Warp) -> Scores:
    """The tokens at `columns` under the distribution that `warp` leaves of softmax(hidden head'), with gradient.

    More than LOGITS logits (or those of TOKENS tokens) are never there at once: without top k and top p by `linear_logprob`; with
    them, which need a token's logits side by side, by pieces of the tokens that are computed again for the backward.

    Args:
        hidden: [N, D]. head: [V, D]. columns: [N] int64, kept always (see `restrict`).
    """
    if hidden.shape[0] * head.shape[0] <= LOGITS:
        return _score(hidden, head, columns, warp)
    if warp.top_k == 0 and warp.top_p == 1:
        logprobs, entropy, _ = linear_logprob(hidden, head, columns, warp.temperature)
        return Scores(logprobs, entropy)
    size = max(TOKENS, LOGITS // head.shape[0])
    pieces = [
        checkpoint(_score, states, head, some, warp, use_reentrant=False, preserve_rng_state=False)
        for states, some in zip(hidden.split(size), columns.split(size), strict=True)
    ]
    return Scores(torch.cat([found.logprobs for found in pieces]), torch.cat([found.entropy for found in pieces]))


def _score(hidden: Tensor, head: Tensor, columns: Tensor, warp: Warp) -> Scores:
    return score_logits(F.linear(hidden, head), columns, warp)


def score_logits(logits: Tensor, columns: Tensor, warp: Warp) -> Scores:
    """The same from logits [N, V], -inf at what is never drawn."""
    return Scores(*token_logprob(restrict(logits.float(), warp, columns), columns, warp.temperature))


def cross_entropy(hidden: Tensor, head: Tensor, columns: Tensor) -> Tensor:
    """Sum of -log softmax(hidden head') at the columns, with gradient, in memory as `score`.

    Args:
        hidden: [N, D]. head: [V, D]. columns: [N] int64.
    """
    if hidden.shape[0] * head.shape[0] <= LOGITS:
        return F.cross_entropy(F.linear(hidden, head).float(), columns, reduction="sum")
    return -linear_logprob(hidden, head, columns)[0].sum()
