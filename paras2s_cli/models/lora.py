"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on a speech LM or a part of another model, through peft."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from paras2s_cli.errors import UsageError
from paras2s_cli.models.speech_lm import SpeechLM

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The products of a layer. Embeddings and heads are none: the decode engine reads their weights as they are."""


class Adapter(nn.Module):
    """The adapter that was put on a model, which is changed in place and used as before. Its parameters are those of both, its
    state dict is the adapter alone, under the names that peft gives it in a file."""

    def __init__(self, model: nn.Module, adapted: Any) -> None:
        super().__init__()
        self.model = model
        self._peft = [adapted]  # in a list: it holds the model a second time

    @property
    def adapted(self) -> Any:
        """peft's own view of the two."""
        return self._peft[0]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the model is as it was."""
        with self.adapted.disable_adapter():
            yield

    def thaw(self) -> None:
        """Lets the adapter be trained, and it alone."""
        for name, weight in self.model.named_parameters():
            weight.requires_grad_("lora_" in name)

    def merge(self) -> None:
        """Adds the adapter to the model's weights, rounded to their dtype, and takes it off."""
        self.adapted.merge_and_unload()
        self.model.requires_grad_(True)

    def save(self, folder: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors, which name the folder that the model was read from."""
        assert getattr(self.model, "name_or_path", ""), "the model was read from a folder"
        self.adapted.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The adapter alone."""
        from peft import get_peft_model_state_dict

        return dict(get_peft_model_state_dict(self.adapted, save_embedding_layers=False))

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Raises KeyError when tensors of the adapter are missing or of no use."""
        from peft import set_peft_model_state_dict

        if wrong := self.state_dict().keys() ^ state_dict.keys():
            raise KeyError(", ".join(sorted(wrong)))
        return set_peft_model_state_dict(self.adapted, dict(state_dict))


def check_peft() -> None:
    """Raises UsageError when peft is not installed."""
    if find_spec("peft") is None:
        raise UsageError("lora needs the package peft, which is not installed: pip install 'paras2s[lora]'")


def add_lora(model: nn.Module, *, r: int, alpha: float, dropout: float, targets: Sequence[str], seed: int, within: str = "") -> Adapter:
    """Freezes a model and puts a fresh adapter of rank r, which changes nothing yet, on products of all layers.

    Args:
        alpha: what it adds is scaled by alpha / r. dropout: of what it is given, while the model is in training.
        within: the only part of the model whose layers have one, by its name.

    Raises:
        UsageError: peft is not installed.
    """
    check_peft()
    from peft import LoraConfig, get_peft_model

    found = rf"{re.escape(within)}\..*\.({'|'.join(sorted(targets))})" if within else sorted(targets)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=found)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is to go
        torch.manual_seed(seed)
        return Adapter(model, get_peft_model(model, config))


def base_of(folder: Path) -> Path:
    """The folder of the model that an adapter's folder was made on. Raises UsageError when the file says none, or it is gone."""
    base = _read_config(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not Path(base).is_dir():
        raise UsageError(f"{folder / CONFIG}: base_model_name_or_path is {json.dumps(base)}, which is no folder here: write where it is")
    return Path(base)


def load_lora(folder: Path, model: SpeechLM) -> Adapter:
    """Puts a saved adapter on the model that it was made on.

    Raises:
        UsageError: peft is not installed, or a file is missing, damaged, or no LoRA of a layer's products.
    """
    check_peft()
    from peft import LoraConfig, get_peft_model

    found = _read_config(folder)
    targets = found.get("target_modules")
    if (
        found.get("peft_type") != "LORA"
        or not isinstance(targets, list)
        or not set(targets) <= set(TARGETS)
        or found.get("modules_to_save")
    ):
        raise UsageError(f"{folder / CONFIG}: not an adapter that fits: ours is LORA with target_modules among {', '.join(TARGETS)}")
    path = folder / WEIGHTS
    try:
        config = LoraConfig.from_pretrained(str(folder))
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UsageError(f"{path}: no adapter can be read ({error}); copy it again") from error
    adapter = Adapter(model, get_peft_model(model, config))
    try:
        adapter.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        raise UsageError(f"{path} does not fit its {CONFIG} or the model: {error}") from error
    return adapter


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not the config of an adapter ({error})") from error
    return found
