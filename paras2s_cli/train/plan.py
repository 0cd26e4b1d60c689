"""What a run would do, for `--dry-run`."""

from collections.abc import Mapping
from pathlib import Path

from paras2s_cli.data.cache import cache_root, is_complete
from paras2s_cli.models.hub import local_folder
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
    folder = local_folder(sft.base.folder, download=False)
    if not (folder / "config.json").is_file():
        return [f"# base: {folder} is not here, so nothing is reckoned of its size"]
    if isinstance(sft.base, OmniBase):
        return _omni(recipe, sft, sft.base)
    from paras2s_cli.models.config import SpeechLMConfig
    from paras2s_cli.train.grpo import groups_at_once
    from paras2s_cli.train.memory import memory_of, size_of
    from paras2s_cli.train.ranks import world_size

    config, ranks = SpeechLMConfig.load(folder / "config.json"), world_size()
    rate = 12.5  # positions a second, of Kimi-Audio's codes
    pair = int(rate * (_QUERY + _ANSWER)) + config.kimia_mimo_audiodelaytokens
    stages = [("sft", sft.lora, sft.checkpointing, sft.train.batch * pair, _most(sft.train.batch, sft.at_once, ranks) * pair)]
    if isinstance(recipe, AlignRecipe):
        grpo = recipe.grpo
        group, most = int(rate * _QUERY) + grpo.group * grpo.limit, _most(grpo.prompts, groups_at_once(grpo), ranks)
        stages.append(("grpo", grpo.lora, grpo.checkpointing, grpo.prompts * group, most * group))
    lines = [f"# of each of {ranks} processes, by arithmetic, with queries of {_QUERY} s and answers of {_ANSWER} s:"]
    for stage, lora, checkpointing, tokens, at_once in stages:
        size = size_of(config, lora)
        parts = memory_of(config, size, ranks=ranks, tokens=at_once, checkpointing=checkpointing, rollouts=stage == "grpo")
        lines.append(_line(stage, size.parameters, size.trained, tokens, at_once, parts))
    return lines


def _most(count: int, at_once: int, size: int) -> int:
    """Rows of the largest piece of so many."""
    from paras2s_cli.train.at_once import pieces
    from paras2s_cli.train.ranks import Ranks

    return max(some.stop - some.start for some in pieces(count, at_once, Ranks(0, size)))  # no rank has more than the first


def _omni(recipe: SftRecipe | AlignRecipe, sft: SftRecipe, base: OmniBase) -> list[str]:
    """The same of Qwen2.5-Omni, in its one process. Every answer is scored behind a prompt of its own."""
    from paras2s_cli.models.omni import Part
    from paras2s_cli.train.grpo import groups_at_once
    from paras2s_cli.train.memory import memory_of_omni, size_of_omni

    size = size_of_omni(local_folder(base.folder, download=False))
    query, words = 25 * _QUERY, 4 * _ANSWER  # positions: sound has 25 a second, and a second of speech four tokens of text
    stages: list[tuple[str, dict[Part, int], int, int, bool]] = []  # positions of a row, rows of a step and of a piece
    if base.part != "talker":
        most = _most(sft.train.batch, sft.at_once, 1)
        stages.append(("sft", {"thinker": query + words}, sft.train.batch, most, sft.checkpointing))
    if isinstance(recipe, AlignRecipe):
        grpo = recipe.grpo
        reckoned: dict[Part, int] = {"thinker": query + min(words, grpo.limit), "talker": query + grpo.limit}
        learning = {part: count for part, count in reckoned.items() if base.part in (part, "both")}
        most = _most(grpo.prompts, groups_at_once(grpo), 1) * grpo.group
        stages.append(("grpo", learning, grpo.prompts * grpo.group, most, grpo.checkpointing))
    lines = [f"# of the one process, by arithmetic, with queries of {_QUERY} s and answers of {_ANSWER} s:"]
    for stage, long, rows, most, again in stages:
        tokens = {part: most * count for part, count in long.items()}
        parts = memory_of_omni(size, tokens, whole=base.dtype == "fp32", checkpointing=again, reference=stage == "grpo")
        trained = sum(size.learning[part] for part in tokens)
        lines.append(_line(stage, size.parameters, trained, rows * sum(long.values()), sum(tokens.values()), parts))
    return lines


def _line(stage: str, parameters: int, trained: int, tokens: int, at_once: int, parts: Mapping[str, float]) -> str:
    words = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    counts = f"{_count(parameters)} parameters, {_count(trained)} trained; {tokens} tokens a step, {at_once} at once"
    return f"# {stage}: {counts}; {sum(parts.values()):.2f} GiB ({words})"


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
