"""What training a checkpoint takes, by arithmetic, before anything of it is read but its config."""

from dataclasses import dataclass
from math import prod

import torch

from paras2s_cli.models.config import SpeechLMConfig
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
    backward keeps of `tokens` positions at a time.

    Args:
        tokens: of a step, in all processes. rollouts: GRPO has a whole copy that rolls out and, where all is trained, a reference.
    """
    frozen = size.parameters - size.trained
    blocks, mine = config.num_hidden_layers + config.kimia_mimo_layers, tokens / ranks
    layer = 8 * config.hidden_size + 4 * config.intermediate_size  # numbers of a position that a layer keeps for its backward
    held = mine * _HALF * (blocks * config.hidden_size + layer if checkpointing else blocks * layer)
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
