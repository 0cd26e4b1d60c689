"""Speech models that learn by example: bases and their warm-up."""

from typing import Literal

from pydantic import Field, model_validator

from paras2s_cli.recipe.base import Recipe, RecipeBase
from paras2s_cli.recipe.training import Lora, Train


class Demonstrations(RecipeBase):
    """Which demonstrations, and how good. `tone_deaf` of them are answered in a random way; count 0 is every query, anew each epoch."""

    count: int = Field(ge=0)
    tone_deaf: float = Field(ge=0, le=1)
    transcriptions: float = Field(0.0, ge=0, le=1)
    readings: float = Field(0.0, ge=0, le=1)
    carriers: float = Field(0.0, ge=0, le=1)
    described: bool = False


class Shape(RecipeBase):
    """The size of a speech LM that is trained from nothing."""

    hidden_size: int = Field(ge=8)
    intermediate_size: int = Field(ge=8)
    shared_layers: int = Field(ge=1)
    text_layers: int = Field(ge=1)
    audio_layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    delay: int = Field(ge=0)


class BaseRecipe(Recipe):
    """A speech LM from nothing, that speaks but is deaf to tone: what a downloaded base model is to a large run."""

    kind: Literal["base"] = "base"
    model: Shape
    demonstrations: Demonstrations
    train: Train


class CheckpointBase(RecipeBase):
    """A base that is there already: a folder with a speech LM, Kimi-Audio's as it is published for one."""

    kind: Literal["checkpoint"] = "checkpoint"
    folder: str = Field(min_length=1)
    """As seen from where the command runs; or its name on the Hugging Face hub."""


class OmniBase(RecipeBase):
    """A base that is there already: Qwen2.5-Omni, run through transformers."""

    kind: Literal["qwen2.5-omni"] = "qwen2.5-omni"
    folder: str = Field(min_length=1)
    """Of the checkpoint, or its name on the Hugging Face hub."""
    part: Literal["talker", "thinker", "both"] = "talker"
    """What learns."""
    speaker: str | None = None
    """A voice of its spk_dict.pt; None is the first."""
    dtype: Literal["fp32", "file"] = "fp32"
    """Of the weights while they learn: in bf16, as they are published, steps at a small learning rate round away."""


class SftRecipe(Recipe):
    """Next-token training of the base on demonstrations."""

    kind: Literal["sft"] = "sft"
    base: BaseRecipe | CheckpointBase | OmniBase = Field(discriminator="kind")
    demonstrations: Demonstrations
    data: str | None = None
    """A manifest of demonstrations of one's own, for a base that hears recordings; None: `demonstrations`, of the world."""
    held_out: float = Field(0.05, gt=0, lt=1)
    """The share of `data` that is measured on and not learnt."""
    train: Train
    lora: Lora | None = None
    """None trains all weights."""
    checkpointing: bool = False
    """Layers are computed again in the backward instead of kept for it: much less memory, a third more time."""
    at_once: int = Field(0, ge=0)
    """Demonstrations whose gradients a process computes at a time; a step's are added up. 0: all."""
    evaluate_every: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _hears_recordings(self) -> "SftRecipe":
        if self.data is not None and isinstance(self.base, BaseRecipe):
            raise ValueError("data is for a base that hears recordings (kind checkpoint or qwen2.5-omni); this one learns from its world")
        return self
