"""Answers sampled from Qwen2.5-Omni. Each step is the library's forward with its cache; what is drawn, and from what, is decided here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from paras2s_cli.models.omni import OmniPrompts, QwenOmni
from paras2s_cli.models.omni_streams import (
    audio_logits,
    codes_for_talker,
    embed_prompts,
    prompt_for_talker,
    reply_for_talker,
    run,
    text_logits,
)
from paras2s_cli.models.prompt import Answers
from paras2s_cli.rollout.engine import Rollouts
from paras2s_cli.rollout.sampling import AUDIO, TEXT, Sampling, Warp, draw, row_keys

QWEN_OMNI = Sampling(temperature=0.9, audio_top_k=40, audio_top_p=0.8, text_temperature=0.0)
"""What the library takes by default, but for the talker's repetition penalty of 1.05. Reinforcement learning has to draw the text too."""

BATCH = 128
"""Rows at a time at most: each has a copy of its prompt's keys and values."""


@torch.no_grad()
def rollout_omni(
    omni: QwenOmni,
    prompts: OmniPrompts,
    *,
    group: int,
    sampling: Sampling,
    seed: int,
    row_ids: Tensor,
    limit: int,
    batch: int = BATCH,
) -> Rollouts:
    """Samples `group` answers to each of P prompts. A row's random numbers depend on (seed, row id, step, stream) alone; its logits change
    in their last bits with the batch that it rides in.

    Args:
        row_ids: [P * group] int64, the identity of each answer.
        limit: tokens that each stream may have at most. An answer has ended when both streams have.
        batch: rows in flight at most; a whole group is.
    """
    keys, some = row_keys(seed, row_ids.to(omni.device)), max(1, batch // group)
    texts, audios = [], []
    for i in range(0, len(prompts.ids), some):
        text, audio = _answer(omni, prompts.select(slice(i, i + some)), group, sampling, keys[i * group : (i + some) * group], limit)
        texts.append(text)
        audios.append(audio)
    text, audio = _stack(texts, omni.text_ends[-1]), _stack(audios, omni.audio_ends[-1])
    return Rollouts(Answers(audio.ids, text.ids, audio.free, text.free), text.logprobs, audio.logprobs, text.ended & audio.ended)


@dataclass
class _Stream:
    """One stream's ids, whether they were drawn and their log-probabilities, [B, L] each; ended [B]."""

    ids: Tensor
    free: Tensor
    logprobs: Tensor
    ended: Tensor


def _answer(omni: QwenOmni, prompts: OmniPrompts, group: int, sampling: Sampling, keys: Tensor, limit: int) -> tuple[_Stream, _Stream]:
    """Text and audio of a batch. A prompt is read once for its group, by the thinker and by the talker."""
    from transformers import DynamicCache

    talker, embed = omni.model.talker, omni.model.thinker.get_input_embeddings()
    x, cache = embed_prompts(omni, prompts), DynamicCache()
    hidden = run(omni.words, x, prompts.valid, cache)
    cache.batch_repeat_interleave(group)
    valid = prompts.valid.repeat_interleave(group, 0)
    states: list[Tensor] = []

    def think(step: int, drawn: Tensor) -> Tensor:
        states.append(run(omni.words, embed(drawn)[:, None], F.pad(valid, (0, step), value=True), cache))
        return text_logits(omni, states[-1][:, 0])

    text = _draw(text_logits(omni, hidden[:, -1]).repeat_interleave(group, 0), think, omni.text_ends, keys, TEXT, sampling.text, limit)
    if not states:  # the talker hears of the first token in any case
        think(1, text.ids[:, 0])

    opening = prompt_for_talker(omni, prompts.ids, x, hidden)
    read, spoken = F.pad(prompts.valid, (0, 1), value=True), DynamicCache()
    run(talker.model, talker.thinker_to_talker_proj(opening), read, spoken)
    spoken.batch_repeat_interleave(group)
    read = read.repeat_interleave(group, 0)
    known = torch.cat(states, 1)
    # the last token was drawn and not read
    reply = reply_for_talker(omni, text.ids, F.pad(known, (0, 0, 0, text.ids.shape[1] - known.shape[1])))

    def talk(step: int, drawn: Tensor) -> Tensor:
        fed = codes_for_talker(omni, reply, torch.tensor([step], device=reply.device), drawn[:, None])
        seen = F.pad(read, (0, step + 1), value=True)
        return audio_logits(omni, run(talker.model, talker.thinker_to_talker_proj(fed), seen, spoken)[:, 0])

    first = talk(0, torch.full_like(keys, talker.codec_bos_token))
    return text, _draw(first, talk, omni.audio_ends, keys, AUDIO, sampling.audio, limit)


def _draw(
    logits: Tensor, step: Callable[[int, Tensor], Tensor], ends: Tensor, keys: Tensor, stream: int, warp: Warp, limit: int
) -> _Stream:
    """Draws from logits [B, V], then from those of each step, which gets its number and what was drawn last, until all rows have ended."""
    ids: list[Tensor] = []
    free: list[Tensor] = []
    logprobs: list[Tensor] = []
    alive = torch.ones_like(keys, dtype=torch.bool)
    for place in range(limit):
        if place:
            logits = step(place, ids[-1])
        drawn, logprob = draw(logits, keys, place, stream, warp)
        ids.append(torch.where(alive, drawn, ends[-1]))
        free.append(alive)
        logprobs.append(logprob * alive)
        alive = alive & ~torch.isin(drawn, ends)
        if not alive.any():
            break
    return _Stream(torch.stack(ids, 1), torch.stack(free, 1), torch.stack(logprobs, 1), ~alive)


def _stack(parts: Sequence[_Stream], end: Tensor) -> _Stream:
    """Batches of one stream, as wide as the widest."""
    width = max(part.ids.shape[1] for part in parts)
    pads = [(0, width - part.ids.shape[1]) for part in parts]
    return _Stream(
        torch.cat([F.pad(part.ids, pad, value=int(end)) for part, pad in zip(parts, pads, strict=True)]),
        torch.cat([F.pad(part.free, pad) for part, pad in zip(parts, pads, strict=True)]),
        torch.cat([F.pad(part.logprobs, pad) for part, pad in zip(parts, pads, strict=True)]),
        torch.cat([part.ended for part in parts]),
    )
