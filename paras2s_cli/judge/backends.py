"""Judges by name. Nothing is imported before it is asked for."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from paras2s_cli.judge.pipeline import Judge

if TYPE_CHECKING:
    from paras2s_cli.judge.stages import Scorer
    from paras2s_cli.recipe.schema import PolytoneRecipe

MAKERS = {"pocket": "paras2s_cli.train.polytone:make_judge"}
"""World -> the function that makes its judge from a recipe, training what the cache lacks."""

Say = Callable[[str], None]


def load_judge(recipe: "PolytoneRecipe", say: Say, scorer: "Scorer | None" = None) -> Judge:
    """The judge of a recipe's world, or its ears before another `scorer`. `say` is told in a sentence what has to be made first.

    Raises:
        UsageError: a package that the backend needs is missing, or the cache cannot be written.
    """
    module, function = MAKERS[recipe.world].split(":")
    judge: Judge = getattr(importlib.import_module(module), function)(recipe, say)
    if scorer is not None:
        judge.scorer = scorer
    return judge
