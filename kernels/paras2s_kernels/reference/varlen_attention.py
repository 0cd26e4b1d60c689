"""Plain-torch twin of packed attention: the CPU path.

Neighbours of one length are a batch, which is a view of the packed tokens; so equal lengths are one call and others a loop.
`attend` is torch's fused attention with torch's own gradient. `forward` and `backward` give the log-sum-exp too and are what the op runs:
with p = softmax, dp = dout v', delta = sum(dout * out) - dlse:  ds = p (dp - delta),  dq = scale ds k,  dk = scale ds' q,  dv = p' dout.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

_NEG_INF = float("-inf")


def runs(cu_seqlens: Tensor, tokens: int, max_seqlen: int | None = None) -> list[tuple[int, int, int]]:
    """(first token, sequences, their length) of neighbours of one length, empty ones left out. ValueError for what is no packing."""
    ends = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(ends)]
    if ends[0] != 0 or ends[-1] != tokens or min(lengths, default=0) < 0:
        raise ValueError(f"cu_seqlens: expected to rise from 0 to the {tokens} tokens of q, got {ends}")
    if max_seqlen is not None and max(lengths, default=0) > max_seqlen:
        raise ValueError(f"max_seqlen: {max_seqlen}, but a sequence has {max(lengths)} tokens")
    found, start = [], 0
    for length, same in groupby(lengths):
        count = len(list(same))
        if length:
            found.append((start, count, length))
        start += count * length
    return found


def _hidden(length: int, prefix: int, device: torch.device) -> Tensor:
    """[L, P + L], True where a position may not look."""
    return torch.ones(length, prefix + length, dtype=torch.bool, device=device).triu_(prefix + 1)


def _with_prefix(own: Tensor, prefix: Tensor | None, count: int, length: int) -> Tensor:
    """A run's keys or values, [n * L, Hkv, d] -> [n, Hkv, P + L, d]."""
    own = own.view(count, length, -1, own.shape[2])
    if prefix is not None:
        own = torch.cat([prefix.expand(count, *prefix.shape), own], 1)
    return own.transpose(1, 2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    max_seqlen: int | None = None,
) -> Tensor:
    """out [T, H, d], differentiable. In float32, like the gradients of the prefix, which are sums over the sequences."""
    dtype = q.dtype
    q, k, v = q.float(), k.float(), v.float()
    if prefix_k is not None and prefix_v is not None:
        prefix_k, prefix_v = prefix_k.float(), prefix_v.float()
    found = runs(cu_seqlens, q.shape[0], max_seqlen)
    # Split and not sliced: the gradient of every slice would be as long as all sequences together.
    sizes = [count * length for _, count, length in found]
    dim, grouped = q.shape[2], q.shape[1] != k.shape[1]
    prefix, mask = 0 if prefix_k is None else prefix_k.shape[0], None
    if prefix:
        longest = max((length for _, _, length in found), default=0)
        mask = torch.zeros(longest, prefix + longest, device=q.device).masked_fill_(_hidden(longest, prefix, q.device), _NEG_INF)
    parts = []
    for (_, count, length), queries, keys, values in zip(found, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
        keys, values = _with_prefix(keys, prefix_k, count, length), _with_prefix(values, prefix_v, count, length)
        queries = queries.view(count, length, -1, dim).transpose(1, 2)
        seen = None if mask is None else mask[:length, : prefix + length]
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, is_causal=mask is None, scale=scale, enable_gqa=grouped)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    if not parts:
        return (q * 0).to(dtype)  # no tokens, and still a part of the graph
    return (torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()).to(dtype)


def _grouped(x: Tensor, start: int, count: int, length: int, kv_heads: int) -> Tensor:
    """A run of a [T, H, ...] tensor by key-value head in fp32, [n, Hkv, rep, L, ...]."""
    x = x[start : start + count * length].unflatten(1, (kv_heads, -1)).unflatten(0, (count, length))
    return x.float().movedim(1, 3)


def _packed(x: Tensor) -> Tensor:
    """[n, Hkv, rep, L, ...] -> [n * L, H, ...]."""
    return x.movedim(3, 1).flatten(2, 3).flatten(0, 1)


def _scores(
    q: Tensor, k: Tensor, v: Tensor, scale: float, prefix_k: Tensor | None, prefix_v: Tensor | None, run: tuple[int, int, int]
) -> Iterator[Tensor]:
    """A run's queries [n, Hkv, rep, L, d], keys and values [n, Hkv, 1, P + L, d] and masked scores, in fp32."""
    queries = _grouped(q, *run, k.shape[1])
    start, count, length = run
    part = slice(start, start + count * length)
    keys, values = (_with_prefix(x[part], prefix, count, length).float().unsqueeze(2) for x, prefix in ((k, prefix_k), (v, prefix_v)))
    hidden = _hidden(length, keys.shape[3] - length, q.device)
    scores = (queries @ keys.transpose(-1, -2)).mul_(scale).masked_fill_(hidden, _NEG_INF)
    yield from (queries, keys, values, scores)


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float, prefix_k: Tensor | None, prefix_v: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(out [T, H, d], lse [T, H] fp32)."""
    tokens, heads, dim = q.shape
    out, lse = q.new_empty(tokens, heads, dim), q.new_empty(tokens, heads, dtype=torch.float32)
    for run in runs(cu_seqlens, tokens):
        _, _, values, scores = _scores(q, k, v, scale, prefix_k, prefix_v, run)
        part = slice(run[0], run[0] + run[1] * run[2])
        sums = scores.logsumexp(-1)
        lse[part] = _packed(sums)
        out[part] = _packed((scores - sums.unsqueeze(-1)).exp_() @ values).to(q.dtype)
    return out, lse


def backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    out: Tensor,
    lse: Tensor,
    prefix_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, prefix_k and prefix_v; the last two are empty unless `prefix_grad`."""
    kv_heads = k.shape[1]
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    prefix = 0 if prefix_k is None else prefix_k.shape[0]
    of_prefix = [torch.zeros(prefix, kv_heads, k.shape[2], device=k.device) for _ in range(2)]
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    for run in runs(cu_seqlens, q.shape[0]):
        queries, keys, values, scores = _scores(q, k, v, scale, prefix_k, prefix_v, run)
        g, o, sums, g_sums = (_grouped(x, *run, kv_heads) for x in (grad_out, out, lse, grad_lse))
        weights = (scores - sums.unsqueeze(-1)).exp_()
        slope = g @ values.transpose(-1, -2) - ((g * o).sum(-1) - g_sums).unsqueeze(-1)
        slope *= weights
        part = slice(run[0], run[0] + run[1] * run[2])
        grad_q[part] = _packed((slope @ keys).mul_(scale)).to(q.dtype)
        of_keys = (slope.transpose(-1, -2) @ queries).sum(2).mul_(scale)  # [n, Hkv, P + L, d]
        of_values = (weights.transpose(-1, -2) @ g).sum(2)
        for grad, shared, own in ((grad_k, of_prefix[0], of_keys), (grad_v, of_prefix[1], of_values)):
            grad[part] = own[:, :, prefix:].transpose(1, 2).flatten(0, 1).to(grad.dtype)
            shared += own[:, :, :prefix].sum(0).transpose(0, 1)
    if not prefix_grad:
        return grad_q, grad_k, grad_v, q.new_empty(0), q.new_empty(0)
    return grad_q, grad_k, grad_v, of_prefix[0].to(q.dtype), of_prefix[1].to(q.dtype)
