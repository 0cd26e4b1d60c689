"""Kimi-Audio's audio_detokenizer/ and vocoder/ with small random weights, in exactly the layout of the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


def flow_config(*, hidden: int, depth: int, heads: int, mels: int, codes: int, positions: int) -> dict:
    """The published config.yaml with smaller numbers."""
    dit = {
        "chunk_params": {"hz": 50, "max_chunk": 3.0, "max_chunk_history": 50000000, "min_chunk": 0.5, "need_block_shift": False},
        "condition_input_dim": 1280,
        "condition_type": "discrete_codes",
        "depth": depth,
        "ffn_act_layer": "gleu_tanh",
        "ffn_conv_kernel_size": 5,
        "ffn_gated_glu": False,
        "ffn_type": "vanilla_mlp",
        "hidden_size": hidden,
        "input_size": mels,
        "max_seq_len": positions,
        "mlp_ratio": 4.0,
        "num_heads": heads,
        "position_embedding_type": "skip",
        "prompt_cfg_dropout": 0.2,
        "rope_params": {"max_position_embeddings": 4096, "rope_base": 10000.0, "rope_interpolation_factor": 1.0},
        "semantic_cfg_dropout": 0.2,
        "semantic_vocab_size": codes,
        "use_chunk_setting": True,
        "use_rope": True,
    }
    return {"mel_mean": -4.479605, "mel_std": 3.4584913, "model": {"dit": dit}, "normalize_mel": True}


def vocoder_config(*, mels: int, channels: int, rates: list[int], kernels: list[int], dilations: list[int]) -> dict:
    """The published config.json with smaller numbers."""
    hop = int(np.prod(rates))
    return {
        "resblock": "1",
        "upsample_rates": rates,
        "upsample_kernel_sizes": [{5: 9, 3: 5, 2: 4}[rate] for rate in rates],
        "upsample_initial_channel": channels,
        "resblock_kernel_sizes": kernels,
        "resblock_dilation_sizes": [dilations] * len(kernels),
        "use_tanh_at_final": False,
        "use_bias_at_final": False,
        "activation": "snakebeta",
        "snake_logscale": True,
        "num_mels": mels,
        "hop_size": hop,
        "sampling_rate": 50 * hop,
    }


def flow_tensors(config: dict, generator: torch.Generator) -> Tensors:
    """The state dict of the detokenizer, with two tensors of its training."""
    dit = config["model"]["dit"]
    size, mels = dit["hidden_size"], dit["input_size"]
    inner = int(size * dit["mlp_ratio"])
    shapes = {"t_embedder.mlp.0": (size, 256), "t_embedder.mlp.2": (size, size), "input_linear": (size, mels)}
    for i in range(dit["depth"]):
        shapes |= {
            f"blocks.{i}.attn.qkv": (3 * size, size),
            f"blocks.{i}.attn.proj": (size, size),
            f"blocks.{i}.mlp.fc1": (inner, size),
            f"blocks.{i}.mlp.fc2": (size, inner),
            f"blocks.{i}.adaLN_modulation.1": (6 * size, size),
        }
    shapes |= {"final_layer.linear": (mels, size), "final_layer.adaLN_modulation.1": (2 * size, size)}
    tensors = {"global_step": torch.tensor(7), "ema.input_linear.weight": torch.zeros(size, mels)}
    tensors["speech_model.semantic_token_embedding.weight"] = torch.randn(dit["semantic_vocab_size"] + 1, size, generator=generator)
    for name, (out, into) in shapes.items():
        scale = 2.0 if "qkv" in name else 1.0  # attention that looks at some frames more than at others
        tensors[f"speech_model.{name}.weight"] = scale * torch.randn(out, into, generator=generator) / into**0.5
        tensors[f"speech_model.{name}.bias"] = 0.3 * torch.randn(out, generator=generator)
    return tensors


def low_pass() -> torch.Tensor:
    """12 taps of a windowed sinc, cut off at half the band: [1, 1, 12], adding up to 1."""
    taps = np.kaiser(12, 0.1102 * (2.285 * 5 * np.pi * 1.2 + 7.95 - 8.7)) * np.sinc((np.arange(12) - 5.5) / 2)
    return torch.from_numpy(taps / taps.sum()).float().view(1, 1, 12)


def vocoder_tensors(config: dict, generator: torch.Generator) -> Tensors:
    """The state dict of the vocoder."""
    tensors: Tensors = {}

    def convolution(name: str, *shape: int, out: int, length: float) -> None:
        tensors[f"{name}.weight_v"] = torch.randn(shape, generator=generator)
        tensors[f"{name}.weight_g"] = length * (0.5 + torch.rand(shape[0], 1, 1, generator=generator))
        tensors[f"{name}.bias"] = 0.1 * torch.randn(out, generator=generator)

    def activation(name: str, channels: int) -> None:
        tensors[f"{name}.act.alpha"] = 0.5 * torch.randn(channels, generator=generator)
        tensors[f"{name}.act.beta"] = 0.5 * torch.randn(channels, generator=generator)
        tensors[f"{name}.upsample.filter"] = low_pass()
        tensors[f"{name}.downsample.lowpass.filter"] = low_pass()

    channels, block = config["upsample_initial_channel"], 0
    convolution("conv_pre", channels, config["num_mels"], 7, out=channels, length=0.1)
    for i, kernel in enumerate(config["upsample_kernel_sizes"]):
        # the first index of a transposed convolution is the channel that goes in
        convolution(f"ups.{i}.0", channels, channels // 2, kernel, out=channels // 2, length=0.8)
        channels //= 2
        for size, dilations in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True):
            for j in range(len(dilations)):
                for part in ("convs1", "convs2"):
                    convolution(f"resblocks.{block}.{part}.{j}", channels, channels, size, out=channels, length=0.4)
            for j in range(2 * len(dilations)):
                activation(f"resblocks.{block}.activations.{j}", channels)
            block += 1
    activation("activation_post", channels)
    convolution("conv_post", 1, channels, 7, out=1, length=0.6)
    del tensors["conv_post.bias"]
    return tensors


def write_voice(
    folder: Path,
    *,
    hidden: int = 32,
    depth: int = 2,
    heads: int = 2,
    mels: int = 80,
    codes: int = 24,
    positions: int = 4096,
    channels: int = 128,
    rates: tuple[int, ...] = (5, 2, 2, 2, 2, 3, 2),
    kernels: tuple[int, ...] = (3, 5),
    dilations: tuple[int, ...] = (1, 3),
    seed: int = 2,
    pickled: bool = False,
) -> Path:
    """Writes both sub-folders into the folder of a checkpoint: safetensors, or the pickles that are published."""
    generator = torch.Generator().manual_seed(seed)
    flow = flow_config(hidden=hidden, depth=depth, heads=heads, mels=mels, codes=codes, positions=positions)
    vocoder = vocoder_config(mels=mels, channels=channels, rates=list(rates), kernels=list(kernels), dilations=list(dilations))
    parts = {
        "audio_detokenizer": ("config.yaml", yaml.safe_dump(flow), "state_dict", flow_tensors(flow, generator)),
        "vocoder": ("config.json", json.dumps(vocoder, indent=4), "generator", vocoder_tensors(vocoder, generator)),
    }
    for name, (file, config, key, tensors) in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / file).write_text(config)
        if pickled:
            torch.save({key: tensors}, folder / name / "model.pt")
        else:
            save_file(tensors, folder / name / "model.safetensors")
    return folder
