"""The second stage by an audio language model that is asked how a voice sounds, and may answer with one of a few words only.

The question forbids judging by the words (ParaS2S, arXiv 2511.08723: such models read the mood off them). The answer is not sampled: the
probabilities of all allowed answers are read off the model, so that they can be compared and added up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paras2s_cli.data.cache import content_key
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.hearing.loading import load_model, name_of
from paras2s_cli.judge.stages import RATE, Toned
from paras2s_cli.recipe.schema import AudioLM

CLASSES = {
    "qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
}
LONGEST = 30 * RATE
"""Samples that are heard: what is longer than 30 s is judged by its first 30 s."""
DEAF = "Go by the sound of the voice alone: its pitch, loudness, pace and quality. What the words say is no evidence: any words can be said in any way."
QUESTIONS = {
    "tone": f"In which tone does the speaker speak? {DEAF} Answer with one of these and nothing else: {{}}.",
    "age": f"Is the speaker an adult or a child? {DEAF} Answer with one of these and nothing else: {{}}.",
    "sex": f"Is the speaker male or female? {DEAF} Answer with one of these and nothing else: {{}}.",
}
AGES, SEXES = ("adult", "child"), ("male", "female")


@dataclass(frozen=True)
class Question:
    """The tokens that come after the sound, and the tokens of each answer. No answer is the beginning of another."""

    asked: list[int]
    answers: list[list[int]]


class AudioLMDescriber:
    """An audio language model as the second stage of the judge."""

    def __init__(self, settings: AudioLM) -> None:
        """Raises UsageError for a model or an adapter that cannot be loaded."""
        loaded = load_model(settings, "tone", CLASSES)
        self._processor = loaded.processor
        self._processor.tokenizer.padding_side = "left"
        self._model = with_adapter(loaded.model, settings.adapter) if settings.adapter else loaded.model
        self._device, self._dtype = loaded.device, loaded.dtype
        # The logits of a whole batch of sounds would be gigabytes; only the last are ever read.
        self._model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0][:, -1:],))
        self._batch = settings.batch
        self._tones = {"query": settings.query_tones, "answer": settings.answer_tones}
        adapter = f" + {name_of(settings.adapter, None)}" if settings.adapter else ""
        self.name = f"audio-lm {loaded.name}{adapter} {content_key(self._tones, QUESTIONS)[:8]}"

    @torch.inference_mode()
    def describe(self, waves: Sequence[np.ndarray], role: str) -> list[Toned]:
        """See `judge.stages.Describer`. Who speaks is asked of queries only: an answer's voice is the system's."""
        answers = {"tone": self._tones[role]} | ({"age": AGES, "sex": SEXES} if role == "query" else {})
        order = sorted(range(len(waves)), key=lambda i: len(waves[i]))  # batches of like length
        found: dict[int, Toned] = {}
        for place in range(0, len(order), self._batch):
            rows = order[place : place + self._batch]
            tables = self._ask([waves[i][:LONGEST] for i in rows], answers)
            for at, row in enumerate(rows):
                told = {what: dict(zip(answers[what], table[at].tolist(), strict=True)) for what, table in tables.items()}
                found[row] = Toned(told["tone"], told.get("age", {}), told.get("sex", {}))
        return [found[i] for i in range(len(waves))]

    def _ask(self, waves: Sequence[np.ndarray], answers: dict[str, Sequence[str]]) -> dict[str, Tensor]:
        """Probabilities [B, answers] for each question. The sounds, which are most of the tokens, go through the model once."""
        opening, _ = self._prompt("")
        inputs = self._processor(text=[opening] * len(waves), audio=list(waves), sampling_rate=RATE, return_tensors="pt", padding=True)
        inputs = inputs.to(self._device, self._dtype)
        mask = inputs["attention_mask"]
        sounds = self._model(**inputs, position_ids=_positions(mask), use_cache=True).past_key_values
        return {what: self._answer(sounds, mask, self._question(what, tuple(words))) for what, words in answers.items()}

    def _answer(self, sounds: Any, mask: Tensor, question: Question) -> Tensor:
        """Probabilities [B, answers] of the answers among themselves; `sounds` is left as it was.

        The log-probability of an answer is the sum of its tokens'; those of tokens after the first are found by one more step for
        each distinct beginning.
        """
        at = len(question.asked)
        first = self._step(sounds, mask, question.asked)
        totals = torch.stack([first[:, answer[0]] for answer in question.answers], 1)
        beginnings = {tuple(answer[:k]) for answer in question.answers for k in range(1, len(answer))}
        for beginning in sorted(beginnings):
            after = self._step(sounds, mask, list(beginning))
            for column, answer in enumerate(question.answers):
                if len(answer) > len(beginning) and tuple(answer[: len(beginning)]) == beginning:
                    totals[:, column] += after[:, answer[len(beginning)]]
            sounds.crop(-len(beginning))
        sounds.crop(-at)
        return totals.softmax(-1)

    def _step(self, cache: Any, mask: Tensor, tokens: list[int]) -> Tensor:
        """Log-probabilities [B, vocabulary] fp32 of what comes after `tokens`, which are put to the cache. mask: [B, T] of the sounds."""
        new = mask.new_ones(len(mask), cache.get_seq_length() - mask.shape[1] + len(tokens))
        whole = torch.cat([mask, new], 1)
        ids = torch.tensor([tokens], device=mask.device).expand(len(mask), -1)
        positions = _positions(whole)[:, -len(tokens) :]
        outputs = self._model(input_ids=ids, attention_mask=whole, position_ids=positions, past_key_values=cache, use_cache=True)
        return outputs.logits[:, -1].float().log_softmax(-1)

    @cache  # noqa: B019  (one describer a process)
    def _question(self, what: str, answers: tuple[str, ...]) -> Question:
        tokenizer = self._processor.tokenizer
        _, asked = self._prompt(QUESTIONS[what].format(", ".join(answers)))
        return Question(tokenizer(asked, add_special_tokens=False).input_ids, answer_tokens(tokenizer, answers))

    def _prompt(self, question: str) -> tuple[str, str]:
        """What comes up to the end of the sound, and what comes after it."""
        content = [{"type": "audio", "audio": ""}, {"type": "text", "text": question}]
        text = self._processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        end = self._processor.audio_eos_token
        before, _, after = text.partition(end)
        return before + end, after


def answer_tokens(tokenizer: Any, answers: Sequence[str]) -> list[list[int]]:
    """The tokens of each answer; an answer that is the beginning of another ends with the end of the turn."""
    plain = [tokenizer(answer, add_special_tokens=False).input_ids for answer in answers]
    return [ids + [tokenizer.eos_token_id] * any(ids == other[: len(ids)] for other in plain if other is not ids) for ids in plain]


def with_adapter(model: Any, folder: str) -> Any:
    """The model with a LoRA adapter merged into it. Raises UsageError for what is no adapter of this model."""
    try:
        from peft import PeftModel
    except ImportError:
        raise UsageError(f"tone.adapter: {folder} needs PEFT to be read: pip install peft") from None
    try:
        return PeftModel.from_pretrained(model, folder).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:300]
        raise UsageError(f"tone.adapter: {folder} is no adapter of this model ({why}); name the folder that PEFT has saved") from error


def _positions(mask: Tensor) -> Tensor:
    """[B, T] of ones where there is something -> the place of each."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)
