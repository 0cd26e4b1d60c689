"""A token drawn from each row of logits with the exact log-probability of what was drawn.

Registered as `torch.ops.paras2s.sample_logprob` with fake tensors; there is no gradient. A row's draw depends on its logits and on
(seed, row id, step, stream) alone: the batch that it rides in and the device change nothing, but for near-ties.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paras2s_kernels import dispatch
from paras2s_kernels.reference import sample_logprob as _reference

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def sample_logprob(
    logits: Tensor,
    seed: int,
    row_ids: Tensor,
    step: int | Tensor,
    stream: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draws one id a row from softmax(logits / temperature), restricted to the top k and then to the nucleus top_p.

    logits       [N, V] float32, float16 or bfloat16, finite or -inf; rows may be strided, the last dimension is contiguous; V < 2^24
    seed         int in [-2^63, 2^63)
    row_ids      [N] int64: what tells the rows apart, in every batch
    step         int in [0, 2^32), or [N] int64 of such where rows are at different steps
    stream       int in [0, 1024): one of several draws of a row at a step
    temperature  >= 0; 0 takes the most likely id, the lowest of equals, with its log-probability at temperature 1
    top_k        keeps the logits at or above the k-th largest, ties included; 0 or V and more keep all
    top_p        in (0, 1]: of those, keeps the most likely ids up to and with the one whose probability, renormalised after top_k,
                 makes the sum reach top_p; ids with the logit of the last one are kept too. 1 keeps all
    returns      ids [N] int64, logprob [N] float32 under the restricted, renormalised distribution

    A logit of -inf is never drawn. A row that is -inf throughout gives id 0 and logprob -inf.

    The random numbers are philox-4x32-10, a word of 32 bits for each column, the same on every device. What is computed from them is
    float32: where the two best ids of the race are within about 1e-5 of each other (relative; as rare as that), or the nucleus ends
    within 1e-6 of top_p, two devices may draw differently. Each is a right draw.

    ValueError names the argument that has a wrong shape, dtype, stride, device or value. Triton does not look at the values of a tensor
    of steps, as it would have to wait for the GPU; it takes their low 32 bits.
    """
    _check(logits, row_ids, step, temperature, top_k, top_p)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: expected an int of 64 bits, got {seed}")
    if not 0 <= stream < 1024:
        raise ValueError(f"stream: expected an int in [0, 1024), got {stream}")
    steps = step if isinstance(step, Tensor) else row_ids.new_full((1,), step).expand(row_ids.shape)
    arguments = (logits.detach(), seed, row_ids, steps, stream, float(temperature), top_k, float(top_p))
    if torch.compiler.is_compiling() or dispatch.choose(logits.device) == "triton":
        ids, logprob = torch.ops.paras2s.sample_logprob(*arguments)
        return ids, logprob
    with torch.no_grad():
        return _reference.forward(*arguments)


def _check(logits: Tensor, row_ids: Tensor, step: int | Tensor, temperature: float, top_k: int, top_p: float) -> None:
    if logits.dim() != 2 or not 0 < logits.shape[1] < 2**24:
        raise ValueError(f"logits: expected [N, V] with 0 < V < 2^24, got shape {list(logits.shape)}")
    if logits.dtype not in _DTYPES:
        raise ValueError(f"logits: expected float32, float16 or bfloat16, got {logits.dtype}")
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        raise ValueError(f"logits: the last dimension must be contiguous, its stride is {logits.stride(1)}")
    for name, rows in (("row_ids", row_ids), ("step", step)):
        if not isinstance(rows, Tensor):
            continue
        if rows.dim() != 1 or rows.shape[0] != logits.shape[0]:
            raise ValueError(f"{name}: expected [{logits.shape[0]}], one for each row of logits, got {list(rows.shape)}")
        if rows.dtype != torch.int64:
            raise ValueError(f"{name}: expected int64, got {rows.dtype}")
        if rows.device != logits.device:
            raise ValueError(f"{name}: on {rows.device}, but logits are on {logits.device}")
    if isinstance(step, int) and not 0 <= step < 2**32:
        raise ValueError(f"step: expected an int in [0, 2^32), got {step}")
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: expected 0 or a positive finite number, got {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k: expected 0 (keep all) or more, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number in (0, 1], got {top_p}")


@torch.library.custom_op(
    "paras2s::sample_logprob",
    mutates_args=(),
    schema="(Tensor logits, int seed, Tensor row_ids, Tensor steps, int stream, float temperature, int top_k, float top_p) "
    "-> (Tensor, Tensor)",
)
def _op(
    logits: Tensor, seed: int, row_ids: Tensor, steps: Tensor, stream: int, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor]:
    arguments = (logits, seed, row_ids, steps, stream, temperature, top_k, top_p)
    drawn: tuple[Tensor, Tensor] = dispatch.run("sample_logprob", "forward", logits.device, *arguments)
    return drawn


@_op.register_fake
def _(logits: Tensor, seed: int, row_ids: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    return row_ids.new_empty(row_ids.shape), logits.new_empty(row_ids.shape, dtype=torch.float32)
