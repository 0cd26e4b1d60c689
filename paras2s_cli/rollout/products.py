"""A model's products of one position a row: as its layers compute them, or packed for the CPU."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paras2s_cli.models.layers import Block, rotary, rotate
from paras2s_cli.models.speech_lm import SpeechLM


class BlockProducts(Protocol):
    """What a block computes but for its attention."""

    def heads(self, x: Tensor, turns: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, heads, head_dim], keys and values [N, kv_heads, head_dim] of the normed x [N, D], queries and keys rotated by
        `Products.turns` of their positions."""
        ...

    def attended(self, out: Tensor, x: Tensor) -> Tensor:
        """x [N, D] and what it looked at, [N, heads, head_dim], brought to its width."""
        ...

    def fed(self, x: Tensor) -> Tensor:
        """x [N, D] and the normed x through the feed-forward network."""
        ...


class Products(Protocol):
    """All blocks, and from the last to the logits. order: that of a head's numbers in queries and keys, [head_dim] int64; None is the
    model's own."""

    @property
    def blocks(self) -> Sequence[BlockProducts]: ...

    @property
    def order(self) -> Tensor | None: ...

    def turns(self, positions: Tensor) -> Any:
        """What `heads` rotates by, of positions [N] int64."""
        ...

    def text_logits(self, x: Tensor) -> Tensor:
        """[N, D], not yet normed -> [N, V], columns as in `SpeechLM.text_logits`."""
        ...

    def audio_logits(self, x: Tensor) -> Tensor:
        """[N, D], not yet normed -> [N, codes + 2], columns as in `SpeechLM.audio_ids`."""
        ...


def products(model: SpeechLM, rows: int, places: int, known: "AsTheyAre | None") -> Products:
    """A model's, with its weights as they are now, for steps of about so many rows at positions below `places`. Packing takes about as
    long as two steps, and is done by device and dtype: it is not among what PARAS2S_KERNELS chooses.

    Args:
        known: the last ones that `reusable` gave, of the same model and places: copies that CUDA graphs have recorded stay where they are.
    """
    weight = model.lm_head.weight
    plain = all(type(layer) is nn.Linear for block in model.blocks() for layer in _linears(block))
    if plain and weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return Packed(model, rows, places)
    if known is None:
        return AsTheyAre(model, places)
    known.load(model)
    return known


def reusable(known: Products | None) -> "AsTheyAre | None":
    """What of the last products the next can take over; packed ones are made anew, and nothing should hold them then."""
    return known if isinstance(known, AsTheyAre) else None


class AsTheyAre:
    """The model's own layers, but for copies of what is read in one piece: query, key and value weights side by side, and the audio head's
    legal rows. They do not move; of Kimi-Audio's layers they are a fifteenth."""

    order = None

    def __init__(self, model: SpeechLM, places: int) -> None:
        self.blocks = [SideBySide(block) for block in model.blocks()]
        self.table = torch.stack(_rotary(model, places))
        self.norms = model.model.norm, model.model.mimo_norm
        self.text_head, self.audio_head = model.text_head.detach(), model.audio_head.detach()

    def load(self, model: SpeechLM) -> None:
        """Takes over the model's weights as they are now."""
        for block in self.blocks:
            block.load()
        self.text_head = model.text_head.detach()
        self.audio_head.copy_(model.audio_head)

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.table[:, positions]
        return cos, sin

    def text_logits(self, x: Tensor) -> Tensor:
        return F.linear(self.norms[0](x), self.text_head)

    def audio_logits(self, x: Tensor) -> Tensor:
        return F.linear(self.norms[1](x), self.audio_head)


class SideBySide:
    """A block's own layers, but for one product that makes queries, keys and values. Layers that are more than a product, as adapted ones
    are, are asked one by one."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.weight = torch.cat([x.weight.detach() for x in _parts(block)])
        self.bias = torch.cat([x.bias.detach() for x in _parts(block)])

    def load(self) -> None:
        """Takes over the block's weights as they are now."""
        torch.cat([x.weight for x in _parts(self.block)], out=self.weight)
        torch.cat([x.bias for x in _parts(self.block)], out=self.bias)

    def heads(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x, parts, attention = self.block.input_layernorm(x), _parts(self.block), self.block.self_attn
        plain = all(type(part) is nn.Linear for part in parts)
        projected = F.linear(x, self.weight, self.bias) if plain else torch.cat([part(x) for part in parts], -1)
        projected = projected.view(len(x), -1, attention.head_dim)
        turning = attention.heads + attention.kv_heads
        q, k = rotate(projected[:, :turning], *turns).split((attention.heads, attention.kv_heads), 1)
        return q, k, projected[:, turning:]

    def attended(self, out: Tensor, x: Tensor) -> Tensor:
        return x + self.block.self_attn.o_proj(out.flatten(1))

    def fed(self, x: Tensor) -> Tensor:
        return x + self.block.mlp(self.block.post_attention_layernorm(x))


class Packed:
    """Copies of all weights, in the order in which oneDNN reads them, with those of RMS norms inside. The two numbers that RoPE turns
    together stand together: one complex product turns them.

    torch gives fp32 products to MKL, which takes a third longer here: 64 rows of 192, two threads, small operations in between.
    """

    def __init__(self, model: SpeechLM, rows: int, places: int) -> None:
        half = model.config.head_dim // 2
        self.order = torch.arange(2 * half, device="cpu").view(2, half).T.flatten()
        cos, sin = _rotary(model, places)
        self.table = torch.complex(cos[..., :half], sin[..., half:])
        self.blocks = [PackedBlock(block, rows, self.order) for block in model.blocks()]
        self.text, self.audio = Directions(model.model.norm), Directions(model.model.mimo_norm)
        self.text_head, self.audio_head = _pack(self.text.into(model.text_head), rows), _pack(self.audio.into(model.audio_head), rows)

    def turns(self, positions: Tensor) -> Tensor:
        return self.table[positions]

    def text_logits(self, x: Tensor) -> Tensor:
        return _product(self.text(x), self.text_head)

    def audio_logits(self, x: Tensor) -> Tensor:
        return _product(self.audio(x), self.audio_head)


class PackedBlock:
    """One block of `Packed`."""

    def __init__(self, block: Block, rows: int, order: Tensor) -> None:
        attention, mlp = block.self_attn, block.mlp
        heads, kv, dim = self.shape = attention.heads, attention.kv_heads, attention.head_dim
        places = torch.arange((heads + 2 * kv) * dim, device="cpu").view(-1, dim)
        places[: heads + kv] = places[: heads + kv, order]
        places = places.flatten()
        self.looking, self.feeding = Directions(block.input_layernorm), Directions(block.post_attention_layernorm)
        self.qkv = _pack(self.looking.into(torch.cat([x.weight for x in _parts(block)])[places]), rows)
        self.bias = torch.cat([x.bias for x in _parts(block)])[places]
        self.out, self.down = _pack(attention.o_proj.weight, rows), _pack(mlp.down_proj.weight, rows)
        self.gate, self.up = (_pack(self.feeding.into(x.weight), rows) for x in (mlp.gate_proj, mlp.up_proj))

    def heads(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads, kv, dim = self.shape
        pairs = _product(self.looking(x), self.qkv, self.bias).view(len(x), heads + 2 * kv, dim // 2, 2)
        looking, values = pairs.split((heads + kv, kv), 1)
        q, k = torch.view_as_real(torch.view_as_complex(looking) * turns).flatten(2).split((heads, kv), 1)
        return q, k, values.flatten(2)

    def attended(self, out: Tensor, x: Tensor) -> Tensor:
        # oneDNN can add x itself, and takes five times as long for that
        return _product(out.flatten(1), self.out).add_(x)

    def fed(self, x: Tensor) -> Tensor:
        direction = self.feeding(x)
        gated = _product(direction, self.up).mul_(_product(direction, self.gate, None, "swish"))
        return _product(gated, self.down).add_(x)


class Directions:
    """An RMS norm with all that does not depend on x left to the weights behind it:
    x / sqrt(mean(x^2) + eps) w = x / hypot(|x|, sqrt(D eps)) sqrt(D) w. Three operations, not seven."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        width = norm.weight.shape[0]
        eps = torch.finfo(norm.weight.dtype).eps if norm.eps is None else norm.eps
        self.floor = norm.weight.new_tensor(math.sqrt(width * eps))
        self.scale = math.sqrt(width) * norm.weight.detach()

    def into(self, weight: Tensor) -> Tensor:
        """Weights [*, D] that are to be multiplied with the normed x -> those for what this returns."""
        return weight * self.scale

    def __call__(self, x: Tensor) -> Tensor:
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor)


def _pack(weight: Tensor, rows: int) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    # by its one overload: to find that takes a third of what a small product does
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, activation, [], "")
    return out


def _rotary(model: SpeechLM, places: int) -> tuple[Tensor, Tensor]:
    config, positions = model.config, torch.arange(places, device=model.lm_head.weight.device)
    cos, sin = rotary(positions[:, None], config.head_dim, config.rope_theta)
    return cos[:, 0], sin[:, 0]


def _parts(block: Block) -> tuple[nn.Linear, ...]:
    return block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj


def _linears(block: Block) -> tuple[nn.Linear, ...]:
    return *_parts(block), block.self_attn.o_proj, block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj
