"""Whisper's encoder and the speech tokenizer written a second time, in float64 numpy: one chunk, frame by frame, no batch, no padding."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from safetensors.torch import load_file


def log_mel(wave: np.ndarray, bands: int = 128) -> np.ndarray:
    """[T] at 16 kHz -> [T / 160, bands]: 25 ms Hann windows with mirrored ends, Slaney's mel scale and areas, 8 decades at most."""
    mirrored = np.concatenate([wave[200:0:-1], wave, wave[-2:-202:-1]]).astype(np.float64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    turn = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)

    top = 15 + 27 * math.log(8) / math.log(6.4)
    edges = [hertz(top * i / (bands + 1)) for i in range(bands + 2)]
    filters = np.zeros((bands, 201))
    for band, (low, peak, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        for place in range(201):
            f = 40.0 * place
            filters[band, place] = max(0.0, min((f - low) / (peak - low), (high - f) / (high - peak))) * 2 / (high - low)
    rows = []
    for start in range(0, len(wave), 160):
        power = np.abs(turn @ (window * mirrored[start : start + 400])) ** 2
        rows.append(np.log10(np.maximum(filters @ power, 1e-10)))
    table = np.array(rows)
    return (np.maximum(table, table.max() - 8) + 4) / 4


class NaiveEncoder:
    """Built from the files of a published folder; it calls none of the model's code, nor the library's."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        tensors = load_file(folder / "model.safetensors")
        self.w = {name.removeprefix(prefix): t.double().numpy() for name, t in tensors.items() if name.startswith(prefix)}
        self.config = json.loads((folder / "config.json").read_text())

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.w[f"{name}.weight"] @ x + self.w.get(f"{name}.bias", 0.0)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def convolve(self, name: str, x: np.ndarray, stride: int, before: int) -> np.ndarray:
        """[T, in] -> [T / stride, out]: width 3, of which `before` frames lie before the one that it stands at; GELU."""
        rows = []
        for centre in range(0, len(x), stride):
            y = self.w[f"{name}.bias"].copy()
            for tap in range(3):
                if 0 <= centre + tap - before < len(x):
                    y += self.w[f"{name}.weight"][:, :, tap] @ x[centre + tap - before]
            rows.append(gelu(y))
        return np.array(rows)

    def layer(self, name: str, x: np.ndarray, seen: list[list[int]]) -> np.ndarray:
        """seen: per frame, those that it looks at."""
        heads = self.config["encoder_attention_heads"]
        size = x.shape[1] // heads
        normed = [self.norm(f"{name}.self_attn_layer_norm", row) for row in x]
        q, k, v = (np.array([self.linear(f"{name}.self_attn.{part}_proj", row) for row in normed]) for part in "qkv")
        out = []
        for i, row in enumerate(x):
            mixed = []
            for part in (slice(h * size, (h + 1) * size) for h in range(heads)):
                weights = np.exp(k[seen[i], part] @ q[i, part] / math.sqrt(size))
                mixed.append(weights @ v[seen[i], part] / weights.sum())
            row = row + self.linear(f"{name}.self_attn.out_proj", np.concatenate(mixed))
            inner = self.norm(f"{name}.final_layer_norm", row)
            out.append(row + self.linear(f"{name}.fc2", gelu(self.linear(f"{name}.fc1", inner))))
        return np.array(out)


def gelu(x: np.ndarray) -> np.ndarray:
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


class NaiveWhisper(NaiveEncoder):
    """Features 50 times a second of one chunk, which is filled with silence to the length that there are positions for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "model.encoder.")

    def features(self, wave: np.ndarray) -> np.ndarray:
        positions = self.config["max_source_positions"]
        mel = log_mel(np.concatenate([wave, np.zeros(320 * positions - len(wave))]))
        x = self.convolve("conv2", self.convolve("conv1", mel, 1, 1), 2, 1) + self.w["embed_positions.weight"]
        everything = [list(range(positions))] * positions
        for i in range(self.config["encoder_layers"]):
            x = self.layer(f"layers.{i}", x, everything)
        return np.array([self.norm("layer_norm", row) for row in x])[: 4 * math.ceil(len(wave) / 1280)]


class NaiveSpeechTokenizer(NaiveEncoder):
    """Codes of one chunk, which is filled with silence to whole codes."""

    def pooled(self, wave: np.ndarray) -> np.ndarray:
        count = math.ceil(len(wave) / 1280)
        mel = log_mel(np.concatenate([wave, np.zeros(1280 * count - len(wave))]))
        x = self.convolve("conv2", self.convolve("conv1", mel, 1, 2), 2, 2)
        x = x + self.w["embed_positions.weight"][: len(x)]
        block, speech = self.config["quantize_causal_block_size"], math.ceil(len(wave) / 320)
        seen = [[j for j in range(speech) if j < (i // block + 1) * block] for i in range(len(x))]
        for i in range(self.config["quantize_position"]):
            x = self.layer(f"layers.{i}", x, seen)
        return np.array([x[4 * i : 4 * i + 4].mean(0) for i in range(count)])

    def codes(self, wave: np.ndarray) -> list[int]:
        return [int(np.argmin([((row - x) ** 2).sum() for row in self.w["codebook.weight"]])) for x in self.pooled(wave)]
