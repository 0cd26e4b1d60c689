"""Qwen2.5-Omni scored slowly: one row at a time, in float64, by the library's own forward, which is fed one code after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paras2s_cli.models.omni import OmniPrompts
from paras2s_cli.rollout.sampling import Sampling, Warp


def warped(logits: Tensor, banned: Tensor, warp: Warp) -> Tensor:
    """Log-probabilities [V] after temperature, top k and top p, by sorting."""
    logits = logits.double().masked_fill(banned, -torch.inf) / (warp.temperature or 1.0)
    if warp.top_k:
        logits[logits.argsort(descending=True)[warp.top_k :]] = -torch.inf
    if warp.top_p < 1:
        order = logits.argsort(descending=True)
        before = logits[order].softmax(-1).cumsum(-1) - logits[order].softmax(-1)
        logits[order[before >= warp.top_p]] = -torch.inf
    return logits.log_softmax(-1)


def score(
    model: Any,
    speaker: str,
    prompts: OmniPrompts,
    row: int,
    text: list[int],
    codes: list[int],
    sampling: Sampling,
    banned: tuple[Tensor, Tensor],
) -> tuple[list[float], list[float]]:
    """Log-probabilities of one row's text and codes, each with the end that it drew. model: the library's, in float64."""
    thinker, talker = model.thinker, model.talker
    ids = prompts.ids[row][prompts.valid[row]]
    mel = prompts.mel[row : row + 1].double()
    whole = torch.cat([ids, torch.tensor(text)])[None]
    out = thinker(
        input_ids=whole,
        attention_mask=torch.ones_like(whole),
        input_features=mel,
        feature_attention_mask=prompts.frames[row : row + 1].long(),
        output_hidden_states=True,
    )
    written = [float(warped(out.logits[0, len(ids) - 1 + i], banned[0], sampling.text)[token]) for i, token in enumerate(text)]
    embedded, hidden = out.hidden_states[0].clone(), out.hidden_states[-1]
    embedded[0, : len(ids)][ids == model.config.thinker_config.audio_token_index] = 0
    mind, words = embedded + hidden, len(text) - 1  # of the last token nothing is known
    special = model.thinker.get_input_embeddings()(
        torch.tensor([model.speaker_map[speaker]["bos_token"], talker.text_eos_token, talker.text_pad_token])
    )
    begin = torch.cat([mind[0, : len(ids)], special[:1], mind[0, len(ids) : len(ids) + 1]])[None]
    rest = torch.cat([mind[0, len(ids) + 1 : len(ids) + words], special[1:]])[None]
    place = torch.zeros(1, len(ids) + 2, dtype=torch.long)
    step = talker(
        input_ids=place,
        input_text_ids=place,
        inputs_embeds=begin.clone(),
        thinker_reply_part=rest,
        attention_mask=place + 1,
        use_cache=True,
    )
    spoken = []
    for i, code in enumerate(codes):
        spoken.append(float(warped(step.logits[0, -1], banned[1], sampling.audio)[code]))
        step = talker(
            input_ids=torch.tensor([[code]]),
            attention_mask=torch.ones(1, len(ids) + 3 + i, dtype=torch.long),
            thinker_reply_part=step.thinker_reply_part,
            past_key_values=step.past_key_values,
            use_cache=True,
        )
    return written, spoken
