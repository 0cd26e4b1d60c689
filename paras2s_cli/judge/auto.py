"""The best judge that can run here: of each stage the best backend whose model is on this machine, or whose endpoint is named.

Nothing is asked of the network: models are looked for in the folder $PARAS2S_MODELS and in the hub's cache. An endpoint costs money and
hears what was said, so it is taken only where $PARAS2S_ENDPOINT names it.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paras2s_cli.recipe.judging import JudgeRecipe, PolytoneRecipe
from paras2s_cli.recipe.load import load_recipe
from paras2s_cli.recipe.servers import Endpoint

MODELS = {
    "transcribe": ("openai/whisper-large-v3", "openai/whisper-large-v3-turbo", "openai/whisper-medium", "openai/whisper-small"),
    "tone": ("Qwen/Qwen2-Audio-7B-Instruct", "Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen2.5-Omni-3B"),
    "score": ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-3B-Instruct"),
}
"""By stage, the best first."""
GIB = {
    "openai/whisper-large-v3": 2.9,
    "openai/whisper-large-v3-turbo": 1.5,
    "openai/whisper-medium": 2.9,
    "openai/whisper-small": 0.9,
    "Qwen/Qwen2-Audio-7B-Instruct": 15.6,
    "Qwen/Qwen2.5-Omni-7B": 20.8,
    "Qwen/Qwen2.5-Omni-3B": 11.2,
    "Qwen/Qwen2.5-7B-Instruct": 14.2,
    "Qwen/Qwen2.5-3B-Instruct": 5.7,
}
"""Of weights as published, about: nobody is told to download what could not run here."""
BACKENDS = {"transcribe": "whisper", "tone": "audio-lm", "score": "local"}
FOLDER, URL, NAME, KEY = "PARAS2S_MODELS", "PARAS2S_ENDPOINT", "PARAS2S_ENDPOINT_MODEL", "PARAS2S_ENDPOINT_KEY"
SHARE = 0.8
"""Of a GPU's memory that weights may take."""
ON_CPU = 2 << 30
"""Bytes of weights that are run without a GPU; more would take minutes an utterance."""


@dataclass(frozen=True)
class Found:
    """What there is for a stage: its section of a recipe (None: the pocket's), what it is called, and what stands against a better one."""

    stage: str
    section: dict[str, Any] | None
    label: str
    why: str = ""
    way_out: str = ""


@dataclass(frozen=True)
class Choice:
    """A judge, and what there is for its stages."""

    recipe: JudgeRecipe
    stages: tuple[Found, ...]

    def __str__(self) -> str:
        scored = self.recipe.score is not None
        taken = ", ".join(f"{found.stage} by {found.label if scored else 'pocket'}" for found in self.stages)
        wanting = [found for found in self.stages if found.way_out]
        # Without a score stage the others are of no use: what is wanting there is told first.
        first = next((found for found in wanting if found.stage == "score"), wanting[0] if wanting else None)
        better = f"; better: {first.way_out} ({first.why})" if first else ""
        return f"judge auto: {taken if scored else 'pocket'}{better}"


class _Memory:
    """Bytes that weights may still take. torch is loaded when there are any."""

    def __init__(self) -> None:
        self._taken = 0

    @cached_property
    def _gpu(self) -> int:
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0

    def take(self, size: int) -> str:
        """Sets bytes aside; why that cannot be done, or nothing."""
        trouble = self.short_of(size)
        self._taken += 0 if trouble else size
        return trouble

    def short_of(self, size: int) -> str:
        """Why so many bytes could not be set aside, or nothing."""
        if self._taken + size <= (self._gpu * SHARE if self._gpu else ON_CPU):
            return ""
        return f"{size / 2**30:.1f} GiB of weights, too much for {'the GPU, beside the others' if self._gpu else 'a CPU'}"


def choose() -> Choice:
    """The best judge that can run here. Without a score stage of its own it is the pocket judge."""
    stages = find_stages()
    sections = {found.stage: found.section for found in stages if found.section is not None}
    if "score" not in sections:
        return Choice(load_recipe("pocket", [], JudgeRecipe), stages)
    ears = None if len(sections) == len(MODELS) else load_recipe("pocket/polytone", [], PolytoneRecipe)
    return Choice(JudgeRecipe.model_validate({"ears": ears, **sections}), stages)


def find_stages() -> tuple[Found, ...]:
    """What there is for each stage, in their order."""
    memory = _Memory()
    return tuple(_endpoint() if stage == "score" and os.environ.get(URL) else _model(stage, memory) for stage in MODELS)


def _endpoint() -> Found:
    name = os.environ.get(NAME, "")
    if not name:
        return Found("score", None, "pocket", f"{URL} is set and {NAME} is not", f"export {NAME}=MODEL")
    section = {"backend": "endpoint", "base_url": os.environ[URL], "model": name, "key_env": KEY if os.environ.get(KEY) else ""}
    try:
        Endpoint.model_validate(section)
    except ValidationError:
        return Found("score", None, "pocket", f"{URL} is no address of a server", f"export {URL}=http://HOST/v1")
    return Found("score", section, f"{name} at {os.environ[URL]}")


def _model(stage: str, memory: _Memory) -> Found:
    """The best model that is here and fits; what would be better is told of the first that could be downloaded, else of the first."""
    why, way_out, downloadable = "", "", False
    or_endpoint = f", or name an endpoint in {URL} and {NAME}" if stage == "score" else ""
    for name in MODELS[stage]:
        folder = find_model(name)
        trouble = memory.short_of(int(GIB.get(name, 0) * 2**30)) if folder is None else memory.take(_size(folder))
        if folder is not None and not trouble:
            # A hub's name tells more in a row of scores than the folder of its cache.
            which = {"model": name, "revision": folder.name} if folder.parent.name == "snapshots" else {"model": str(folder)}
            return Found(stage, {"backend": BACKENDS[stage], **which}, name, why, way_out)
        if not trouble and not downloadable:
            downloadable, why, way_out = True, f"{name}: not on this machine", f"hf download {name}{or_endpoint}"
        elif not why:
            why, way_out = f"{name}: {trouble}", f"a GPU for {name}{or_endpoint}"
    return Found(stage, None, "pocket", why, way_out)


def find_model(name: str) -> Path | None:
    """The folder of a model that is whole on this machine: in $PARAS2S_MODELS by the last part of its name, or in the hub's cache."""
    root = os.environ.get(FOLDER)
    if root and is_whole(folder := Path(root).expanduser() / name.rpartition("/")[2]):
        return folder
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) and is_whole(Path(config).parent) else None


def is_whole(folder: Path) -> bool:
    """Whether config.json and all the weights are there, as safetensors."""
    files = _weights(folder)
    return (folder / "config.json").is_file() and bool(files) and all(file.is_file() for file in files)


def _weights(folder: Path) -> list[Path]:
    """The files that hold a model's weights, there or not."""
    index = folder / "model.safetensors.index.json"
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    except (OSError, ValueError, KeyError, AttributeError):
        return []
    return [folder / name for name in names]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in _weights(folder))
