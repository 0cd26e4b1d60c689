"""The class every recipe, and every section of one, derives from."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RecipeBase(BaseModel):
    """A recipe or a section of one: unknown keys are errors, values do not change, numbers are finite.

    A field of this type may be written as the name of another recipe (`sft: pocket/sft`), loaded in place.
    A model that is a whole recipe has a field `kind`, a Literal with its only value as the default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Recipe(RecipeBase):
    """What all recipes share."""

    world: Literal["pocket"] = "pocket"
    seed: int = Field(1, ge=0, lt=2**31)
    threads: int = Field(2, ge=1)


def kind_of(model: type[BaseModel]) -> str | None:
    """The kind of recipe that a model describes (`align`), or None when it is only a section."""
    field = model.model_fields.get("kind")
    return field.default if field is not None and isinstance(field.default, str) else None
