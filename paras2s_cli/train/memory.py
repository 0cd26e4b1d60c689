"""What training a checkpoint takes, by arithmetic, before anything of it is read but its config."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import torch

from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.omni import Part, learning_parts
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import Specials
from paras2s_cli.recipe.training import Lora

GIB = 2**30
_HALF, _WHOLE = 2, 4
"""Bytes of a number in bf16 and in fp32."""


@dataclass(frozen=True)
class Size:
    """Parameters of a speech LM, and those of them, or beside them, that are trained."""

    parameters: int
    trained: int


def size_of(config: SpeechLMConfig, lora: Lora | None) -> Size:
    """Counted on a model without memory; an adapter has rank x (inputs + outputs) for each product that has one."""
    with torch.device("meta"):
        model = SpeechLM(config, Specials(*range(len(Specials.__dataclass_fields__))))
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    total = sum(map(prod, shapes.values()))
    if lora is None:
        return Size(total, total)
    adapted = [s for name, s in shapes.items() if len(s) == 2 and name.split(".")[-2] in lora.targets]
    return Size(total + lora.r * sum(map(sum, adapted)), lora.r * sum(map(sum, adapted)))


def memory_of(config: SpeechLMConfig, size: Size, *, ranks: int, tokens: int, checkpointing: bool, rollouts: bool) -> dict[str, float]:
    """GiB of a process: weights that are trained, their gradients and AdamW's two moments in fp32; frozen weights in bf16; what the
    backward keeps.

    Args:
        tokens: whose gradients a process computes at a time. rollouts: GRPO has a whole copy that rolls out and, where all is trained, a
            reference.
    """
    frozen = size.parameters - size.trained
    blocks = config.num_hidden_layers + config.kimia_mimo_layers
    held = tokens * _HALF * _held(blocks, config.hidden_size, config.intermediate_size, checkpointing)
    found = {
        "weights": (size.trained * _WHOLE + frozen * _HALF) / ranks,
        "gradients": size.trained * _WHOLE / ranks,
        "optimizer": 2 * size.trained * _WHOLE / ranks,
        "backward": held,
    }
    if rollouts:
        found["rollouts"] = size.parameters * _HALF if ranks > 1 else 0.0
        found["reference"] = 0.0 if frozen else size.parameters * _HALF / ranks
    return {name: value / GIB for name, value in found.items() if value}


def _held(blocks: int, hidden: int, inner: int, checkpointing: bool) -> int:
    """Numbers of a position that layers keep for their backward."""
    layer = 8 * hidden + 4 * inner
    return blocks * hidden + layer if checkpointing else blocks * layer


@dataclass(frozen=True)
class OmniSize:
    """Parameters of Qwen2.5-Omni, those of its parts that learn, and of the layers of each: how many, hidden_size, intermediate_size."""

    parameters: int
    learning: Mapping[Part, int]
    layers: Mapping[Part, tuple[int, int, int]]


def size_of_omni(folder: Path) -> OmniSize:
    """Counted on a model without memory. folder: with a config.json."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    config = Qwen2_5OmniConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = Qwen2_5OmniForConditionalGeneration(config)
    parts: tuple[Literal["thinker", "talker"], ...] = ("thinker", "talker")
    shapes = {"thinker": config.thinker_config.text_config, "talker": config.talker_config}
    return OmniSize(
        sum(weight.numel() for weight in model.parameters()),
        {part: sum(weight.numel() for module in learning_parts(model, part) for weight in module.parameters()) for part in parts},
        {part: (shapes[part].num_hidden_layers, shapes[part].hidden_size, shapes[part].intermediate_size) for part in parts},
    )


def memory_of_omni(size: OmniSize, tokens: Mapping[Part, int], *, whole: bool, checkpointing: bool, reference: bool) -> dict[str, float]:
    """GiB of the one process: weights, gradients and AdamW's two moments, what the backward keeps, and the model before alignment.

    Args:
        tokens: of each part that learns, whose gradients are computed at a time. whole: weights are fp32, else bf16.
    """
    number = _WHOLE if whole else _HALF
    trained = sum(size.learning[part] for part in tokens)
    found = {
        "weights": size.parameters * number,
        "gradients": trained * number,
        "optimizer": 2 * trained * number,
        "backward": number * sum(count * _held(*size.layers[part], checkpointing) for part, count in tokens.items()),
        "reference": size.parameters * number if reference else 0,
    }
    return {name: value / GIB for name, value in found.items() if value}
