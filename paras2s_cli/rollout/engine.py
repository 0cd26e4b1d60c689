"""The decode loop: prompts are prefilled once, every group shares that work, and each step feeds one position of both streams."""

from dataclasses import dataclass

import torch
from torch import Tensor

from paras2s_cli.models.prompt import Answers
from paras2s_cli.models.speech_lm import SpeechLM, Streams, causal
from paras2s_cli.rollout.sampling import Sampling, draw, uniforms

TEXT, AUDIO = 0, 1


@dataclass
class Rollouts:
    """Sampled answers: rows of one prompt stand side by side. Log-probabilities are [B, L] fp32, 0 where a token was forced.

    ended: [B] bool, False where the answer was cut off at the limit.
    """

    answers: Answers
    text_logprobs: Tensor
    audio_logprobs: Tensor
    ended: Tensor


@torch.no_grad()
def rollout(model: SpeechLM, prompts: Streams, *, group: int, sampling: Sampling, seed: int, row_ids: Tensor, limit: int) -> Rollouts:
    """Samples `group` answers to each of P prompts.

    Args:
        row_ids: [P * group] int64, the identity of each answer: the draw depends on (seed, row id, step) only.
        limit: positions an answer may have at most.
    """
    specials, delay = model.specials, model.config.kimia_mimo_audiodelaytokens
    width, rows = prompts.audio.shape[1], len(prompts.audio) * group
    device = prompts.audio.device
    positions, mask = causal(prompts.valid)
    caches = model.caches(len(prompts.audio), width)
    text_hidden, audio_hidden = model.hidden(model.embed(prompts), positions, mask, caches)
    text_hidden = text_hidden[:, -1:].repeat_interleave(group, 0)
    audio_hidden = audio_hidden[:, -1:].repeat_interleave(group, 0)
    caches = [cache.spread(group, width + limit) for cache in caches]
    seen = torch.cat([prompts.valid, torch.ones(len(prompts.audio), limit, dtype=torch.bool, device=device)], 1)
    seen = seen.repeat_interleave(group, 0)[:, None, None]  # [B, 1, 1, S]
    position = (positions[:, -1] + 1).repeat_interleave(group)

    out = Answers(
        torch.full((rows, limit), specials.blank, device=device),
        torch.full((rows, limit), specials.blank, device=device),
        torch.zeros(rows, limit, dtype=torch.bool, device=device),
        torch.zeros(rows, limit, dtype=torch.bool, device=device),
    )
    text_logprobs, audio_logprobs = torch.zeros(rows, limit, device=device), torch.zeros(rows, limit, device=device)
    writing = torch.ones(rows, dtype=torch.bool, device=device)
    speaking = torch.ones(rows, dtype=torch.bool, device=device)
    steps = limit
    for step in range(limit):
        columns, logprobs = draw(model.text_logits(text_hidden[:, 0]), uniforms(seed, row_ids, step, TEXT), sampling.temperature, 0)
        free = writing & speaking
        out.text[:, step] = torch.where(free, columns, specials.blank)
        out.text_free[:, step] = free
        text_logprobs[:, step] = logprobs * free
        writing &= columns != specials.text_eos
        if step >= delay:
            columns, logprobs = draw(
                model.audio_logits(audio_hidden[:, 0]),
                uniforms(seed, row_ids, step, AUDIO),
                sampling.temperature,
                sampling.audio_top_k,
            )
            out.audio[:, step] = torch.where(speaking, model.audio_ids[columns], specials.blank)
            out.audio_free[:, step] = speaking
            audio_logprobs[:, step] = logprobs * speaking
            speaking = speaking & (columns < model.config.codes)
        if not speaking.any():
            steps = step + 1
            break
        if step + 1 < limit:
            x = model.model.embed_tokens(out.audio[:, step : step + 1]) + model.model.embed_tokens(out.text[:, step : step + 1])
            here = seen[..., : width + step + 1]
            text_hidden, audio_hidden = model.hidden(x, (position + step)[:, None], here, caches)
    cut = Answers(out.audio[:, :steps], out.text[:, :steps], out.audio_free[:, :steps], out.text_free[:, :steps])
    return Rollouts(cut, text_logprobs[:, :steps], audio_logprobs[:, :steps], ~speaking)
