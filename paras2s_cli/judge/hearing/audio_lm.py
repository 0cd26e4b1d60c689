"""Audio language models (Qwen2-Audio's family, Qwen2.5-Omni's thinker) that are asked about sounds and may give a few answers only.

An answer is not sampled: the probabilities of all that are allowed are read off the model, so that they can be compared and added up.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.hearing.loading import load_model
from paras2s_cli.judge.pretrained import version_name
from paras2s_cli.judge.stages import RATE
from paras2s_cli.models.lora import WEIGHTS
from paras2s_cli.recipe.aligning import RewardLM
from paras2s_cli.recipe.judging import AudioLM, EndToEnd

CLASSES = {"qwen2_audio": "Qwen2AudioForConditionalGeneration", "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration"}
SOUND = {"qwen2_audio": ("Audio {}: <|audio_bos|>", "<|audio_eos|>\n"), "qwen2_5_omni": ("<|audio_bos|>", "<|audio_eos|>")}
"""What the chat templates of the families put before and after a sound's tokens."""
BEGIN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
END = "<|im_end|>\n<|im_start|>assistant\n"
SOUND_TOKEN = "<|AUDIO|>"
LONGEST = 30 * RATE
"""Samples that are heard: what is longer than 30 s is heard by its first 30 s."""
_SHORTEST = RATE // 10
"""Less sound than this has no tokens of its own."""


@dataclass(frozen=True)
class Question:
    """What is asked once the sounds were heard, and what may be answered: at least two answers, all different."""

    text: str
    answers: Sequence[str]


class AudioLanguageModel:
    """A model that hears one sound or more, and answers questions about them."""

    def __init__(self, settings: AudioLM | EndToEnd | RewardLM, key: str) -> None:
        """Raises UsageError for a model or an adapter that cannot be loaded. `key`: the recipe's section, for messages."""
        loaded = load_model(settings, key, CLASSES)
        self._model = _with_adapter(loaded.model, settings.adapter, key) if settings.adapter else loaded.model
        self._extractor, self._tokenizer = loaded.extractor, loaded.tokenizer
        self._device, self._dtype = loaded.model.device, loaded.model.dtype
        kind = "qwen2_audio" if self._model.config.model_type == "qwen2_audio" else "qwen2_5_omni"
        self._before, self._after = SOUND[kind]
        self._one_length = kind == "qwen2_audio"  # its encoder takes features of 30 s, and of no other length
        # Logits of all the tokens of a batch would be gigabytes; only the last are read.
        self._model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0][:, -1:],))
        self._asked: dict[str, tuple[list[int], list[list[int]]]] = {}
        self.name = loaded.name + (f" + {version_name(settings.adapter, '')}" if settings.adapter else "")

    @torch.inference_mode()
    def ask(self, sounds: Sequence[Sequence[np.ndarray]], questions: Mapping[str, Question]) -> dict[str, Tensor]:
        """The same questions about each row of sounds. The sounds, which are most of the tokens, go through the model once.

        Args:
            sounds: B rows of as many waves each, mono float32 [T] at RATE.
            questions: by name.

        Returns:
            By the questions' names, probabilities [B, answers] fp32 of the answers among themselves.
        """
        inputs = self._inputs(sounds)
        mask = inputs["attention_mask"]
        heard = self._model(**inputs, position_ids=_positions(mask), use_cache=True).past_key_values
        return {name: self._answer(heard, mask, *self._tokens(question)).cpu() for name, question in questions.items()}

    def _inputs(self, sounds: Sequence[Sequence[np.ndarray]]) -> dict[str, Tensor]:
        """The prompts up to the end of the last sound, padded on the left, and the features of all sounds."""
        waves = [_padded(wave[:LONGEST]) for row in sounds for wave in row]
        # A window of silence after the longest is what the five minutes of padding give that Qwen2.5-Omni's extractor makes by default.
        hop, longest = self._extractor.hop_length, max(map(len, waves)) + self._extractor.n_fft
        length = {} if self._one_length else {"max_length": min(-(-longest // hop) * hop, self._extractor.n_samples)}
        options = {"sampling_rate": RATE, "return_tensors": "pt", "return_attention_mask": True, "padding": "max_length"}
        features = self._extractor(waves, **options, **length)
        # Two convolutions, the second of which halves, and a pooling that does: see the library's processors of both families.
        counts = iter(((((frames - 1) // 2 + 1) - 2) // 2 + 1) for frames in features.attention_mask.sum(-1).tolist())
        texts = []
        for row in sounds:
            parts = [self._before.format(place + 1) + SOUND_TOKEN * next(counts) + self._after for place in range(len(row))]
            # What follows the last sound is tokenised with the question; special tokens are where tokens always part.
            texts.append(BEGIN + "".join(parts).rstrip("\n"))
        tokens = [self._tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        width = max(map(len, tokens))
        ids = torch.tensor([[self._tokenizer.pad_token_id] * (width - len(row)) + row for row in tokens])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in tokens])
        return {
            "input_ids": ids.to(self._device),
            "attention_mask": mask.to(self._device),
            "input_features": features.input_features.to(self._device, self._dtype),
            "feature_attention_mask": features.attention_mask.to(self._device),
        }

    def _answer(self, heard: Any, mask: Tensor, asked: list[int], answers: list[list[int]]) -> Tensor:
        """Probabilities [B, answers]; the cache `heard` is left as it was.

        The log-probability of an answer is the sum of its tokens'. Those of tokens after the first take one more step for each distinct
        beginning.
        """
        first = self._step(heard, mask, asked)
        totals = torch.stack([first[:, answer[0]] for answer in answers], 1)
        for beginning in sorted({tuple(answer[:k]) for answer in answers for k in range(1, len(answer))}):
            after = self._step(heard, mask, list(beginning))
            for column, answer in enumerate(answers):
                if len(answer) > len(beginning) and tuple(answer[: len(beginning)]) == beginning:
                    totals[:, column] += after[:, answer[len(beginning)]]
            heard.crop(-len(beginning))
        heard.crop(-len(asked))
        return totals.softmax(-1)

    def _step(self, heard: Any, mask: Tensor, tokens: list[int]) -> Tensor:
        """Log-probabilities [B, vocabulary] fp32 of what comes after `tokens`, which the cache then holds. mask: [B, T] of the sounds."""
        behind = heard.get_seq_length() - mask.shape[1] + len(tokens)
        whole = torch.cat([mask, mask.new_ones(len(mask), behind)], 1)
        ids = torch.tensor([tokens], device=mask.device).expand(len(mask), -1)
        positions = _positions(whole)[:, -len(tokens) :]
        outputs = self._model(input_ids=ids, attention_mask=whole, position_ids=positions, past_key_values=heard, use_cache=True)
        return outputs.logits[:, -1].float().log_softmax(-1)

    def _tokens(self, question: Question) -> tuple[list[int], list[list[int]]]:
        """The tokens of a question, from the last sound's end on, and of its answers."""
        if question.text not in self._asked:
            text = self._after.removeprefix("<|audio_eos|>") + question.text + END
            asked = self._tokenizer(text, add_special_tokens=False).input_ids
            self._asked[question.text] = asked, answer_tokens(self._tokenizer, question.answers)
        return self._asked[question.text]


def answer_tokens(tokenizer: Any, answers: Sequence[str]) -> list[list[int]]:
    """The tokens of each answer. None is the beginning of another: where it would be, the end of the turn is part of it."""
    plain = [tokenizer(answer, add_special_tokens=False).input_ids for answer in answers]
    return [ids + [tokenizer.eos_token_id] * any(ids == other[: len(ids)] for other in plain if other is not ids) for ids in plain]


def _with_adapter(model: Any, source: str, key: str) -> Any:
    """The model with a LoRA adapter merged into it. Raises UsageError for what is no adapter of this model, or of only a part of it."""
    try:
        from peft import PeftModel
    except ImportError:
        raise UsageError(f"{key}.adapter: {source} needs PEFT to be read; pip install peft") from None
    folder = Path(source).expanduser()
    if not (folder / WEIGHTS).is_file() and (pickle := folder / "adapter_model.bin").is_file():
        raise UsageError(
            f"{key}.adapter: {pickle} is a pickle, which is never read here: if you trust it, `paras2s convert {pickle} {folder / WEIGHTS}`"
            " makes safetensors of it"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of tensors that are wanting: below that is an error
            adapted = PeftModel.from_pretrained(model, str(folder))
            # The library leaves out what does not fit by its name, and tells of it here alone.
            found = adapted.load_adapter(str(folder), "default")
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:300]
        raise UsageError(f"{key}.adapter: {source} is no adapter of this model ({why}); name the folder that PEFT has saved") from error
    if odd := [*found.unexpected_keys, *found.missing_keys]:
        raise UsageError(
            f"{key}.adapter: {source} does not fit this model: {len(found.unexpected_keys)} of its tensors have no place and"
            f" {len(found.missing_keys)} are wanting ({min(odd)}); name an adapter of the model as transformers loads it here"
        )
    return adapted.merge_and_unload()


def _padded(wave: np.ndarray) -> np.ndarray:
    return np.pad(wave, (0, max(0, _SHORTEST - len(wave))))


def _positions(mask: Tensor) -> Tensor:
    """[B, T] of ones where there is something -> the place of each."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)
