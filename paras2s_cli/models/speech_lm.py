"""The speech LM: one trunk, two branches, two streams (Kimi-Audio's architecture, arXiv 2504.18425, at any size)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paras2s_cli.models.cache import KeyValues
from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.hearing import Hearing
from paras2s_cli.models.layers import Block, rotary
from paras2s_cli.models.tokenizer import Specials
from paras2s_cli.models.weights import Layout

Result = TypeVar("Result")


@dataclass
class Streams:
    """Two aligned streams of ids, left-padded.

    audio, text: [B, T] int64, ids of the full vocabulary. valid: [B, T] bool, False on padding. continuous: [B, T] bool, True where
    the adaptor's features are added. features: [B, C, 4, F] float, 20 ms frames of the C continuous positions of a row, in order
    (rows with fewer are padded at the end), or None; F is `SpeechLMConfig.frame_features`.
    """

    audio: Tensor
    text: Tensor
    valid: Tensor
    continuous: Tensor
    features: Tensor | None

    def repeat(self, group: int) -> "Streams":
        """Every row `group` times, side by side."""
        return self._each(lambda t: t.repeat_interleave(group, dim=0))

    def select(self, rows: Tensor | slice) -> "Streams":
        """Some rows, in the given order."""
        return self._each(lambda t: t[rows])

    def to(self, device: torch.device | str) -> "Streams":
        """The same on another device."""
        return self._each(lambda t: t.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Streams":
        features = None if self.features is None else change(self.features)
        return Streams(change(self.audio), change(self.text), change(self.valid), change(self.continuous), features)


class Adaptor(nn.Module):
    """Brings continuous features to the width of the embeddings."""

    def __init__(self, config: SpeechLMConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.layers = nn.Sequential(
            nn.Linear(config.kimia_adaptor_input_dim, size),
            nn.SiLU(),
            nn.Dropout(0.0),
            nn.Linear(size, size),
            nn.LayerNorm(size, eps=config.adaptor_norm_eps),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Encoder(nn.Module):
    """Frames of 20 ms to features of 80 ms, by two strided convolutions. Small models bring it along; large ones bring Whisper."""

    def __init__(self, config: SpeechLMConfig) -> None:
        super().__init__()
        width = config.kimia_adaptor_input_dim
        self.down = nn.Conv1d(config.encoder_features, width, 5, stride=2, padding=2)
        self.mix = nn.Conv1d(width, width, 5, stride=2, padding=2)

    def forward(self, frames: Tensor, counts: Tensor) -> Tensor:
        # frames: [B, C, 4, F], zero past the counts [B] of positions that a row has -> [B, C, width]
        b, c, four, f = frames.shape
        x = frames.reshape(b, c * four, f).transpose(1, 2)
        x = F.gelu(self.down(x))
        # past its end a row is silent to the second convolution too, as it is when it has no padding
        x = x * (torch.arange(2 * c, device=x.device)[None, None, :] < 2 * counts[:, None, None])
        return F.gelu(self.mix(x)).transpose(1, 2)


class Trunk(nn.Module):
    """All layers but the heads, under the names of the published checkpoint."""

    def __init__(self, config: SpeechLMConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.mimo_layers = nn.ModuleList(Block(config) for _ in range(config.kimia_mimo_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mimo_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.vq_adaptor = Adaptor(config)


class SpeechLM(nn.Module):
    """Both streams in, both streams' logits out.

    The heads return logits over the legal ids of their stream only: text below `kimia_token_offset`; audio codes and the two end
    tokens (`audio_ids` maps a column of audio logits to its id).
    """

    audio_ids: Tensor
    layout: Layout | None = None
    """The files that the weights were read from, if they were."""
    name_or_path: str = ""
    """The folder that the model was read from; peft knows it under this name."""
    hearing: Hearing | None = None
    """What the features and codes of its prompts come from; None for a model with its own encoder."""

    def __init__(self, config: SpeechLMConfig, specials: Specials) -> None:
        super().__init__()
        self.config, self.specials = config, specials
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mimo_output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.encoder = Encoder(config) if config.encoder_features else None
        # on the CPU even where parameters are made without memory
        codes = torch.arange(config.kimia_token_offset, config.vocab_size, device="cpu")
        ends = torch.tensor([specials.media_end, specials.msg_end], device="cpu")
        self.register_buffer("audio_ids", torch.cat([codes, ends]), persistent=False)

    def initialise(self, seed: int) -> None:
        """Weights of a model that is trained from nothing: normal of deviation 1 / sqrt(fan in), embeddings of 0.5, the size of
        what the adaptor and the layers add to them (with 0.02 a small model takes twice the steps to let sound follow text)."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            with torch.no_grad():
                if weight.dim() == 1:
                    weight.fill_(0.0 if name.endswith("bias") else 1.0)
                elif "embed" in name:
                    weight.normal_(0, 0.5, generator=generator)
                else:
                    deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                    scale = 1 / math.sqrt(weight[0].numel()) / (math.sqrt(2 * len(self.model.layers)) if deep else 1)
                    weight.normal_(0, scale, generator=generator)

    def forward(self, work: Callable[..., Result], *given: Any) -> Result:
        """`work(self, *given)`. Weights that several processes hold in parts (see `train.shards`) are whole for work that is given here,
        and here only."""
        return work(self, *given)

    def checkpoint_blocks(self, on: bool) -> None:
        """Whether layers keep what is within them for the backward, or compute it again: less memory for a third more time."""
        for block in self.blocks():
            block.checkpointing = on

    def blocks(self) -> list[Block]:
        """All layers of both branches."""
        return [*self.model.layers, *self.model.mimo_layers]

    def embed(self, streams: Streams) -> Tensor:
        """Embeddings [B, T, D] of both streams added; where continuous, (E[audio] + adaptor(features)) * sqrt(2) + E[text]."""
        x = self.model.embed_tokens(streams.audio)
        if streams.features is not None:
            counts = streams.continuous.sum(1)
            features = streams.features.to(x.dtype)
            encoded = self.encoder(features, counts) if self.encoder is not None else features.flatten(2)
            adapted = self.model.vq_adaptor(encoded)  # [B, C, D]
            used = torch.arange(adapted.shape[1], device=x.device)[None, :] < counts[:, None]
            spread = torch.zeros_like(x, dtype=adapted.dtype).masked_scatter(streams.continuous[..., None], adapted[used])
            x = torch.where(streams.continuous[..., None], (x + spread) * math.sqrt(2), x)
        return x + self.model.embed_tokens(streams.text)

    def shared(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """The layers before the streams part: x [B, T, D] -> [B, T, D]."""
        cos, sin = rotary(positions, self.config.head_dim, self.config.rope_theta)
        for layer in self.model.layers[: self.config.shared_layers]:
            x = layer(x, cos, sin, mask)
        return x

    def hidden(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor,
        caches: Sequence[KeyValues] | None = None,
        last: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Normed hidden states of both branches.

        Args:
            x: [B, T, D] embeddings. positions: [B, T] int64. mask: [B, 1, T, S] bool, True where a query may look.
            caches: one a layer: shared, text branch, audio branch; S counts what they hold.
            last: for the last position alone: a branch's last layer computes no other beyond its attention.

        Returns:
            text, audio: [B, T, D] each, or [B, 1, D].
        """
        cos, sin = rotary(positions, self.config.head_dim, self.config.rope_theta)
        known: Sequence[KeyValues | None] = caches or [None] * (len(self.model.layers) + len(self.model.mimo_layers))
        fork, depth = self.config.shared_layers, self.config.num_hidden_layers
        for layer, cache in zip(self.model.layers[:fork], known[:fork], strict=True):
            x = layer(x, cos, sin, mask, cache)
        text = audio = x
        for i, (layer, cache) in enumerate(zip(self.model.layers[fork:], known[fork:depth], strict=True), fork + 1):
            text = layer(text, cos, sin, mask, cache, last and i == depth)
        for i, (layer, cache) in enumerate(zip(self.model.mimo_layers, known[depth:], strict=True), depth + 1):
            audio = layer(audio, cos, sin, mask, cache, last and i == len(known))
        if last:
            text, audio = text[:, -1:], audio[:, -1:]
        return self.model.norm(text), self.model.mimo_norm(audio)

    @property
    def text_head(self) -> Tensor:
        """Rows of the legal text ids: [kimia_token_offset, D]."""
        return self.lm_head.weight[: self.config.kimia_token_offset]

    @property
    def audio_head(self) -> Tensor:
        """Rows of the legal audio ids, gathered: [codes + 2, D] as in `audio_ids`."""
        return self.mimo_output.weight[self.audio_ids]

    def text_logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., kimia_token_offset]."""
        return F.linear(hidden, self.text_head)

    def audio_logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., codes + 2], columns as in `audio_ids`."""
        return F.linear(hidden, self.audio_head)

    def audio_column(self, ids: Tensor) -> Tensor:
        """Columns of audio ids: codes come first, then media_end, then msg_end. Other ids give column 0."""
        columns = (ids - self.config.kimia_token_offset).clamp(min=0)
        columns = torch.where(ids == self.specials.media_end, self.config.codes, columns)
        return torch.where(ids == self.specials.msg_end, self.config.codes + 1, columns)


def causal(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [B, T] and mask [B, 1, T, T] of left-padded rows; padding sees itself only, so that no row is empty."""
    t = valid.shape[1]
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)
    look = torch.ones(t, t, dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(t, dtype=torch.bool, device=valid.device)
    return positions, ((look & valid[:, None, :]) | itself)[:, None]
