"""What a run would do, for `--dry-run`."""

from pathlib import Path

from paras2s_cli.data.cache import cache_root, is_complete
from paras2s_cli.recipe.base import RecipeBase
from paras2s_cli.recipe.schema import AlignRecipe, Train


def plan_of(recipe: RecipeBase, out: Path) -> str:
    """The plan as YAML comments: the stages with their steps, what is in the cache and in the run's folder."""
    lines = ["", f"# run folder: {out} ({'there' if out.exists() else 'new'}); cache: {cache_root()}"]
    for key, settings in _stages("", recipe):
        rows = settings.steps * settings.batch
        lines.append(f"# {key}: {settings.steps} steps of {settings.batch} ({rows} sequences forward and backward), {settings.optimizer}")
    if isinstance(recipe, AlignRecipe):
        grpo = recipe.grpo
        lines.append(f"# grpo: {grpo.prompts} prompts x {grpo.group} answers a step; every {grpo.judge_every} steps judged in full")
        lines.append(f"# reward: {recipe.reward.answers} answers sampled and judged")
        for stage in ("sft", "reward", "grpo"):
            lines.append(f"# {stage}: {'done' if is_complete(out / stage / 'model') else 'to be made'}")
    return "\n".join(lines) + "\n"


def _stages(prefix: str, recipe: RecipeBase) -> list[tuple[str, Train]]:
    found: list[tuple[str, Train]] = []
    for name in type(recipe).model_fields:
        value = getattr(recipe, name)
        if isinstance(value, Train):
            found.append((prefix + name, value))
        elif isinstance(value, RecipeBase):
            found += _stages(f"{prefix}{name}.", value)
    return found
