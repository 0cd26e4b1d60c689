"""How Kimi-Audio hears: the codes of the speech tokenizer, and beside them the features of Whisper's encoder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from paras2s_cli.errors import UsageError
from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.log_mel import HOP, chunks_of, log_mel
from paras2s_cli.models.speech_tokenizer import SpeechTokenizer, load_speech_tokenizer
from paras2s_cli.models.voice.folder import FLOW
from paras2s_cli.models.weights import read_weights

PLACES = "hearing.json"
"""Where a checkpoint that lacks these folders says where they are."""
WHISPER = "whisper-large-v3"
SPEECH_TOKENIZER = "glm-4-voice-tokenizer"
BATCH = 8
"""Chunks that Whisper encodes at a time; each takes the time of 30 s."""


@dataclass(frozen=True)
class Heard:
    """An utterance as Kimi-Audio hears it. codes: [n] int64, 12.5 a second. frames: [4 n, frame_features] float32, 50 a second."""

    codes: np.ndarray
    frames: np.ndarray


@dataclass
class Hearing:
    """Two frozen encoders, read when they are first needed.

    Attributes:
        whisper, speech_tokenizer: the folders they are read from. voice: that which the voice's folders are in. dtype: of Whisper's
            weights; the tokenizer keeps that of its file.
    """

    whisper: Path
    speech_tokenizer: Path
    voice: Path
    config: SpeechLMConfig
    device: torch.device
    dtype: torch.dtype

    def __deepcopy__(self, memo: object) -> "Hearing":
        return self  # a copy of the model hears with the same

    def hear(self, waves: Sequence[np.ndarray]) -> list[Heard]:
        """Hears utterances, [T] float32 each, 16 kHz, not empty; every 30 s by themselves.

        Raises:
            UsageError: a folder is missing, damaged or another model's.
        """
        codes = self.encode(waves)
        frames = chunks_of(waves, self.encoder.config.max_source_positions * 2 * HOP, BATCH, self._features)
        return [Heard(*pair) for pair in zip(codes, frames, strict=True)]

    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The codes alone, as an answer's are."""
        return self.tokenizer.encode(waves)

    @cached_property
    def tokenizer(self) -> SpeechTokenizer:
        """The speech tokenizer."""
        if not self.speech_tokenizer.is_dir():
            raise UsageError(
                f"{self.speech_tokenizer}: there is no speech tokenizer, without which Kimi-Audio cannot hear: download "
                f"THUDM/{SPEECH_TOKENIZER} to there, or name its folder in {PLACES}"
            )
        model = load_speech_tokenizer(self.speech_tokenizer, self.device)
        if model.config.quantize_vocab_size != self.config.codes:
            raise UsageError(
                f"{self.speech_tokenizer} has {model.config.quantize_vocab_size} codes and the speech LM {self.config.codes}: "
                "they do not belong together"
            )
        return model

    @cached_property
    def encoder(self) -> Any:
        """Whisper's encoder."""
        encoder = _load_encoder(self.whisper, self.device, self.dtype)
        width, positions = encoder.config.d_model, encoder.config.max_source_positions
        if (width, positions) != (self.config.frame_features, self.tokenizer.config.max_source_positions):
            raise UsageError(
                f"{self.whisper} has {width} features of {positions} frames; the speech LM wants {self.config.frame_features} and the "
                f"speech tokenizer {self.tokenizer.config.max_source_positions}: they do not belong together"
            )
        return encoder

    @torch.no_grad()
    def _features(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        config, samples = self.encoder.config, self.tokenizer.config.samples
        tables = [log_mel(wave, config.num_mel_bins, config.max_source_positions * 2 * HOP) for wave in waves]
        mel = torch.from_numpy(np.stack(tables)).to(self.device, self.dtype)
        frames = self.encoder(mel).last_hidden_state.float().cpu().numpy()
        return [row[: 4 * -(-len(wave) // samples)] for row, wave in zip(frames, waves, strict=True)]

    def save(self, folder: Path) -> None:
        """Says in a folder where these and the voice are: they are not copied. Without a Whisper there is nothing to say."""
        if not self.whisper.is_dir():
            return
        places = {name: str(getattr(self, name).absolute()) for name in ("whisper", "speech_tokenizer", "voice")}
        (folder / PLACES).write_text(json.dumps(places, indent=2) + "\n", encoding="utf-8")


def find_hearing(folder: Path, config: SpeechLMConfig, device: torch.device | str, dtype: torch.dtype) -> Hearing | None:
    """What a checkpoint hears with; None for a model with its own encoder.

    Whisper is within the folder and the speech tokenizer within or beside it, unless hearing.json says otherwise (`whisper`,
    `speech_tokenizer`, and `voice` for the folder of audio_detokenizer/ and vocoder/: paths that may start at the folder).

    Raises:
        UsageError: hearing.json is damaged.
    """
    if config.encoder_features:
        return None
    inside, beside = folder / SPEECH_TOKENIZER, folder.absolute().parent / SPEECH_TOKENIZER
    whisper, tokenizer, voice = folder / WHISPER, inside if inside.is_dir() else beside, folder
    path = folder / PLACES
    if path.exists():
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            whisper, tokenizer = folder / said.get("whisper", whisper), folder / said.get("speech_tokenizer", tokenizer)
            voice = folder / said.get("voice", folder if (folder / FLOW).is_dir() else whisper.parent)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UsageError(f"{path}: not the paths of whisper, speech_tokenizer and voice ({error})") from error
    return Hearing(whisper, tokenizer, voice, config, torch.device(device), dtype)


def _load_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The encoder of a Whisper in transformers' layout; its decoder is left where it is."""
    if not (folder / "config.json").exists():
        raise UsageError(f"{folder}: there is no Whisper, without which Kimi-Audio cannot hear: download the checkpoint again")
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    try:
        config = WhisperConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{folder / 'config.json'}: not the config of a Whisper ({str(error).splitlines()[0]})") from error
    with torch.device("meta"):
        published, encoder = nn.Module(), WhisperEncoder(config)
    published.model = nn.Module()
    published.model.encoder = encoder
    read_weights(folder, published, device, lambda name: False, lambda name: not name.startswith("model.encoder."))
    return encoder.to(device, dtype).eval().requires_grad_(False)
