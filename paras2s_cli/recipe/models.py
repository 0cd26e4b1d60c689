"""Models that run on this machine, through transformers."""

import re
from typing import Literal

from pydantic import Field, field_validator

from paras2s_cli.recipe.base import RecipeBase


class LocalModel(RecipeBase):
    """A model on this machine, through transformers."""

    model: str = Field(min_length=1)
    """A folder, from where the command runs, or a name on the hub. Its weights are safetensors; code beside them is not run unasked."""
    revision: str = ""
    """Of the hub: a commit, a branch or a tag. Of a folder: a word that tells its weights from others, which rows of scores name."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto is float32 on the CPU and the checkpoint's own on a GPU."""
    device: str = "auto"

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError(f"must be auto, cpu, cuda or a certain cuda:1, not {device}")
        return device
