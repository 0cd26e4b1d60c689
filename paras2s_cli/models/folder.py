"""Speech LMs on disk, in the Hugging Face layout: config.json, safetensors, the tokenizer's files."""

from pathlib import Path

import torch

from paras2s_cli.errors import UsageError
from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.hearing import find_hearing
from paras2s_cli.models.layers import rotary_rates
from paras2s_cli.models.lora import CONFIG, base_of, load_lora
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import NAMES, TextTokenizer
from paras2s_cli.models.weights import Layout, read_weights, write_weights


def save_model(folder: Path, model: SpeechLM, tokenizer: TextTokenizer) -> None:
    """Writes a speech LM into an existing folder, in the files that it was read from; a new one in three. What it hears with is not
    copied: the folder says where it is."""
    model.config.save(folder / "config.json")
    tokenizer.save(folder)
    write_weights(folder, model.state_dict(), model.layout)
    if model.hearing is not None:
        model.hearing.save(folder)


def load_model(folder: Path, device: torch.device | str | None = None) -> tuple[SpeechLM, TextTokenizer]:
    """Reads a speech LM, a small one of ours or Kimi-Audio as it is published, whose names are the names here.

    Of an adapter's folder it reads the model that the adapter was made on, and merges the two.

    Args:
        device: where the weights go, one tensor at a time; they keep the dtype of the file. None is the GPU where there is one, for a
            model that hears recordings; a small one stays on the CPU, where its world and its judge are.

    Raises:
        UsageError: a file is missing, damaged or another model's, or tensors are missing, unexpected or of another shape (all are named).
    """
    if (folder / CONFIG).exists():
        model, tokenizer = load_model(base_of(folder), device)
        load_lora(folder, model).merge()
        model.name_or_path = str(folder.resolve())
        return model, tokenizer
    config = SpeechLMConfig.load(folder / "config.json")
    if device is None:
        device = "cuda" if torch.cuda.is_available() and not config.encoder_features else "cpu"
    tokenizer = TextTokenizer.load(folder)
    _check_tokens(folder / "config.json", config, tokenizer)
    with torch.device("meta"):
        model = SpeechLM(config, tokenizer.specials)
    model.layout = read_weights(folder, model, device, _is_rotary)
    _check_rotary(folder / "config.json", config, model.layout)
    model.name_or_path = str(folder.resolve())
    model.hearing = find_hearing(folder, config, device, model.lm_head.weight.dtype)
    return model.to(device), tokenizer


def parameters(model: torch.nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())


def _is_rotary(name: str) -> bool:
    """The published checkpoint has the rates of the rotary positions in every layer; here they are computed."""
    return name.endswith("rotary_emb.inv_freq")


def _check_rotary(path: Path, config: SpeechLMConfig, layout: Layout) -> None:
    wanted = rotary_rates(config.head_dim, config.rope_theta)
    for name, found in layout.spare.items():
        # they may have been rounded to bf16
        if found.shape != wanted.shape or not torch.allclose(found.float(), wanted, rtol=1e-2, atol=0.0):
            raise UsageError(f"{path}: rope_theta {config.rope_theta:g} is not that of the checkpoint, whose {name} differs")


def _check_tokens(path: Path, config: SpeechLMConfig, tokenizer: TextTokenizer) -> None:
    for key, name in NAMES.items():
        given, found = config.published.get(f"kimia_{key}"), getattr(tokenizer.specials, key)
        if given not in (None, found):
            raise UsageError(f"{path}: kimia_{key} is {given}, but the tokenizer's {name} is {found}: they are not of one checkpoint")
    if tokenizer.size > config.kimia_token_offset:
        raise UsageError(f"{path}: kimia_token_offset is {config.kimia_token_offset}, but the tokenizer has {tokenizer.size} tokens")
