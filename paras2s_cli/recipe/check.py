"""Check a recipe of any kind against the model of its kind."""

from __future__ import annotations

from paras2s_cli.errors import UsageError
from paras2s_cli.recipe.base import RecipeBase, kind_of
from paras2s_cli.recipe.catalog import find_recipe
from paras2s_cli.recipe.load import load_recipe, recipe_hash
from paras2s_cli.recipe.schema import RECIPES
from paras2s_cli.recipe.source import read_source


def check_recipe(name_or_path: str) -> str:
    """'pocket/align.yaml: a sound align recipe (<hash>)'. Raises UsageError with everything that is wrong."""
    models = {kind_of(model): model for model in RECIPES}
    file = find_recipe(name_or_path)
    source = read_source(file.path, file.label)
    kind = source.data.get("kind") if isinstance(source.data, dict) else None
    if source.data is not None and (not isinstance(kind, str) or kind not in models):
        raise UsageError(f"{file.label}: kind: must be one of {', '.join(map(str, models))}, not {kind!r}")
    # A file that cannot be read has no kind: any model then reports why.
    model = models[kind] if isinstance(kind, str) else RecipeBase
    recipe = load_recipe(name_or_path, (), model)
    return f"{file.label}: a sound {kind} recipe ({recipe_hash(recipe)})"
