"""What a run would do, for `--dry-run`."""

from pathlib import Path

from paras2s_cli.data.cache import cache_root, is_complete
from paras2s_cli.recipe.aligning import AlignRecipe
from paras2s_cli.recipe.base import RecipeBase
from paras2s_cli.recipe.speaking import CheckpointBase, OmniBase, SftRecipe
from paras2s_cli.recipe.training import Train

_QUERY, _ANSWER = 10, 20
"""Seconds of sound that a plan reckons with."""


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
    if isinstance(recipe, SftRecipe | AlignRecipe):
        lines += _checkpoint(recipe)
    return "\n".join(lines) + "\n"


def _checkpoint(recipe: SftRecipe | AlignRecipe) -> list[str]:
    """The size of a base that is there already, and what its stages take of each process that torchrun starts."""
    sft = recipe if isinstance(recipe, SftRecipe) else recipe.sft
    if not isinstance(sft.base, CheckpointBase | OmniBase):
        return []
    folder = Path(sft.base.folder)
    if not (folder / "config.json").is_file():
        return [f"# base: {folder} is not here, so nothing is reckoned of its size"]
    if isinstance(sft.base, OmniBase):
        count = _count(sum(file.stat().st_size for file in folder.glob("*.safetensors")) // 2)
        return [f"# base: {count} parameters by the size of its files, if they are in bf16; the memory of its training is not reckoned"]
    from paras2s_cli.models.config import SpeechLMConfig
    from paras2s_cli.train.memory import memory_of, size_of
    from paras2s_cli.train.ranks import world_size

    config, ranks = SpeechLMConfig.load(folder / "config.json"), world_size()
    rate = 12.5  # positions a second, of Kimi-Audio's codes
    pair = int(rate * (_QUERY + _ANSWER)) + config.kimia_mimo_audiodelaytokens
    stages = [("sft", sft.lora, sft.checkpointing, sft.train.batch * pair)]
    if isinstance(recipe, AlignRecipe):
        grpo = recipe.grpo
        stages.append(("grpo", grpo.lora, grpo.checkpointing, grpo.prompts * (int(rate * _QUERY) + grpo.group * grpo.limit)))
    lines = [f"# of each of {ranks} processes, by arithmetic, with queries of {_QUERY} s and answers of {_ANSWER} s:"]
    for stage, lora, checkpointing, tokens in stages:
        size = size_of(config, lora)
        parts = memory_of(config, size, ranks=ranks, tokens=tokens, checkpointing=checkpointing, rollouts=stage == "grpo")
        words = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
        counts = f"{_count(size.parameters)} parameters, {_count(size.trained)} trained; {tokens} tokens a step"
        lines.append(f"# {stage}: {counts}; {sum(parts.values()):.2f} GiB ({words})")
    return lines


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.2f} million"


def _stages(prefix: str, recipe: RecipeBase) -> list[tuple[str, Train]]:
    found: list[tuple[str, Train]] = []
    for name in type(recipe).model_fields:
        value = getattr(recipe, name)
        if isinstance(value, Train):
            found.append((prefix + name, value))
        elif isinstance(value, RecipeBase):
            found += _stages(f"{prefix}{name}.", value)
    return found
