"""Kimi-Audio's forward pass written a second time, in float64 numpy: one row, position by position, no cache, no batch, no padding."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from paras2s_cli.models.speech_lm import SpeechLM, Streams


class NaiveLM:
    """Built from tensors and config fields under their published names; it calls none of the model's code."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], config: Any) -> None:
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.w = {name: tensor.detach().double().numpy() for name, tensor in tensors.items()}

    @classmethod
    def of(cls, model: SpeechLM) -> NaiveLM:
        return cls(model.state_dict(), model.config)

    @classmethod
    def read(cls, folder: Path) -> NaiveLM:
        """From the files of a published checkpoint: every shard whole, whatever the index says."""
        tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        return cls(tensors, SimpleNamespace(**json.loads((folder / "config.json").read_text())))

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.w[f"{name}.weight"] @ x + self.w.get(f"{name}.bias", 0.0)

    def rms(self, name: str, x: np.ndarray) -> np.ndarray:
        return x / math.sqrt(float(np.mean(x * x)) + self.config.rms_norm_eps) * self.w[f"{name}.weight"]

    def convolve(self, name: str, x: np.ndarray) -> np.ndarray:
        """[T, in] -> [T / 2, out]: width 5, stride 2, two zeros at either end, GELU."""
        weight, bias = self.w[f"encoder.{name}.weight"], self.w[f"encoder.{name}.bias"]
        rows = []
        for centre in range(0, len(x), 2):
            y = bias.copy()
            for tap in range(5):
                if 0 <= centre + tap - 2 < len(x):
                    y = y + weight[:, :, tap] @ x[centre + tap - 2]
            rows.append([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in y])
        return np.array(rows)

    def adapt(self, x: np.ndarray) -> np.ndarray:
        x = self.linear("model.vq_adaptor.layers.0", x)
        x = self.linear("model.vq_adaptor.layers.3", x / (1 + np.exp(-x)))
        # Kimi-Audio's norm has the eps of the others; small models, which bring an encoder, have that of LayerNorm
        eps = 1e-5 if "encoder.down.weight" in self.w else self.config.rms_norm_eps
        x = (x - x.mean()) / math.sqrt(float(x.var()) + eps)
        return x * self.w["model.vq_adaptor.layers.4.weight"] + self.w["model.vq_adaptor.layers.4.bias"]

    def turn(self, x: np.ndarray, position: int) -> np.ndarray:
        """Half-rotation RoPE of one head: number i pairs with number i + d/2."""
        half, out = len(x) // 2, x.copy()
        for i in range(half):
            angle = position * self.config.rope_theta ** (-2 * i / len(x))
            a, b = x[i], x[i + half]
            out[i], out[i + half] = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
        return out

    def layer(self, name: str, xs: list[np.ndarray]) -> list[np.ndarray]:
        c = self.config
        d, group = self.head_dim, c.num_attention_heads // c.num_key_value_heads
        normed = [self.rms(f"{name}.input_layernorm", x) for x in xs]
        q, k, v = ([self.linear(f"{name}.self_attn.{p}_proj", x).reshape(-1, d) for x in normed] for p in "qkv")
        out = []
        for t, x in enumerate(xs):
            heads = []
            for h in range(c.num_attention_heads):
                query = self.turn(q[t][h], t)
                scores = np.array([query @ self.turn(k[s][h // group], s) / math.sqrt(d) for s in range(t + 1)])
                weights = np.exp(scores - scores.max())
                heads.append(sum(p * v[s][h // group] for s, p in enumerate(weights / weights.sum())))
            x = x + self.linear(f"{name}.self_attn.o_proj", np.concatenate(heads))
            y = self.rms(f"{name}.post_attention_layernorm", x)
            gate = self.linear(f"{name}.mlp.gate_proj", y)
            out.append(x + self.linear(f"{name}.mlp.down_proj", gate / (1 + np.exp(-gate)) * self.linear(f"{name}.mlp.up_proj", y)))
        return out

    def logits(self, audio: list[int], text: list[int], continuous: list[bool], frames: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Text and audio logits [T, vocab] of the full vocabulary; frames [4 * continuous positions, F]."""
        c, table = self.config, self.w["model.embed_tokens.weight"]
        if "encoder.down.weight" in self.w and frames is not None:
            heard = iter(self.convolve("mix", self.convolve("down", frames)))
        else:
            heard = iter(()) if frames is None else iter(frames.reshape(sum(continuous), -1))
        xs = []
        for a, t, sounds in zip(audio, text, continuous, strict=True):
            x = table[a]
            if sounds:
                x = (x + self.adapt(next(heard))) * math.sqrt(2)
            xs.append(x + table[t])
        fork = c.kimia_mimo_transformer_from_layer_index + 1
        for i in range(fork):
            xs = self.layer(f"model.layers.{i}", xs)
        words, sounds_ = xs, xs
        for i in range(fork, c.num_hidden_layers):
            words = self.layer(f"model.layers.{i}", words)
        for i in range(c.kimia_mimo_layers):
            sounds_ = self.layer(f"model.mimo_layers.{i}", sounds_)
        return (
            np.array([self.linear("lm_head", self.rms("model.norm", x)) for x in words]),
            np.array([self.linear("mimo_output", self.rms("model.mimo_norm", x)) for x in sounds_]),
        )

    def row(self, streams: Streams, i: int) -> tuple[np.ndarray, np.ndarray]:
        """`logits` of row i of a batch, its padding cut away."""
        keep = streams.valid[i]
        continuous = streams.continuous[i][keep].tolist()
        frames = None if streams.features is None else streams.features[i].double().flatten(0, 1).numpy()[: 4 * sum(continuous)]
        return self.logits(streams.audio[i][keep].tolist(), streams.text[i][keep].tolist(), continuous, frames)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def legal(model: SpeechLM, text: np.ndarray, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Full logits cut to the ids that each stream may take, audio in the order: codes, media_end, msg_end."""
    offset, s = model.config.kimia_token_offset, model.specials
    return text[..., :offset], audio[..., [*range(offset, model.config.vocab_size), s.media_end, s.msg_end]]


def as_tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))
