"""Attention under a mask, with gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v under a mask: q [B, H, T, d], k and v [B, kv_heads, S, d], mask [B, 1, T, S] bool -> [B, H, T, d]."""
    if q.device.type != "cpu" or (q.shape[2] > 128 and not torch.is_grad_enabled()):
        return fused(q, k, v, mask)
    # The CPU's fused kernel takes eight times as long backward in bf16 as two products and a softmax (64 x 6 x 77 x 77).
    b, heads, t, d = q.shape
    kv, s = k.shape[1], k.shape[2]
    scores = (q.reshape(b, kv, heads // kv * t, d) * d**-0.5) @ k.transpose(-1, -2)
    scores = scores.view(b, kv, heads // kv, t, s).masked_fill(~mask[:, :, None], torch.finfo(scores.dtype).min)
    return (scores.softmax(-1).to(v.dtype).view(b, kv, heads // kv * t, s) @ v).view(b, heads, t, d)


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The same by torch's memory-efficient kernels, without [B, H, T, S] scores. That of GPUs takes a mask but no grouped heads: asked for
    both, torch falls back to products that keep the scores for the backward."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
