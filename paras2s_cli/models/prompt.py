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


def spoken_queries(frames: Sequence[np.ndarray], config: SpeechLMConfig, specials: Specials, *, answer_in_text: bool = False) -> Streams:
    """Prompts of spoken queries, left-padded.

    audio: user_start media_begin c1..cn media_end speech_ctd msg_end assistant_start; text: blank everywhere. A model with its own encoder
    hears the continuous features alone, so c1..cn are blank.

    Args:
        frames: per query [F, encoder_features] float32, 50 frames a second.
        answer_in_text: asks for text without speech (speech_ct in the place of speech_ctd).
    """
    counts = [-(-len(f) // 4) for f in frames]
    width = max(counts) + 6
    rows = len(frames)
    audio = torch.full((rows, width), specials.blank)
    valid = torch.zeros(rows, width, dtype=torch.bool)
    continuous = torch.zeros(rows, width, dtype=torch.bool)
    features = torch.zeros(rows, max(counts), 4, config.encoder_features)
    kind = specials.speech_ct if answer_in_text else specials.speech_ctd
    tail = torch.tensor([specials.media_end, kind, specials.msg_end, specials.assistant_start])
    for i, (table, count) in enumerate(zip(frames, counts, strict=True)):
        start = width - count - 6
        audio[i, start], audio[i, start + 1] = specials.user_start, specials.media_begin
        audio[i, -4:] = tail
        valid[i, start:] = True
        continuous[i, start + 2 : start + 2 + count] = True
        flat = features[i].view(-1, config.encoder_features)
        flat[: len(table)] = torch.from_numpy(table)
    text = torch.full_like(audio, specials.blank)
    return Streams(audio, text, valid, continuous, features)


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

    def select(self, rows: Tensor) -> "Answers":
        """Some rows, in the given order."""
        return Answers(self.audio[rows], self.text[rows], self.audio_free[rows], self.text_free[rows])


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
