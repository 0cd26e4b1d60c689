"""Kimi-Audio's detokenizer and vocoder written a second time, in float64 numpy, from the files: frame by frame, tap by tap, one row."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import load_file


def weights(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in load_file(path).items()}


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@dataclass
class Memory:
    """Keys and values of frames: [layer][frame], [heads, head_dim] each."""

    keys: list[list[np.ndarray]] = field(default_factory=list)
    values: list[list[np.ndarray]] = field(default_factory=list)


class NaiveFlow:
    """Codes to mel."""

    def __init__(self, folder: Path) -> None:
        self.config = yaml.safe_load((folder / "config.yaml").read_text())
        self.dit = self.config["model"]["dit"]
        stored = weights(folder / "model.safetensors")
        self.w = {name.removeprefix("speech_model."): x for name, x in stored.items() if name.startswith("speech_model.")}
        self.heads, self.depth = self.dit["num_heads"], self.dit["depth"]
        self.head_dim = self.dit["hidden_size"] // self.heads

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.w[f"{name}.weight"] @ x + self.w[f"{name}.bias"]

    def norm(self, x: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
        x = x - x.mean()
        return x / math.sqrt(float((x * x).mean()) + 1e-6) * (1 + scale) + shift

    def moment(self, time: int) -> np.ndarray:
        angles = [time * 10000 ** (-i / 128) for i in range(128)]
        wave = np.array([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
        return self.linear("t_embedder.mlp.2", silu(self.linear("t_embedder.mlp.0", wave)))

    def turned(self, x: np.ndarray, position: int) -> np.ndarray:
        """[heads, head_dim]: numbers 2 i and 2 i + 1 are a point that is turned."""
        rope, out = self.dit["rope_params"], x.copy()
        for i in range(self.head_dim // 2):
            angle = position / rope["rope_interpolation_factor"] * rope["rope_base"] ** (-2 * i / self.head_dim)
            a, b, cos, sin = x[:, 2 * i], x[:, 2 * i + 1], math.cos(angle), math.sin(angle)
            out[:, 2 * i], out[:, 2 * i + 1] = a * cos - b * sin, a * sin + b * cos
        return out

    def velocity(self, x: list[np.ndarray], codes: list[int], time: int, start: int, past: Memory) -> tuple[list[np.ndarray], Memory]:
        moment, seen = self.moment(time), Memory()
        conditions = [silu(moment + self.w["semantic_token_embedding.weight"][code]) for code in codes]
        x = [self.linear("input_linear", frame) for frame in x]
        for i in range(self.depth):
            block = f"blocks.{i}"
            parts = [np.split(self.linear(f"{block}.adaLN_modulation.1", c), 6) for c in conditions]
            queries: list[np.ndarray] = []
            keys, values = (list(past.keys[i]), list(past.values[i])) if past.keys else ([], [])
            for j, frame in enumerate(x):
                both = self.linear(f"{block}.attn.qkv", self.norm(frame, parts[j][0], parts[j][1]))
                q, k, v = both.reshape(3, self.heads, self.head_dim)
                queries.append(self.turned(q, start + j))
                keys.append(self.turned(k, start + j))
                values.append(v)
            seen.keys.append(keys)
            seen.values.append(values)
            all_keys, all_values = np.array(keys), np.array(values)  # [S, heads, head_dim]
            for j, frame in enumerate(x):
                heard = []
                for h in range(self.heads):
                    scores = np.exp(all_keys[:, h] @ queries[j][h] / math.sqrt(self.head_dim))
                    heard.append(scores @ all_values[:, h] / scores.sum())
                frame = frame + parts[j][2] * self.linear(f"{block}.attn.proj", np.concatenate(heard))
                inner = self.linear(f"{block}.mlp.fc1", self.norm(frame, parts[j][3], parts[j][4]))
                inner = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
                x[j] = frame + parts[j][5] * self.linear(f"{block}.mlp.fc2", inner)
        out = []
        for frame, condition in zip(x, conditions, strict=True):
            shift, scale = np.split(self.linear("final_layer.adaLN_modulation.1", condition), 2)
            out.append(self.linear("final_layer.linear", self.norm(frame, shift, scale)))
        return out, seen

    def mel(self, codes: list[int], seed: int, chunk: int, ahead: int, points: int, window: int) -> list[np.ndarray]:
        """[T, bins] of each chunk."""
        generator = torch.Generator().manual_seed(seed)
        bins, pieces, start, past, drawn = self.dit["input_size"], [], 0, Memory(), 0
        for first in range(0, len(codes), chunk):
            noise = torch.randn(4 * (chunk + ahead), bins, generator=generator).double().numpy()
            last = first + chunk >= len(codes)
            frames = [code for code in codes[drawn : first + chunk] for _ in range(4)]
            x = list(noise[: len(frames)])
            times = np.linspace(0, 1, points)
            for now, then in pairwise(times):
                # as the published code truncates it, for a time that lies a rounding error below a whole number
                moves, _ = self.velocity(list(x), frames, int(1000 * now + 1e-9), start, past)
                x = [a + (then - now) * b for a, b in zip(x, moves, strict=True)]
            x = x if last else x[: -4 * ahead]
            pieces.append(np.array(x) * self.config["mel_std"] + self.config["mel_mean"])
            _, past = self.velocity(list(x), frames[: len(x)], 999, start, past)
            past = Memory([keys[-window:] for keys in past.keys], [values[-window:] for values in past.values])
            start, drawn = start + len(x), first + chunk - ahead
            if start + 2 * len(x) > self.dit["max_seq_len"]:
                start, past = 0, Memory()
        return pieces


class NaiveVocoder:
    """Mel to waveform."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.w = weights(folder / "model.safetensors")

    def weight(self, name: str) -> np.ndarray:
        direction, length = self.w[f"{name}.weight_v"], self.w[f"{name}.weight_g"]
        return np.array([g.item() * v / math.sqrt((v * v).sum()) for g, v in zip(length, direction, strict=True)])

    def convolve(self, name: str, x: np.ndarray, dilation: int = 1) -> np.ndarray:
        weight = self.weight(name)
        outs, ins, taps = weight.shape
        side, length = dilation * (taps // 2), x.shape[1]
        x, y = np.pad(x, ((0, 0), (side, side))), np.zeros((outs, length))
        for o in range(outs):
            for i in range(ins):
                for k in range(taps):
                    y[o] += weight[o, i, k] * x[i, k * dilation : k * dilation + length]
        return y + self.w.get(f"{name}.bias", np.zeros(outs))[:, None]

    def raise_rate(self, name: str, x: np.ndarray, rate: int) -> np.ndarray:
        weight = self.weight(name)
        ins, outs, taps = weight.shape
        full = np.zeros((outs, rate * x.shape[1] + taps))
        for t in range(x.shape[1]):
            for i in range(ins):
                full[:, t * rate : t * rate + taps] += x[i, t] * weight[i]
        cut = (taps - rate) // 2
        return full[:, cut : cut + rate * x.shape[1]] + self.w[f"{name}.bias"][:, None]

    def snake(self, name: str, x: np.ndarray) -> np.ndarray:
        length, up, down = (
            x.shape[1],
            self.w[f"{name}.upsample.filter"].ravel(),
            self.w[f"{name}.downsample.lowpass.filter"].ravel(),
        )
        fine = np.zeros((len(x), 2 * length))
        for n in range(2 * length):
            for k in range((n + 5) % 2, 12, 2):  # between two samples there is nothing
                fine[:, n] += 2 * up[k] * x[:, min(max((n + 5 - k) // 2, 0), length - 1)]
        for c in range(len(x)):
            alpha, beta = math.exp(self.w[f"{name}.act.alpha"][c]), math.exp(self.w[f"{name}.act.beta"][c])
            fine[c] += np.sin(alpha * fine[c]) ** 2 / beta
        beyond = np.concatenate([np.repeat(fine[:, :1], 5, 1), fine, np.repeat(fine[:, -1:], 6, 1)], 1)
        return np.array([beyond[:, 2 * n : 2 * n + 12] @ down for n in range(length)]).T

    def wave(self, mel: np.ndarray) -> np.ndarray:
        """[T, bins] -> [T * hop]."""
        x, block = self.convolve("conv_pre", mel.T), 0
        for i, rate in enumerate(self.config["upsample_rates"]):
            x = self.raise_rate(f"ups.{i}.0", x, rate)
            outs = []
            for dilations in self.config["resblock_dilation_sizes"]:
                y = x
                for j, dilation in enumerate(dilations):
                    z = self.convolve(f"resblocks.{block}.convs1.{j}", self.snake(f"resblocks.{block}.activations.{2 * j}", y), dilation)
                    y = y + self.convolve(f"resblocks.{block}.convs2.{j}", self.snake(f"resblocks.{block}.activations.{2 * j + 1}", z))
                outs.append(y)
                block += 1
            x = np.mean(outs, axis=0)
        return self.convolve("conv_post", self.snake("activation_post", x))[0].clip(-1, 1)

    def joined(self, mels: list[np.ndarray]) -> np.ndarray:
        """The waveform of chunks: each is made from where the one before had made sound that is not said yet, and faded in over that."""
        hop, mel, out = self.config["hop_size"], np.concatenate(mels), np.zeros(0)
        begin, made = 0, 0  # frames
        for piece in mels:
            end = made + len(piece)
            wave = self.wave(mel[begin:end])
            overlap = (made - begin) * hop
            rise = np.array([(0.54 - 0.46 * math.cos(math.pi * n / overlap)) / 1.08 for n in range(overlap)])
            old = out[begin * hop :]
            out = np.concatenate([out[: begin * hop], old * (1 - rise) + wave[:overlap] * rise, wave[overlap:]])
            begin = len(piece) // 2 if made == 0 else 2 * made - begin
            made = end
        return out
