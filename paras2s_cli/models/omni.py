"""Qwen2.5-Omni (arXiv 2503.20215) through transformers: a thinker that hears and writes, a talker that turns what the thinker has in mind
into codec tokens, and token2wav, which makes them sound."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from paras2s_cli.errors import UsageError
from paras2s_cli.models.hub import local_folder
from paras2s_cli.models.prompt import Answers
from paras2s_cli.models.weights import refuse_pickles

MODEL_TYPE = "qwen2_5_omni"
RATE = 24000
"""Hz of what it says; 480 samples a code."""
HEARD_RATE = 16000
SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and visual inputs, "
    "as well as generating text and speech."
)
"""The system message it was trained to speak under; under another it may answer in text that its talker was not trained on."""
Part = Literal["talker", "thinker", "both"]
_AUDIO = "<|AUDIO|>"
_VOICES = "spk_dict.pt"
_BESIDE = ("*.json", "*.txt", "*.jinja", _VOICES)
"""Files of a checkpoint other than its weights."""


@dataclass
class OmniPrompts:
    """Spoken queries, left-padded.

    ids: [P, T] int64. valid: [P, T] bool, False on padding. mel: [P, 128, F] float32, 100 frames a second. frames: [P, F] bool, False on
    its padding.
    """

    ids: Tensor
    valid: Tensor
    mel: Tensor
    frames: Tensor

    def select(self, rows: Tensor | slice) -> "OmniPrompts":
        """Some rows, in the given order."""
        return self._each(lambda t: t[rows])

    def to(self, device: torch.device | str) -> "OmniPrompts":
        """The same on another device."""
        return self._each(lambda t: t.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "OmniPrompts":
        return OmniPrompts(change(self.ids), change(self.valid), change(self.mel), change(self.frames))


class QwenOmni:
    """The library's model with what it takes to ask it and to hear it.

    The library's own processor wants image and video packages that speech has no need of; its tokenizer, its feature extractor and its
    chat template are read one by one.

    Attributes:
        model: `Qwen2_5OmniForConditionalGeneration`.
        codes: how many codec ids token2wav can speak.
        text_ends, audio_ends: ids that end a stream.
        text_banned [V], audio_banned [V]: bool, ids that no stream may draw: placeholders of what is heard or seen; codec ids that are
            neither spoken nor an end.
        checkpointing: what layers hold for the backward is computed again instead of kept, as in the speech LM.
    """

    checkpointing = False

    def __init__(self, folder: Path, model: Any, speaker: str) -> None:
        from transformers import AutoFeatureExtractor, AutoTokenizer

        self.folder, self.model, self.speaker = folder, model, speaker
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.extractor = AutoFeatureExtractor.from_pretrained(folder)
        self.template = _template(folder)
        thinker, talker = model.config.thinker_config, model.config.talker_config
        self.codes = int(model.config.token2wav_config.dit_config.num_embeds)
        self.text_ends = torch.tensor([self.tokenizer.eos_token_id], device=model.device)
        self.audio_ends = torch.tensor([talker.tts_codec_pad_token_id, talker.tts_codec_end_token_id], device=model.device)
        self.text_banned = torch.zeros(thinker.text_config.vocab_size, dtype=torch.bool, device=model.device)
        self.text_banned[[thinker.audio_token_index, thinker.image_token_index, thinker.video_token_index]] = True
        self.audio_banned = torch.arange(talker.vocab_size, device=model.device) >= self.codes
        self.audio_banned[self.audio_ends] = False

    @classmethod
    def load(
        cls, source: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None, speaker: str | None = None
    ) -> "QwenOmni":
        """Reads a folder or, where `source` is none, the repository of that name on the Hugging Face hub.

        Args:
            device: None is the GPU where there is one.
            dtype: of thinker and talker; None keeps that of the files. token2wav is float32, as the library has it.
            speaker: a voice of spk_dict.pt; None takes the first. The library reads that file with `weights_only`, which runs no code.

        Raises:
            UsageError: there is no such folder or repository, a file is missing or damaged, or there is no such voice.
        """
        folder = local_folder(source)
        model_type = read_model_type(folder)
        if model_type != MODEL_TYPE:
            raise UsageError(f"{folder / 'config.json'}: model_type is {model_type!r}, not {MODEL_TYPE!r}")
        model = _read(folder, dtype or "auto")
        if not model.has_talker:
            raise UsageError(f"{folder / 'config.json'}: enable_audio_output is false, so there is no talker to answer in speech")
        speaker = speaker or next(iter(model.speaker_map), "")
        if speaker not in model.speaker_map:
            raise UsageError(f"{folder / _VOICES} has no voice {speaker!r}: it has {', '.join(model.speaker_map)}")
        model.token2wav.float()
        try:
            return cls(folder, model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), speaker)
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = str(error).splitlines()[0]
            raise UsageError(f"{folder}: its tokenizer, extractor or chat template cannot be read ({said}); download it again") from error

    def save(self, folder: Path) -> None:
        """Writes the model into an existing folder: its weights and config by the library, the other files as they were read."""
        for file in (file for pattern in _BESIDE for file in self.folder.glob(pattern)):
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
        self.model.save_pretrained(folder)

    def learn(self, part: Part | None) -> list[nn.Module]:
        """Lets gradients reach the talker, the thinker's language model, both or nothing, and returns what they reach. What hears, sees or
        sounds never learns."""
        self.model.requires_grad_(False)
        learning = learning_parts(self.model, part)
        for module in learning:
            module.requires_grad_(True)
        return learning

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def words(self) -> nn.Module:
        """The thinker's layers; the library has moved them between its versions."""
        return _words(self.model)

    def prompt(self, waves: Sequence[np.ndarray]) -> OmniPrompts:
        """Queries, asked under `SYSTEM` and the folder's chat template. waves: float32 [S] at 16 kHz, each at least 30 ms."""
        # Clips are padded to the longest and one window of silence more: what the published five minutes of padding give, sooner.
        longest = max(map(len, waves)) + self.extractor.n_fft
        heard = self.extractor(
            list(waves),
            sampling_rate=HEARD_RATE,
            padding="max_length",
            max_length=-(-longest // self.extractor.hop_length) * self.extractor.hop_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        counts = [audio_tokens(int(n)) for n in heard["attention_mask"].sum(1)]
        said = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            {"role": "user", "content": [{"type": "audio", "audio": ""}]},
        ]
        asked = self.tokenizer.apply_chat_template(said, chat_template=self.template, tokenize=False, add_generation_prompt=True)
        texts = [asked.replace(_AUDIO, _AUDIO * n) for n in counts]
        tokens = self.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        frames = heard["attention_mask"].bool()
        return OmniPrompts(tokens["input_ids"], tokens["attention_mask"].bool(), heard["input_features"], frames).to(self.device)

    def written(self, ids: Tensor) -> str:
        """The text of a stream [L] up to its end."""
        ended = torch.isin(ids, self.text_ends.to(ids.device)).int()
        length = int(ended.argmax()) if ended.any() else len(ids)
        return str(self.tokenizer.decode(ids[:length].tolist(), skip_special_tokens=True))

    def answers(self, texts: Sequence[str], codes: Sequence[np.ndarray | None]) -> Answers:
        """Demonstrations as training targets: tokens and their end, codes and theirs; codes of None train the thinker alone.

        The library makes sound of codes and not codes of sound: those of a recorded answer have to be given.
        """
        written = [[*self.tokenizer(text, add_special_tokens=False)["input_ids"], int(self.text_ends[-1])] for text in texts]
        spoken = [[] if row is None else [*row.tolist(), int(self.audio_ends[-1])] for row in codes]
        (text, text_free), (audio, audio_free) = (
            _table(rows, int(ends[-1]), self.device) for rows, ends in ((written, self.text_ends), (spoken, self.audio_ends))
        )
        return Answers(audio, text, audio_free, text_free)

    def codes_of(self, answers: Answers) -> list[np.ndarray]:
        """The codes of each answer that token2wav can speak: int64 arrays, without ends and padding."""
        spoken = answers.audio_free & (answers.audio < self.codes)
        return [row[keep].cpu().numpy() for row, keep in zip(answers.audio, spoken, strict=True)]

    @torch.no_grad()
    def speak(self, codes: Sequence[np.ndarray], seeds: Sequence[int]) -> list[np.ndarray]:
        """Codes, int64 [N] each, to sound: float32 [480 N] at 24 kHz. token2wav starts from noise, a row's from its seed alone."""
        voice = self.model.speaker_map[self.speaker]
        place: dict[str, Any] = {"device": self.device, "dtype": torch.float32}
        said = []
        for row, seed in zip(codes, seeds, strict=True):
            if not len(row):
                said.append(np.zeros(0, dtype=np.float32))
                continue
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(seed)
                ids = torch.as_tensor(row, device=self.device)[None]
                wave = self.model.token2wav(ids, conditioning=voice["cond"].to(**place), reference_mel=voice["ref_mel"].to(**place))
            said.append(wave.flatten().float().cpu().numpy())
        return said


def learning_parts(model: Any, part: Part | None) -> list[nn.Module]:
    """What learns of the library's model: the talker, the thinker's language model, both or nothing."""
    talker = [model.talker] if part in ("talker", "both") else []
    return [*talker, *([_words(model), model.thinker.lm_head] if part in ("thinker", "both") else [])]


def _words(model: Any) -> nn.Module:
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerTextModel

    return next(m for m in model.thinker.modules() if isinstance(m, Qwen2_5OmniThinkerTextModel))


def _table(rows: Sequence[Sequence[int]], filling: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids as one table [B, L], at least one column wide, and where they are [B, L] bool."""
    width = max(1, *map(len, rows))
    ids = torch.tensor([[*row, *[filling] * (width - len(row))] for row in rows], device=device)
    return ids, torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows], device=device)


def audio_tokens(frames: int) -> int:
    """Positions that a clip of so many mel frames has in a prompt: two strides of two."""
    return ((frames - 1) // 2 - 1) // 2 + 1


def read_model_type(folder: Path) -> str:
    """What config.json says the model in a folder is. Raises UsageError when there is no such file, or it says nothing."""
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not the config of a model ({error!r}); name the folder of a checkpoint") from error


def _read(folder: Path, dtype: torch.dtype | str) -> Any:
    """The library's model. Where a tensor is missing the library makes one up and warns; here that is an error."""
    from transformers import Qwen2_5OmniForConditionalGeneration as Model
    from transformers.utils import logging

    # it warns of every id that its talker shares with its thinker, too
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not any(folder.glob("*.safetensors")):
        refuse_pickles(folder, (".bin",))  # beside which the voices' file is one too
    try:
        # past the class's own method, which cannot say what was missing, and reads the voices as below
        model, found = super(Model, Model).from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
        model.load_speakers(folder / _VOICES)
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise UsageError(f"{folder} cannot be read as Qwen2.5-Omni ({str(error).splitlines()[0]}); download it again") from error
    faults = [f"{what} {name}" for what in ("missing", "unexpected") for name in sorted(found[f"{what}_keys"])]
    faults += [f"{name} is {list(held)}, not {list(wanted)}" for name, held, wanted in sorted(found["mismatched_keys"])]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UsageError(f"{folder} does not fit its config.json: {', '.join(faults[:5])}{more}; download it again")
    return model


def _template(folder: Path) -> str | None:
    """The chat template beside a model; None where the tokenizer's own settings hold it."""
    for path in (folder / "chat_template.jinja", folder / "chat_template.json"):
        if path.exists():
            text = path.read_text(encoding="utf-8")
            return text if path.suffix == ".jinja" else str(json.loads(text)["chat_template"])
    return None
