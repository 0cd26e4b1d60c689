"""One position of every row through the layers, in as few operations as it takes: of a small model their number is much of the cost."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from paras2s_cli.models.layers import Block, rotary, rotate
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.rollout.cache import SharedLayer


class Projections:
    """Every block's query, key and value weights side by side, so that one product makes all three. A copy, in memory that does not
    move; of Kimi-Audio's layers it is a fifteenth. Layers that are more than a product, as adapted ones are, are asked one by one."""

    def __init__(self, model: SpeechLM) -> None:
        self.weights = [torch.cat([x.weight.detach() for x in _parts(block)]) for block in _blocks(model)]
        self.biases = [torch.cat([x.bias.detach() for x in _parts(block)]) for block in _blocks(model)]

    def load(self, model: SpeechLM) -> None:
        """Takes over the model's weights as they are now."""
        for block, weight, bias in zip(_blocks(model), self.weights, self.biases, strict=True):
            torch.cat([x.weight for x in _parts(block)], out=weight)
            torch.cat([x.bias for x in _parts(block)], out=bias)


def _project(block: Block, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    parts = _parts(block)
    if all(type(part) is torch.nn.Linear for part in parts):
        return F.linear(x, weight, bias)
    return torch.cat([part(x) for part in parts], -1)


def _blocks(model: SpeechLM) -> list[Block]:
    return [*model.model.layers, *model.model.mimo_layers]


def _parts(block: Block) -> tuple[torch.nn.Linear, ...]:
    return block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj


def decode(
    model: SpeechLM, projections: Projections, x: Tensor, positions: Tensor, layers: Sequence[SharedLayer], writing: bool = True
) -> tuple[Tensor, Tensor]:
    """What `SpeechLM.hidden` computes, of one position a row.

    Args:
        x: [N, D] embeddings. positions: [N] int64. layers: what they look at and where they are stored, one a block.
        writing: False skips the text branch, and what stands for its hidden states means nothing.

    Returns:
        text, audio: [N, D] normed hidden states.
    """
    config = model.config
    cos, sin = (table[:, 0] for table in rotary(positions[:, None], config.head_dim, config.rope_theta))  # [N, 1, head_dim]
    blocks = list(zip(_blocks(model), projections.weights, projections.biases, layers, strict=True))
    fork, depth = config.shared_layers, config.num_hidden_layers
    for block in blocks[:fork]:
        x = _through(*block, x, cos, sin)
    text = audio = x
    for block in blocks[fork:depth] if writing else ():
        text = _through(*block, text, cos, sin)
    for block in blocks[depth:]:
        audio = _through(*block, audio, cos, sin)
    return model.model.norm(text), model.model.mimo_norm(audio)


def _through(block: Block, weight: Tensor, bias: Tensor, layer: SharedLayer, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    heads, kv = block.self_attn.heads, block.self_attn.kv_heads
    projected = _project(block, weight, bias, block.input_layernorm(x)).view(len(x), heads + 2 * kv, -1)
    q, k = rotate(projected[:, : heads + kv], cos, sin).split((heads, kv), 1)
    x = x + block.self_attn.o_proj(layer.attend(q, k, projected[:, heads + kv :]).flatten(1))
    return x + block.mlp(block.post_attention_layernorm(x))
