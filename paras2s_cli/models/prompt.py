"""Prompts and answers as two aligned streams, laid out as Kimi-Audio lays them out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paras2s_cli.models.cache import Prefix
from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.speech_lm import SpeechLM, Streams, causal
from paras2s_cli.models.tokenizer import Specials

POSITIONS = 1500
"""Positions that Kimi-Audio has for a prompt and its spoken answer: two minutes."""


@dataclass(frozen=True)
class Turn:
    """A query that was answered in speech before the one that is asked now.

    frames: [F, frame_features] float32, 50 a second. codes: [n] int64 of the query, None for a model with its own encoder. text: ids of
    the answer. answer: [m] int64, its codes.
    """

    frames: np.ndarray
    codes: np.ndarray | None
    text: Sequence[int]
    answer: np.ndarray


def spoken_queries(
    frames: Sequence[np.ndarray],
    config: SpeechLMConfig,
    specials: Specials,
    *,
    codes: Sequence[np.ndarray] | None = None,
    history: Sequence[Sequence[Turn]] | None = None,
    answer_in_text: bool = False,
) -> Streams:
    """Prompts of spoken queries, left-padded.

    audio: user_start media_begin c1..cn media_end speech_ctd msg_end assistant_start; text: blank everywhere. A model with its own encoder
    hears the continuous features alone, so c1..cn are blank. A turn before has the same prompt, then blank x delay, the codes of its
    answer, msg_end; beside them stands its text.

    Args:
        frames: per query [F, frame_features] float32, 50 frames a second; of those the first four a code are heard.
        codes: per query [n] int64, 12.5 a second; None for a model with its own encoder.
        history: per query, turns in the order they were taken.
        answer_in_text: asks for text without speech (speech_ct in the place of speech_ctd).
    """
    assert (codes is None) == (config.encoder_features > 0)
    rows = []
    for i, table in enumerate(frames):
        row = _Row(config, specials, specials.speech_ct if answer_in_text else specials.speech_ctd)
        for turn in history[i] if history else ():
            row.ask(turn.frames, turn.codes)
            row.answer(turn.text, turn.answer)
        row.ask(table, None if codes is None else codes[i])
        rows.append(row)
    width, heard = max(len(row.audio) for row in rows), max(sum(row.continuous) for row in rows)
    shape = (len(rows), width)
    audio, text = torch.full(shape, specials.blank), torch.full(shape, specials.blank)
    valid, continuous = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    features = torch.zeros(len(rows), heard, 4, config.frame_features)
    for i, row in enumerate(rows):
        part = slice(width - len(row.audio), width)
        audio[i, part], text[i, part] = torch.tensor(row.audio), torch.tensor(row.text)
        continuous[i, part], valid[i, part] = torch.tensor(row.continuous), True
        tables = torch.cat(row.features)
        features[i, : len(tables)] = tables
    return Streams(audio, text, valid, continuous, features)


def positions_left(prompts: Streams) -> int:
    """Positions that an answer to the longest of some prompts may have."""
    return POSITIONS - int(prompts.valid.sum(1).max())


class _Row:
    """One prompt as it grows: ids of both streams, where the audio stream is continuous, and the features there [n, 4, frame_features]."""

    def __init__(self, config: SpeechLMConfig, specials: Specials, kind: int) -> None:
        self.config, self.specials, self.kind = config, specials, kind
        self.audio: list[int] = []
        self.text: list[int] = []
        self.continuous: list[bool] = []
        self.features: list[Tensor] = []

    def ask(self, frames: np.ndarray, codes: np.ndarray | None) -> None:
        s, count = self.specials, -(-len(frames) // 4) if codes is None else len(codes)
        heard = [s.blank] * count if codes is None else [int(code) + self.config.kimia_token_offset for code in codes]
        self._add([s.user_start, s.media_begin])
        self._add(heard, continuous=True)
        self._add([s.media_end, self.kind, s.msg_end, s.assistant_start])
        table = torch.zeros(count, 4, self.config.frame_features)
        used = torch.from_numpy(frames[: 4 * count])
        table.view(-1, self.config.frame_features)[: len(used)] = used
        self.features.append(table)

    def answer(self, text: Sequence[int], codes: np.ndarray) -> None:
        audio = [self.specials.blank] * self.config.kimia_mimo_audiodelaytokens
        audio += [int(code) + self.config.kimia_token_offset for code in codes]
        audio += [self.specials.blank] * (len(text) - len(audio))
        self._add(audio, text)
        self._add([self.specials.msg_end])

    def _add(self, audio: Sequence[int], text: Sequence[int] = (), continuous: bool = False) -> None:
        self.audio += audio
        self.text += [*text, *[self.specials.blank] * (len(audio) - len(text))]
        self.continuous += [continuous] * len(audio)


@dataclass
class Answers:
    """Answers as streams, right-padded.

    audio, text: [B, L] int64 ids. audio_free, text_free: [B, L] bool, True where the model chose the token: not on padding, nor on
    the audio stream's delay, nor on the blanks after text_eos.
    """

    audio: Tensor
    text: Tensor
    audio_free: Tensor
    text_free: Tensor

    @property
    def valid(self) -> Tensor:
        """[B, L] bool: positions that are part of the answer."""
        free = self.audio_free | self.text_free
        last = free.shape[1] - free.flip(1).int().argmax(1)
        return torch.arange(free.shape[1], device=free.device)[None, :] < last[:, None]

    def select(self, rows: Tensor | slice) -> "Answers":
        """Some rows, in the given order."""
        return Answers(self.audio[rows], self.text[rows], self.audio_free[rows], self.text_free[rows])

    def to(self, device: torch.device | str) -> "Answers":
        """The same on another device."""
        return Answers(self.audio.to(device), self.text.to(device), self.audio_free.to(device), self.text_free.to(device))


def spoken_answers(
    texts: Sequence[Sequence[int]], codes: Sequence[Sequence[int] | np.ndarray | None], config: SpeechLMConfig, specials: Specials
) -> Answers:
    """Demonstrations as training targets.

    audio: blank x delay, codes, media_end; text: tokens, text_eos, blank... Codes of None make an answer in text alone.
    """
    delay, offset = config.kimia_mimo_audiodelaytokens, config.kimia_token_offset
    lengths = [max(len(t) + 1, 0 if c is None else delay + len(c) + 1) for t, c in zip(texts, codes, strict=True)]
    shape = (len(texts), max(lengths))
    audio, text = torch.full(shape, specials.blank), torch.full(shape, specials.blank)
    audio_free, text_free = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for i, (words, spoken) in enumerate(zip(texts, codes, strict=True)):
        text[i, : len(words) + 1] = torch.tensor([*words, specials.text_eos])
        text_free[i, : len(words) + 1] = True
        if spoken is not None:
            end = delay + len(spoken)
            audio[i, delay:end] = torch.as_tensor(np.asarray(spoken)) + offset
            audio[i, end] = specials.media_end
            audio_free[i, delay : end + 1] = True
    return Answers(audio, text, audio_free, text_free)


def codes_of(answers: Answers, config: SpeechLMConfig) -> list[np.ndarray]:
    """The audio codes of each row: int64 arrays, without delay, end tokens and padding."""
    coded = answers.audio_free & (answers.audio >= config.kimia_token_offset)
    return [(row[keep] - config.kimia_token_offset).cpu().numpy() for row, keep in zip(answers.audio, coded, strict=True)]


def answer_hidden(model: SpeechLM, prompts: Streams, answers: Answers) -> tuple[Tensor, Tensor]:
    """Hidden states that predict the answers' positions: text, audio [B, L, D] each, with gradient.

    Args:
        prompts: as many as there are answers, or a G-th of them: then each is read once for the G answers to it, which stand side by
            side.
    """
    group = len(answers.audio) // len(prompts.audio)
    positions, mask = causal(prompts.valid)
    prefix = [Prefix() for _ in range(model.config.num_hidden_layers + model.config.kimia_mimo_layers)]
    before = model.hidden(model.embed(prompts), positions, mask, prefix)
    # the last position predicts nothing
    x = model.model.embed_tokens(answers.audio[:, :-1]) + model.model.embed_tokens(answers.text[:, :-1])
    length = x.shape[1]
    first = (positions[:, -1] + 1).repeat_interleave(group)[:, None]
    look = torch.ones(length, length, dtype=torch.bool, device=x.device).tril().expand(len(x), -1, -1)
    seen = prompts.valid.repeat_interleave(group, 0)[:, None].expand(-1, length, -1)
    spread = prefix if group == 1 else [layer.spread(group) for layer in prefix]
    after = model.hidden(x, first + torch.arange(length, device=x.device), torch.cat([seen, look], 2)[:, None], spread)
    text, audio = (torch.cat([b[:, -1:].repeat_interleave(group, 0), a], 1) for b, a in zip(before, after, strict=True))
    return text, audio
