"""The first stage by Whisper (arXiv 2212.04356): every 30 s by itself, so that nothing carries over and all of them are one batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paras2s_cli.errors import UsageError
from paras2s_cli.judge.hearing.loading import load_model
from paras2s_cli.judge.hearing.pieces import cut
from paras2s_cli.judge.stages import RATE, Heard, Span
from paras2s_cli.recipe.judging import Whisper

_NO_SPEECH, _UNSURE = 0.6, -1.0
"""A piece is silent where the model says so with this probability and is this unsure of its words (section 4.5 of the paper)."""


class WhisperTranscriber:
    """A Whisper model as the first stage of the judge."""

    def __init__(self, settings: Whisper) -> None:
        """Raises UsageError for a model that cannot be loaded, or does not know the language."""
        loaded = load_model(settings, "transcribe", {"whisper": "WhisperForConditionalGeneration"})
        self._model, self._device, self._dtype = loaded.model, loaded.model.device, loaded.model.dtype
        self._extractor, self._tokenizer = loaded.extractor, loaded.tokenizer
        self._batch = settings.batch
        config = self._model.generation_config
        self._times = settings.times
        if settings.times == "word" and getattr(config, "alignment_heads", None) is None:
            self._times = "segment"
        if self._times == "word":
            self._model.set_attn_implementation("eager")  # the others keep their attention to themselves
        self._speaks: dict[str, str] = {}
        languages = getattr(config, "lang_to_id", None) if getattr(config, "is_multilingual", False) else None
        if languages is not None:
            self._speaks = {"task": "transcribe"} | ({"language": settings.language} if settings.language else {})
        if settings.language and f"<|{settings.language}|>" not in (languages or ("<|en|>",)):
            raise UsageError(f"transcribe.language: {settings.model} does not know '{settings.language}'; write a code such as en")
        # What every sequence opens with: the start, language and task, and that no times follow.
        self._opening = 1 + 2 * (languages is not None) + (self._times != "segment")
        self.name = f"whisper {loaded.name} {settings.language or 'any'} {self._times}"

    @torch.inference_mode()
    def transcribe(self, waves: Sequence[np.ndarray]) -> list[Heard]:
        """Mono float32 at RATE, each of any length -> the words, and when they are said."""
        pieces = [(row, start, piece) for row, wave in enumerate(waves) for start, piece in cut(wave, self._extractor.n_samples)]
        texts: list[list[str]] = [[] for _ in waves]
        spans: list[list[Span]] = [[] for _ in waves]
        for place in range(0, len(pieces), self._batch):
            some = pieces[place : place + self._batch]
            for (row, start, _), (text, found) in zip(some, self._hear([piece for _, _, piece in some]), strict=True):
                texts[row].append(text)
                spans[row] += [Span(word, begin + start / RATE, end + start / RATE) for word, begin, end in found]
        whole = [" ".join(text for text in some if text) for some in texts]
        return [
            Heard(text, False, spans=tuple(times)) if text else Heard("", False, False, "noise")
            for text, times in zip(whole, spans, strict=True)
        ]

    def _hear(self, pieces: Sequence[np.ndarray]) -> list[tuple[str, list[Span]]]:
        """Pieces of at most 30 s -> the text of each, and its times from the piece's start on."""
        inputs = self._extractor(list(pieces), sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
        encoded = self._model.get_encoder()(inputs.input_features.to(self._device, self._dtype))
        # Without force_unique_generate_call the library goes on in the padding behind a model's last time.
        written = self._model.generate(
            encoder_outputs=encoded,
            attention_mask=inputs.attention_mask.to(self._device),
            return_timestamps=self._times == "segment",
            force_unique_generate_call=True,
            num_beams=1,
            **self._speaks,
        )
        rows = [self._trim(row) for row in written.tolist()]
        outputs = self._model(encoder_outputs=encoded, decoder_input_ids=self._pad(rows), output_attentions=self._times == "word")
        found: list[tuple[str, list[Span]]] = []
        for place, row in enumerate(rows):
            if self._is_silent(outputs.logits[place, : len(row)].float().log_softmax(-1), row):
                found.append(("", []))
                continue
            ends = self._ends(outputs, place, len(row), inputs.attention_mask[place].sum()) if self._times == "word" else []
            found.append(self._read(row, ends))
        return found

    def _trim(self, row: list[int]) -> list[int]:
        """A sequence without the end and the padding behind it."""
        ends = (self._model.generation_config.eos_token_id, self._model.generation_config.pad_token_id)
        return row[: next((i for i in range(self._opening, len(row)) if row[i] in ends), len(row))]

    def _pad(self, rows: Sequence[list[int]]) -> Tensor:
        padded = torch.full((len(rows), max(map(len, rows))), self._model.generation_config.eos_token_id)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = torch.tensor(row)
        return padded.to(self._device)

    def _is_silent(self, logprobs: Tensor, row: list[int]) -> bool:
        """logprobs: [len(row), vocabulary] of what comes after each token of a sequence."""
        config = self._model.generation_config
        said = torch.tensor([*row[self._opening :], config.eos_token_id], device=logprobs.device)
        sure = logprobs[self._opening - 1 :].gather(1, said[:, None]).mean()
        # The token for no speech is the one before that for no times; it is asked for right after the start.
        return bool(logprobs[0, config.no_timestamps_token_id - 1].exp() > _NO_SPEECH and sure < _UNSURE)

    def _ends(self, outputs: Any, place: int, length: int, frames: Tensor) -> list[float]:
        """Seconds at which each token after the opening ends, by the library's time warping of the alignment heads' attention.

        One sequence at a time and without the padding: the library's own batch lets longer neighbours into the normalisation.
        """
        from transformers.utils import ModelOutput

        layers = tuple(layer[place : place + 1, :, :length] for layer in outputs.cross_attentions)
        alone = ModelOutput(cross_attentions=(layers,), sequences=torch.zeros(1, length))
        heads = self._model.generation_config.alignment_heads
        ends = self._model._extract_token_timestamps(alone, heads, num_frames=frames[None], num_input_ids=self._opening)
        return [float(end) for end in ends[0, self._opening : length]]

    def _read(self, row: list[int], ends: list[float]) -> tuple[str, list[Span]]:
        """A sequence -> its text and times. Ids from the end's on are no text."""
        from transformers.models.whisper.tokenization_whisper import LANGUAGES, _combine_tokens_into_words

        config, body = self._model.generation_config, row[self._opening :]
        kept = [i for i, token in enumerate(body) if token < config.eos_token_id]
        tokens = [body[i] for i in kept]
        text = self._tokenizer.decode(tokens).strip()
        if self._times == "word" and tokens:
            language = LANGUAGES.get(self._tokenizer.decode([row[1]])[2:-2], "english")
            words, _, parts = _combine_tokens_into_words(self._tokenizer, tokens, language)
            begins = [0.0, *ends]
            spans = [
                Span(word.strip(), begins[kept[part[0]]], ends[kept[part[-1]]])
                for word, part in zip(words, parts, strict=True)
                if word.strip()
            ]
            return text, spans
        return text, self._segments(body) if self._times == "segment" else []

    def _segments(self, body: list[int]) -> list[Span]:
        """The text between each two times. Ids after the one for no times are times, 0.02 s apart."""
        config = self._model.generation_config
        spans, begin, run = [], 0.0, list[int]()
        for token in body:
            if token > config.no_timestamps_token_id:
                second = 0.02 * (token - config.no_timestamps_token_id - 1)
                if text := self._tokenizer.decode(run).strip():
                    spans.append(Span(text, begin, second))
                begin, run = second, []
            elif token < config.eos_token_id:
                run.append(token)
        return spans
