"""The voice in a folder of Kimi-Audio: audio_detokenizer/ and vocoder/, as published but for the weights, which are safetensors."""

from pathlib import Path

import torch
from torch import Tensor, nn

from paras2s_cli.errors import UsageError
from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.voice.config import load_flow_config, load_vocoder_config
from paras2s_cli.models.voice.flow import Chunking, Flow
from paras2s_cli.models.voice.vocoder import Vocoder
from paras2s_cli.models.voice.voice import Voice
from paras2s_cli.models.weights import read_weights

FLOW, VOCODER = "audio_detokenizer", "vocoder"


def load_voice(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, chunking: Chunking | None = None
) -> Voice:
    """The voice of the speech LM in the same folder.

    Args:
        dtype: of weights and mel frames; None keeps that of the files. The published code runs in bf16.

    Raises:
        UsageError: a file is missing, damaged, a pickle or another model's; tensors are missing, unexpected or of another shape (all
            are named); or the parts are not of one checkpoint.
    """
    for part in (FLOW, VOCODER):
        if not (folder / part).is_dir():
            raise UsageError(f"{folder} has no {part}/, so that it has no voice; download that folder of the checkpoint too")
    flow_config, vocoder_config = load_flow_config(folder / FLOW / "config.yaml"), load_vocoder_config(folder / VOCODER / "config.json")
    spoken, heard = SpeechLMConfig.load(folder / "config.json").codes, flow_config.model.dit.semantic_vocab_size
    if spoken != heard:
        raise UsageError(f"{folder}: the speech LM has {spoken} audio codes, but {FLOW}/config.yaml says semantic_vocab_size {heard}")
    if flow_config.model.dit.input_size != vocoder_config.num_mels:
        raise UsageError(f"{folder}: {FLOW}/ has {flow_config.model.dit.input_size} mel bins, but {VOCODER}/ {vocoder_config.num_mels}")
    with torch.device("meta"):
        flow, vocoder = Flow(flow_config, chunking or Chunking()), Vocoder(vocoder_config)
    # the published file has more in it than the DiT
    read_weights(folder / FLOW, flow, device, is_foreign=lambda name: not name.startswith("speech_model."))
    _divide(vocoder)
    read_weights(folder / VOCODER, vocoder, device)
    _multiply(vocoder)
    for network in (flow, vocoder):
        network.requires_grad_(False).eval().to(dtype=dtype)
    return Voice(flow, vocoder)


def _convolutions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)]


def _divide(model: nn.Module) -> None:
    """Weights of convolutions as they are stored: length and direction of each first index (weight norm, arXiv 1602.07868)."""
    for conv in _convolutions(model):
        weight = conv.weight
        assert isinstance(weight, Tensor)
        del conv.weight
        conv.weight_g, conv.weight_v = nn.Parameter(weight[:, :1, :1].clone()), nn.Parameter(weight)


def _multiply(model: nn.Module) -> None:
    """Weights of convolutions as they are used."""
    for conv in _convolutions(model):
        length, direction = conv.weight_g, conv.weight_v
        assert isinstance(length, Tensor) and isinstance(direction, Tensor)
        del conv.weight_g, conv.weight_v
        conv.weight = nn.Parameter(direction * (length / direction.float().norm(dim=(1, 2), keepdim=True)).to(direction.dtype))
