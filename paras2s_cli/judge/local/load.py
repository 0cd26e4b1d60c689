"""A causal language model and its tokenizer, from a folder or by its name on the hub. No code and no pickle of theirs is run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from paras2s_cli.errors import UsageError
from paras2s_cli.recipe.schema import LocalLM

_SHOWN = 200


def load_lm(settings: LocalLM) -> tuple[Any, Any]:
    """The model, in eval mode on its device with the packed attention of `paras2s_kernels`, and its tokenizer.

    What the hub's cache has is not asked for again. Raises UsageError for a model that is not there, cannot be read or lacks weights,
    and for a device that is not there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from paras2s_kernels.transformers_attention import register_with_transformers

    logging.disable_progress_bar()
    device = _device(settings)
    tokenizer = _read(settings, AutoTokenizer.from_pretrained)
    model, found = _read(
        settings,
        AutoModelForCausalLM.from_pretrained,
        dtype=_dtype(settings, device),
        attn_implementation=register_with_transformers(),
        use_safetensors=True,
        output_loading_info=True,
    )
    if found["missing_keys"]:
        raise UsageError(f"{settings.model} holds no {min(found['missing_keys'])}; name a whole causal language model in score.model")
    return model.to(device).eval(), tokenizer


def _read(settings: LocalLM, from_pretrained: Callable[..., Any], **options: Any) -> Any:
    folder = Path(settings.model).expanduser()
    if not folder.is_dir() and (settings.model.startswith((".", "~", os.sep)) or settings.model.count("/") > 1):
        raise UsageError(f"{settings.model} is no folder; score.model is a folder with config.json and safetensors, or a name on the hub")
    where = str(folder) if folder.is_dir() else settings.model
    trouble: Exception | None = None
    for offline in (True,) if folder.is_dir() else (True, False):
        try:
            return from_pretrained(
                where, revision=settings.revision or "main", trust_remote_code=False, local_files_only=offline, **options
            )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
            trouble = error
    said = " ".join(str(trouble).split())
    said = said if len(said) <= _SHOWN else said[: _SHOWN - 3] + "..."
    raise UsageError(f"{settings.model} cannot be loaded; name another score.model, a folder or one on the hub ({said})") from trouble


def _device(settings: LocalLM) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(settings.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"score.device: {settings.device} is not there; `paras2s doctor` tells what is, and `auto` takes it")
    return device


def _dtype(settings: LocalLM, device: torch.device) -> torch.dtype | str:
    if settings.dtype == "auto":
        return "auto" if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype
