"""The shapes of a voice's two networks, as audio_detokenizer/config.yaml and vocoder/config.json say them.

Keys have their published names. What there is one way of here is a literal; keys that nothing here asks for may say anything.
"""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError, model_validator

from paras2s_cli.errors import UsageError


class _Config(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class RopeConfig(_Config):
    """Rotary positions."""

    rope_base: PositiveFloat = 10000.0
    rope_interpolation_factor: PositiveFloat = 1.0


class DiTConfig(_Config):
    """The diffusion transformer. input_size: mel bins. max_seq_len: positions, in mel frames."""

    input_size: PositiveInt
    semantic_vocab_size: PositiveInt
    hidden_size: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    mlp_ratio: PositiveFloat
    max_seq_len: PositiveInt
    rope_params: RopeConfig = RopeConfig()
    use_rope: Literal[True]
    position_embedding_type: Literal["skip"]
    ffn_type: Literal["vanilla_mlp"]

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(f"hidden_size {self.hidden_size} does not give {self.num_heads} heads of an even size")
        return self


class _Model(_Config):
    dit: DiTConfig


class FlowConfig(_Config):
    """The whole of config.yaml. mel_mean, mel_std: of the mel bins in the vocoder's units, where normalize_mel says so."""

    model: _Model
    normalize_mel: bool
    mel_mean: float
    mel_std: float


class VocoderConfig(_Config):
    """BigVGAN. upsample_rates multiply to the samples of a mel frame."""

    num_mels: PositiveInt
    sampling_rate: PositiveInt
    hop_size: PositiveInt
    upsample_rates: list[PositiveInt]
    upsample_kernel_sizes: list[PositiveInt]
    upsample_initial_channel: PositiveInt
    resblock_kernel_sizes: list[PositiveInt]
    resblock_dilation_sizes: list[list[PositiveInt]]
    resblock: Literal["1"]
    activation: Literal["snakebeta"]
    snake_logscale: Literal[True]
    use_tanh_at_final: Literal[False]
    use_bias_at_final: Literal[False]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if prod(self.upsample_rates) != self.hop_size:
            raise ValueError(f"upsample_rates multiply to {prod(self.upsample_rates)}, not to hop_size {self.hop_size}")
        if len(self.upsample_kernel_sizes) != len(self.upsample_rates):
            raise ValueError("there are not as many upsample_kernel_sizes as upsample_rates")
        if any(size < rate or (size - rate) % 2 for rate, size in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True)):
            raise ValueError("upsample_kernel_sizes must exceed upsample_rates by even numbers")
        if len(self.resblock_dilation_sizes) != len(self.resblock_kernel_sizes):
            raise ValueError("there are not as many resblock_dilation_sizes as resblock_kernel_sizes")
        if any(size % 2 == 0 for size in self.resblock_kernel_sizes):
            raise ValueError("resblock_kernel_sizes must be odd")
        if self.upsample_initial_channel % 2 ** len(self.upsample_rates):
            raise ValueError(f"upsample_initial_channel cannot be halved {len(self.upsample_rates)} times")
        return self


Found = TypeVar("Found", bound=BaseModel)


def load_flow_config(path: Path) -> FlowConfig:
    """Reads audio_detokenizer/config.yaml. Raises UsageError: it is missing, no YAML, or another model's (every key is named)."""
    return _load(path, FlowConfig, yaml.safe_load)


def load_vocoder_config(path: Path) -> VocoderConfig:
    """Reads vocoder/config.json. Raises UsageError: it is missing, no JSON, or another model's (every key is named)."""
    return _load(path, VocoderConfig, json.loads)


def _load(path: Path, kind: type[Found], parse: Callable[[str], Any]) -> Found:
    try:
        return kind.model_validate(parse(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}".lstrip(": ") for e in error.errors()]
        raise UsageError(f"{path}: not the config of Kimi-Audio's voice ({'; '.join(faults)})") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise UsageError(f"{path}: not the config of Kimi-Audio's voice ({said}); download the checkpoint again") from error
