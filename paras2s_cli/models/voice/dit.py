"""The diffusion transformer (DiT, arXiv 2212.09748) that says where a noisy mel spectrogram of given codes should go.

Every frame sees every other, and the frames of earlier chunks by the keys and values that they left.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paras2s_cli.models.layers import rotary_rates
from paras2s_cli.models.voice.config import DiTConfig

Past = list[tuple[Tensor, Tensor]]
"""One layer's keys and values each, [B, H, S, head_dim]."""
_TIME_SIZE = 256


class Attention(nn.Module):
    """Full attention with rotary positions, adjacent numbers as pairs."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        # x: [B, T, D] -> the same, and keys and values of all S frames so far
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, head_dim] each
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2)), (k, v)


class MLP(nn.Module):
    """Two layers and GELU's tanh form."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        inner = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, inner)
        self.fc2 = nn.Linear(inner, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP; time and code shift, scale and gate what goes in and out of them (adaLN-Zero)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.hidden_size, 6 * config.hidden_size))

    def forward(
        self, x: Tensor, condition: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(condition).chunk(6, -1)
        attended, seen = self.attn(modulated(x, shift, scale), cos, sin, past)
        x = x + gate * attended
        return x + mlp_gate * self.mlp(modulated(x, mlp_shift, mlp_scale)), seen


class FinalLayer(nn.Module):
    """From the width of the blocks to mel bins."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.input_size)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.hidden_size, 2 * config.hidden_size))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.linear(modulated(x, *self.adaLN_modulation(condition).chunk(2, -1)))


class TimeEmbedder(nn.Module):
    """A moment of the flow as a vector of the blocks' width."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_SIZE, config.hidden_size), nn.SiLU(), nn.Linear(config.hidden_size, config.hidden_size))

    def forward(self, time: int) -> Tensor:
        weight = next(self.parameters())
        half = _TIME_SIZE // 2
        angles = time * torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=weight.device))
        return self.mlp(torch.cat([angles.cos(), angles.sin()]).to(weight.dtype))


class DiT(nn.Module):
    """Under the names of the published checkpoint, whose embedding has one row more than codes, for no code at all."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.t_embedder = TimeEmbedder(config)
        self.semantic_token_embedding = nn.Embedding(config.semantic_vocab_size + 1, config.hidden_size)
        self.input_linear = nn.Linear(config.input_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    def forward(self, x: Tensor, codes: Tensor, time: int, start: int, past: Past | None) -> tuple[Tensor, Past]:
        """The velocity of a mel spectrogram on its way from noise (time 0) to speech (time 1000).

        Args:
            x: [B, T, input_size], normalised. codes: [B, T] int64, of each frame. start: the first frame's position.
            past: what earlier chunks left; None at the beginning.

        Returns:
            [B, T, input_size], and the past of a chunk that follows this.
        """
        rope = self.config.rope_params
        positions = torch.arange(start, start + x.shape[1], device=x.device) / rope.rope_interpolation_factor
        angles = positions[:, None] * rotary_rates(self.config.head_dim, rope.rope_base, x.device)
        cos, sin = angles.cos(), angles.sin()
        condition = self.t_embedder(time) + self.semantic_token_embedding(codes)
        x, seen = self.input_linear(x), []
        for i, block in enumerate(self.blocks):
            x, keys_values = block(x, condition, cos, sin, None if past is None else past[i])
            seen.append(keys_values)
        return self.final_layer(x, condition), seen


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights of its own, then scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on pairs of adjacent numbers: x [B, H, T, head_dim], cos and sin [T, head_dim / 2]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
