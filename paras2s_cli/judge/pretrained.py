"""What a recipe's section names of the transformers library: read from a folder or by its name on the hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from paras2s_cli.data.cache import content_key
from paras2s_cli.errors import UsageError
from paras2s_cli.models.weights import refuse_pickles
from paras2s_cli.recipe.judging import LocalLM
from paras2s_cli.recipe.models import LocalModel

_SHOWN = 200


def read_pretrained(settings: LocalModel, key: str, from_pretrained: Callable[..., Any], **options: Any) -> Any:
    """What `from_pretrained` makes of a section's model. What the hub's cache has is not asked for again.

    Raises UsageError for a model that is not there or cannot be read; `key` is the section's.
    """
    folder = Path(settings.model).expanduser()
    if not folder.is_dir() and (settings.model.startswith((".", "~", os.sep)) or settings.model.count("/") > 1):
        raise UsageError(f"{settings.model} is no folder; {key}.model is a folder with config.json and safetensors, or a name on the hub")
    if options.get("use_safetensors") and folder.is_dir() and not any(folder.glob("*.safetensors")):
        refuse_pickles(folder)
    where = str(folder) if folder.is_dir() else settings.model
    trouble: Exception | None = None
    trusted = isinstance(settings, LocalLM) and settings.remote_code
    for offline in (True,) if folder.is_dir() else (True, False):
        try:
            return from_pretrained(
                where, revision=settings.revision or "main", trust_remote_code=trusted, local_files_only=offline, **options
            )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
            trouble = error
    said = " ".join(str(trouble).split())
    said = said if len(said) <= _SHOWN else said[: _SHOWN - 3] + "..."
    raise UsageError(f"{settings.model} cannot be loaded; name another {key}.model, a folder or one on the hub ({said})") from trouble


def device_of(settings: LocalModel, key: str) -> torch.device:
    """Where a section wants its model. Raises UsageError for a device that is not there."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(settings.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"{key}.device: {settings.device} is not there; `paras2s doctor` tells what is, and `auto` takes it")
    return device


def dtype_of(settings: LocalModel, device: torch.device) -> torch.dtype | str:
    """What a section wants its weights to be, as `from_pretrained` takes it."""
    if settings.dtype == "auto":
        return "auto" if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


def version_name(model: str, revision: str, commit: str | None = None) -> str:
    """`model@version`, another one when the weights are: the hub's commit; of a folder the recipe's word for it, else a digest of its
    files' names, sizes and times, since weights take long to read.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return f"{model}@{(commit or revision or 'main')[:12]}"
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt", ".jinja"))
    digest = content_key([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files])[:12]
    return f"{folder.resolve().name}@{revision or digest}"
