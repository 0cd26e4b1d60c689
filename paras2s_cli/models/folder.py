"""Speech LMs on disk, in the Hugging Face layout: config.json, model.safetensors, tokenizer.json."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from paras2s_cli.errors import UsageError
from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import TextTokenizer


def save_model(folder: Path, model: SpeechLM, tokenizer: TextTokenizer) -> None:
    """Writes the three files into an existing folder."""
    model.config.save(folder / "config.json")
    tokenizer.save(folder / "tokenizer.json")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_model(folder: Path) -> tuple[SpeechLM, TextTokenizer]:
    """Reads a speech LM.

    Raises:
        UsageError: a file is missing or damaged, or tensors are missing, unexpected or of another shape (all are named).
    """
    tokenizer = TextTokenizer.load(folder / "tokenizer.json")
    model = SpeechLM(SpeechLMConfig.load(folder / "config.json"), tokenizer.specials)
    try:
        found = load_file(folder / "model.safetensors")
        found = {name: tensor for name, tensor in found.items() if not name.endswith("rotary_emb.inv_freq")}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{folder / 'model.safetensors'}: cannot be read ({error})") from error
    wanted = model.state_dict()
    faults = [f"missing {name}" for name in wanted.keys() - found.keys()]
    faults += [f"unexpected {name}" for name in found.keys() - wanted.keys()]
    faults += [
        f"{name} is {list(found[name].shape)}, not {list(wanted[name].shape)}"
        for name in wanted.keys() & found.keys()
        if found[name].shape != wanted[name].shape
    ]
    if faults:
        raise UsageError(f"{folder / 'model.safetensors'} does not fit its config.json: {'; '.join(sorted(faults))}")
    model.load_state_dict(found)
    return model, tokenizer


def parameters(model: torch.nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())
