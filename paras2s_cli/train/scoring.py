"""Log-probabilities of chosen tokens from hidden states and a head, in memory that does not grow with tokens times vocabulary."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from paras2s_cli.rollout.sampling import Warp, restrict
from paras2s_kernels import linear_logprob, token_logprob

LOGITS = 1 << 24
"""Logits of a stream that may be held at once, 64 MB in fp32. Up to so many, computing them again for the backward is not worth it."""


def score(hidden: Tensor, head: Tensor, columns: Tensor, warp: Warp) -> tuple[Tensor, Tensor]:
    """Log-probability of each column under the distribution that `warp` leaves, and the entropy of that, [N] fp32 each, with gradient.

    More than LOGITS logits are never there at once: without top k and top p by `linear_logprob`; with them, which need a token's
    logits side by side, by pieces of the tokens that are computed again for the backward.

    Args:
        hidden: [N, D]. head: [V, D]. columns: [N] int64, kept always (see `restrict`).
    """
    if hidden.shape[0] * head.shape[0] <= LOGITS:
        return _score(hidden, head, columns, warp)
    if warp.top_k == 0 and warp.top_p == 1:
        logprobs, entropy, _ = linear_logprob(hidden, head, columns, warp.temperature)
        return logprobs, entropy
    size = max(1, LOGITS // head.shape[0])
    pieces = [
        checkpoint(_score, states, head, some, warp, use_reentrant=False, preserve_rng_state=False)
        for states, some in zip(hidden.split(size), columns.split(size), strict=True)
    ]
    logprobs, entropies = zip(*pieces, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _score(hidden: Tensor, head: Tensor, columns: Tensor, warp: Warp) -> tuple[Tensor, Tensor]:
    return token_logprob(restrict(F.linear(hidden, head).float(), warp, columns), columns, warp.temperature)


def cross_entropy(hidden: Tensor, head: Tensor, columns: Tensor) -> Tensor:
    """Sum of -log softmax(hidden head') at the columns, with gradient; more than LOGITS logits are never there at once.

    Args:
        hidden: [N, D]. head: [V, D]. columns: [N] int64.
    """
    if hidden.shape[0] * head.shape[0] <= LOGITS:
        return F.cross_entropy(F.linear(hidden, head).float(), columns, reduction="sum")
    return -linear_logprob(hidden, head, columns)[0].sum()
