"""How stages are optimised, and the adapters that may learn in the place of weights."""

from typing import Literal

from pydantic import Field

from paras2s_cli.recipe.base import RecipeBase


class Train(RecipeBase):
    """How a stage is optimised: linear warm-up, cosine to a tenth."""

    steps: int = Field(ge=0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    batch: int = Field(64, ge=1)
    lr: float = Field(gt=0)
    warmup: int = Field(20, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    save_every: int = Field(1, ge=1)


class LowRank(RecipeBase):
    """A low-rank adapter (LoRA). Needs the extra `lora`."""

    r: int = Field(16, ge=1)
    """Its rank."""
    alpha: float = Field(32.0, gt=0)
    """What it adds is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of what it is given, while it learns."""
    targets: list[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )
    """The products that have one, in all layers of what answers or grades."""


class Lora(LowRank):
    """A low-rank adapter is trained in the place of the weights."""

    merge: bool = True
    """The model is saved with the adapter in its weights; false saves the adapter alone, in peft's layout."""
