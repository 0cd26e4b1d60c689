"""Models, and what prepares their inputs, in the layout of the transformers library, from a folder or by a hub's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paras2s_cli.data.cache import content_key
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.stages import RATE
from paras2s_cli.recipe.schema import LocalModel

_LOADED = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, ImportError)
"""What the library raises for a folder that holds something else, in part, or nothing."""


@dataclass(frozen=True)
class Loaded:
    """A model in its place, what makes features of sound and tokens of text for it, and a name that is another one when the weights are."""

    model: Any
    extractor: Any
    tokenizer: Any
    name: str

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype


def load_model(settings: LocalModel, key: str, classes: Mapping[str, str]) -> Loaded:
    """The model that a recipe's section names, for inference.

    Args:
        key: the section's, for messages.
        classes: the classes of the transformers library that may be loaded, by `model_type` in config.json.

    Raises:
        UsageError: there is no such model, or it is another kind of one, or not whole.
    """
    import transformers

    # What the library tells is for programmers; what a user has to know is raised below.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    where = {"revision": settings.revision} if settings.revision else {}
    try:
        config = transformers.AutoConfig.from_pretrained(settings.model, trust_remote_code=False, **where)
        if config.model_type not in classes:
            raise UsageError(f"{key}.model: {settings.model} is a model of type '{config.model_type}', and not {' or '.join(classes)}")
        kind = getattr(transformers, classes[config.model_type])
        # No AutoProcessor: that of Qwen2.5-Omni wants packages for images.
        extractor = transformers.AutoFeatureExtractor.from_pretrained(settings.model, trust_remote_code=False, **where)
        tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model, trust_remote_code=False, **where)
        model, report = kind.from_pretrained(
            settings.model, dtype=dtype_of(settings), use_safetensors=True, output_loading_info=True, **where
        )
    except _LOADED as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"{key}.model: {settings.model} cannot be loaded ({why[:300]}); name a folder that is whole, or a hub's"
        ) from error
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise UsageError(f"{key}.model: {settings.model} lacks {len(report['missing_keys'])} of its weights ({some}); download it again")
    if extractor.sampling_rate != RATE:
        raise UsageError(
            f"{key}.model: {settings.model} hears at {extractor.sampling_rate} Hz, and the judge at {RATE} Hz; choose another model"
        )
    name = name_of(settings.model, getattr(config, "_commit_hash", None))
    return Loaded(model.to(device_of(settings, key)).eval(), extractor, tokenizer, name)


def device_of(settings: LocalModel, key: str) -> torch.device:
    """Where a section wants its model. Raises UsageError for a device that is not there."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(settings.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"{key}.device: '{settings.device}' cannot be used here ({str(error).splitlines()[0]}); write auto") from None
    return device


def dtype_of(settings: LocalModel) -> torch.dtype:
    """The precision that a section wants."""
    if settings.precision == "auto":
        on_gpu = settings.device.startswith("cuda") or (settings.device == "auto" and torch.cuda.is_available())
        return torch.bfloat16 if on_gpu else torch.float32
    return torch.bfloat16 if settings.precision == "bf16" else torch.float32


def name_of(model: str, commit: str | None) -> str:
    """`model@version`: the commit of a hub's; of a folder a digest of its files' names, sizes and times: weights take long to read."""
    folder = Path(model)
    if not folder.is_dir():
        return f"{model}@{(commit or 'unknown')[:12]}"
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt", ".jinja"))
    return f"{folder.resolve().name}@{content_key([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files])[:12]}"
