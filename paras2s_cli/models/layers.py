"""The blocks of a Qwen2-style decoder: RMS norm, rotary positions, grouped-query attention, SwiGLU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paras2s_cli.models.attention import attend
from paras2s_cli.models.cache import KeyValues, Prefix
from paras2s_cli.models.config import SpeechLMConfig


def rotary_rates(head_dim: int, theta: float, device: torch.device | str = "cpu") -> Tensor:
    """What a position turns each pair of numbers by, in radians: [head_dim / 2] fp32."""
    return theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of half-rotation RoPE (Su et al. 2021): positions [B, T] -> two [B, 1, T, head_dim]."""
    angles = positions[:, None, :, None].float() * rotary_rates(head_dim, theta, positions.device)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on x [B, H, T, head_dim]; cos and sin as from `rotary`."""
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention; q, k, v with bias, o without."""

    def __init__(self, config: SpeechLMConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KeyValues | None) -> Tensor:
        # x: [B, T, D]; mask: [B, 1, T, S] bool, True where a query may look
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = attend(q, k, v, mask) if cache is None else cache.attend(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: SpeechLMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm decoder layer.

    checkpointing: nothing within it is kept for the backward, but computed again (gradient checkpointing, Chen et al. 2016); what a
    `Prefix` takes in is kept.
    """

    checkpointing = False

    def __init__(self, config: SpeechLMConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KeyValues | None = None, last: bool = False) -> Tensor:
        """x [B, T, D] -> [B, T, D]; `last` is for the last position alone, [B, 1, D]; the cache takes in all."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return self._compute(x, cos, sin, mask, cache, last)
        assert cache is None or isinstance(cache, Prefix)

        def compute(x: Tensor, keys: Tensor | None, values: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
            # a prefix of its own each time: the second time must find it as the first did
            seen = Prefix(keys, values)
            return self._compute(x, cos, sin, mask, seen, last), seen.keys, seen.values

        known = cache or Prefix()
        x, known.keys, known.values = checkpoint(compute, x, known.keys, known.values, use_reentrant=False)
        return x

    def _compute(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KeyValues | None, last: bool) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        x = x[:, -1:] if last else x
        return x + self.mlp(self.post_attention_layernorm(x))
