"""The speech tokenizer: 16 kHz speech to audio codes, 12.5 a second. GLM-4-Voice's (arXiv 2412.02612), which is Kimi-Audio's too: the lower
half of a Whisper encoder made causal, pooled, and the nearest row of a codebook."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paras2s_cli.errors import UsageError
from paras2s_cli.models.log_mel import HOP, chunks_of, log_mel
from paras2s_cli.models.weights import read_weights

BATCH = 16
"""Chunks that are encoded at a time."""
_ONLY: dict[str, Any] = {
    "architectures": ["WhisperVQEncoder"],
    "activation_function": "gelu",
    "encoder_causal_attention": False,
    "encoder_causal_convolution": True,
    "pooling_type": "avg",
    "quantize_causal_encoder": False,
    "quantize_encoder_only": True,
    "scale_embedding": False,
}
"""What a config may say of things that there is one way of here."""


@dataclass(frozen=True, slots=True)
class SpeechTokenizerConfig:
    """The fields of config.json that shape the encoder, under their own names.

    It has `quantize_position` layers; `quantize_causal_block_size` counts 20 ms frames, `pooling_kernel_size` those of a code.
    """

    d_model: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    max_source_positions: int
    num_mel_bins: int
    pooling_kernel_size: int
    pooling_position: int
    quantize_causal_block_size: int
    quantize_position: int
    quantize_vocab_size: int

    @property
    def samples(self) -> int:
        """Samples of a code."""
        return 2 * HOP * self.pooling_kernel_size

    @classmethod
    def load(cls, path: Path) -> "SpeechTokenizerConfig":
        """Reads config.json. Raises UsageError when it is missing, lacks a field or is another model's."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            wrong = [key for key, only in _ONLY.items() if found.get(key, only) != only]
            values = {f.name: found.get(f.name) for f in fields(cls)}
        except (OSError, ValueError, AttributeError) as error:
            raise UsageError(f"{path}: not the config of a speech tokenizer ({error})") from error
        for key in wrong:
            raise UsageError(f"{path}: {key} is {json.dumps(found[key])}, the config of another model: ours has {json.dumps(_ONLY[key])}")
        for key, value in values.items():
            if type(value) is not int or value < 1:
                raise UsageError(f"{path}: not the config of a speech tokenizer ({key} is {json.dumps(value)}, no positive number)")
        config = cls(**values)
        if config.pooling_position != config.quantize_position or config.d_model % config.encoder_attention_heads:
            raise UsageError(f"{path}: the config of another model: ours pools where it quantizes, and its heads divide d_model")
        return config


class Attention(nn.Module):
    """Whisper's: q, v and the output with bias, k without."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.heads = config.encoder_attention_heads
        self.q_proj, self.v_proj, self.out_proj = (nn.Linear(config.d_model, config.d_model) for _ in range(3))
        self.k_proj = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        # x: [B, T, D]; mask: [B, 1, T, T] bool, True where a frame may look
        b, t, d = x.shape
        q, k, v = (p(x).view(b, t, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, t, d))


class Layer(nn.Module):
    """One pre-norm encoder layer."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class SpeechTokenizer(nn.Module):
    """Speech to codes, under the names of the published checkpoint."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.d_model, 3)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, 3, stride=2)
        self.embed_positions = nn.Embedding(config.max_source_positions, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.quantize_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, config.d_model)

    @torch.no_grad()
    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes of utterances, the same whatever they are encoded beside.

        Args:
            waves: [T] float32 each, 16 kHz, not empty.

        Returns:
            [ceil(T / 1280)] int64 each. Every 30 s are encoded by themselves.
        """
        config = self.config
        return chunks_of(waves, config.max_source_positions * 2 * HOP, BATCH, self._encode_chunks)

    def _encode_chunks(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The same of chunks that fit the positions there are."""
        weight = self.conv1.weight
        tables = [log_mel(wave, self.config.num_mel_bins, -(-len(wave) // self.config.samples) * self.config.samples) for wave in waves]
        # frames past a chunk's end may hold anything: convolutions look back, and attention does not look at them
        mel = torch.zeros(len(tables), self.config.num_mel_bins, max(t.shape[1] for t in tables))
        for row, table in zip(mel, tables, strict=True):
            row[:, : table.shape[1]] = torch.from_numpy(table)
        samples = torch.tensor([len(wave) for wave in waves])
        pooled = self.pooled(mel.to(weight.device, weight.dtype), (-(-samples // (2 * HOP))).to(weight.device))
        codes = self.nearest(pooled).cpu().numpy()
        return [row[: -(-len(wave) // self.config.samples)] for row, wave in zip(codes, waves, strict=True)]

    def pooled(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states of codes before they are quantized.

        Args:
            mel: [B, num_mel_bins, M], 100 frames a second, M a multiple of 2 * pooling_kernel_size. lengths: [B] int64, frames of 20 ms
                in which there is speech: the others are not looked at, but are part of the mean if they are in the last code.

        Returns:
            [B, M / 2 / pooling_kernel_size, d_model].
        """
        x = F.gelu(self.conv1(F.pad(mel, (2, 0))))
        x = F.gelu(self.conv2(F.pad(x, (2, 0)))).transpose(1, 2)  # [B, M / 2, D]
        b, t, d = x.shape
        x = x + self.embed_positions.weight[:t]
        place = torch.arange(t, device=x.device)
        block = place // self.config.quantize_causal_block_size
        mask = (block[:, None] >= block[None, :]) & (place < lengths[:, None])[:, None, None]  # [B, 1, T, T]
        for layer in self.layers:
            x = layer(x, mask)
        return x.view(b, -1, self.config.pooling_kernel_size, d).mean(2)

    def nearest(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [...] int64, the codebook row of least squared distance."""
        rows = self.codebook.weight
        return (rows.square().sum(1) - 2 * x @ rows.T).argmin(-1)


def load_speech_tokenizer(folder: Path, device: torch.device | str = "cpu") -> SpeechTokenizer:
    """Reads config.json and model.safetensors as they are published.

    Raises:
        UsageError: a file is missing, damaged or another model's, or tensors do not fit (all are named).
    """
    config = SpeechTokenizerConfig.load(folder / "config.json")
    with torch.device("meta"):
        model = SpeechTokenizer(config)
    read_weights(folder, model, device, lambda name: False, _is_of_training)
    return model.eval().requires_grad_(False)


def _is_of_training(name: str) -> bool:
    """Running means of the codebook, and the positions that were added to what was quantized."""
    return name in ("ema_count", "ema_weight", "embed_positions2.weight")
