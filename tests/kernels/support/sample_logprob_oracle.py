"""What sample_logprob must return: restriction and log-probabilities in float64 by sorting, random words by numpy's uint64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

NEG_INF = float("-inf")
# Two ids whose scores are nearer than this (relative) may be drawn either way; a nucleus that ends so near to top_p may end elsewhere.
NEAR = 2e-5
NEAR_MASS = 1e-6


@dataclass(frozen=True)
class Case:
    logits: Tensor  # [N, V]
    seed: int
    row_ids: Tensor  # [N] int64
    steps: Tensor  # [N] int64
    stream: int = 1
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0

    def arguments(self) -> tuple:
        return (self.logits, self.seed, self.row_ids, self.steps, self.stream, self.temperature, self.top_k, self.top_p)


# forward(logits, seed, row_ids, steps, stream, temperature, top_k, top_p) -> ids, logprob
Forward = Callable[..., tuple[Tensor, Tensor]]


def make_case(
    rows: int, vocab: int, dtype: torch.dtype = torch.float32, illegal: float = 0.0, strided: bool = False, ties: bool = False,
    seed: int = 0, **settings: float,
) -> Case:  # fmt: skip
    """Random logits of both signs; row ids and seed use all 64 bits, steps all 32.

    With `illegal` > 0 that share of the logits is -inf and row 0 is so throughout; with `ties` the logits are whole numbers and
    both zeros are among them.
    """
    draw = torch.Generator().manual_seed(seed)
    wide = vocab + 5 if strided else vocab
    logits = torch.randn(rows, wide, generator=draw) * 2 + torch.linspace(-1, 1, wide)
    if ties:
        logits = logits.round()
        logits[:, ::7] *= -1.0
    if illegal:
        logits[torch.rand(rows, wide, generator=draw) < illegal] = NEG_INF
        logits[0] = NEG_INF
    row_ids = torch.randint(-(2**62), 2**62, (rows,), generator=draw)
    steps = torch.randint(2**30, 2**32, (rows,), generator=draw)
    case = Case(logits.to(dtype)[:, :vocab], -7 * 2**40 + 12345 + seed, row_ids, steps)
    return replace(case, **settings)


def exact(case: Case) -> tuple[Tensor, Tensor]:
    """([N, V] float64 log-probabilities, -inf outside the restriction; [N] bool, the nucleus ends too near to top_p to tell)."""
    x = case.logits.double()
    vocab = x.shape[1]
    z = x / (case.temperature or 1.0)
    near = torch.zeros(len(x), dtype=torch.bool)
    if 0 < case.top_k < vocab:
        z = z.masked_fill(x < x.sort(descending=True).values[:, case.top_k - 1 : case.top_k], NEG_INF)
    if case.top_p < 1:
        ordered = z.sort(descending=True).values
        p = ordered.softmax(1)
        before = p.cumsum(1) - p
        last = (before < case.top_p).sum(1, keepdim=True).clamp(min=1) - 1  # the one that crosses top_p is in
        near = ((p.cumsum(1) - case.top_p).abs() < NEAR_MASS).any(1)
        z = z.masked_fill(z < ordered.gather(1, last), NEG_INF)
    return z.log_softmax(1).nan_to_num(nan=NEG_INF, neginf=NEG_INF), near


def philox(counter: list[np.ndarray], key: list[np.ndarray]) -> list[np.ndarray]:
    """Philox-4x32-10 as its paper writes it, on uint64 arrays that hold 32 bits."""
    low = np.uint64(0xFFFFFFFF)
    c, k = [np.asarray(x, np.uint64) for x in counter], [np.asarray(x, np.uint64) for x in key]
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ k[0], p1 & low, (p0 >> np.uint64(32)) ^ c[3] ^ k[1], p0 & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return c


def exponentials(case: Case) -> Tensor:
    """[N, V] float64 exponential variables, from the definition of the counters."""

    def halves(x: np.ndarray) -> list[np.ndarray]:
        return [x.view(np.uint64) & np.uint64(0xFFFFFFFF), x.view(np.uint64) >> np.uint64(32)]

    columns = np.arange(case.logits.shape[1], dtype=np.uint64)[None]
    low, high = (half[:, None] for half in halves(case.row_ids.numpy()))
    first = columns // np.uint64(4) + np.uint64(case.stream << 22)
    four = philox([first, case.steps.numpy()[:, None], low, high], halves(np.array(case.seed, dtype=np.int64)))
    words = np.choose((columns % np.uint64(4)).astype(np.int64), [np.broadcast_to(word, (len(low), columns.size)) for word in four])
    return torch.from_numpy(-np.log1p(-(words.astype(np.float64) + 0.5) * 2.0**-32))


def check(case: Case, forward: Forward, **options: int) -> tuple[Tensor, Tensor]:
    """Draws and asserts ids and log-probabilities against the above; returns them."""
    ids, logprob = forward(*case.arguments(), **options)
    check_drawn(case, ids, logprob)
    return ids, logprob


def check_drawn(case: Case, ids: Tensor, logprob: Tensor) -> None:
    logprobs, near = exact(case)
    assert ids.dtype == torch.int64 and logprob.dtype == torch.float32 and ids.shape == logprob.shape == case.row_ids.shape
    assert ((ids >= 0) & (ids < case.logits.shape[1])).all(), "ids: outside the vocabulary"
    dead = (case.logits == NEG_INF).all(1)
    assert not ids[dead].any() and (logprob[dead] == NEG_INF).all(), "ids: a row without legal ids"
    scores = logprobs if case.temperature == 0 else logprobs - exponentials(case).log()
    best = scores.topk(min(2, scores.shape[1])).values
    if case.temperature > 0 and best.shape[1] == 2:
        near = near | ((best[:, 0] - best[:, 1]).nan_to_num(posinf=1.0) < NEAR)
    assert near.float().mean() <= 0.01 or near.sum() <= 1, f"{int(near.sum())} near-ties: the check says nothing"
    live = ~dead & ~near
    want = scores.argmax(1)
    wrong = torch.nonzero(live & (ids != want)).flatten().tolist()
    assert not wrong, f"ids: rows {wrong[:5]} drew {ids[wrong[:5]].tolist()}, expected {want[wrong[:5]].tolist()}"
    expected = logprobs.gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(logprob[live].double(), expected[live], rtol=1e-5, atol=5e-6, msg=lambda m: f"logprob: {m}")
