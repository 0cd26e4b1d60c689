"""Qwen2.5-Omni's two streams, with gradient: what the thinker writes, and what the talker makes of it.

The talker reads the prompt as the thinker's hidden states plus its embeddings (zero where audio stands), then one position that opens the
text, then, beside its own codes, one token of the reply a position: hidden state plus embedding of each that was written, the end, padding.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paras2s_cli.models.omni import OmniPrompts, QwenOmni
from paras2s_cli.models.prompt import Answers


def run(layers: nn.Module, x: Tensor, valid: Tensor, cache: Any = None) -> Tensor:
    """Hidden states [B, T, D] of the last T positions, x [B, T, D] their inputs; valid [B, S] bool of all S, those in the cache too.

    Speech has one position after the other in all three dimensions of the library's positions.
    """
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)[None, :, -x.shape[1] :].expand(3, -1, -1)
    out = layers(inputs_embeds=x, attention_mask=valid.long(), position_ids=positions, past_key_values=cache, use_cache=cache is not None)
    hidden: Tensor = out.last_hidden_state
    return hidden


@contextmanager
def recomputed(layers: nn.Module) -> Iterator[None]:
    """Within it the library's decoder layers keep nothing for the backward but what they are given. They do so in training mode alone."""
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniDecoderLayer

    found = [layer for layer in layers.modules() if isinstance(layer, Qwen2_5OmniDecoderLayer)]
    modes = [layer.training for layer in found]
    for layer in found:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.gradient_checkpointing = layer.training = True
    try:
        yield
    finally:
        for layer, mode in zip(found, modes, strict=True):
            layer.gradient_checkpointing, layer.training = False, mode


def embed_prompts(omni: QwenOmni, prompts: OmniPrompts) -> Tensor:
    """[P, T, D]: tokens, and the audio encoder's output where a clip stands."""
    thinker = omni.model.thinker
    x: Tensor = thinker.get_input_embeddings()(prompts.ids)
    dtype = thinker.dtype
    heard = thinker.get_audio_features(prompts.mel.to(dtype), feature_attention_mask=prompts.frames.long()).last_hidden_state
    return x.masked_scatter(_audio_at(omni, prompts.ids), heard.to(dtype))


def prompt_for_talker(omni: QwenOmni, ids: Tensor, x: Tensor, hidden: Tensor) -> Tensor:
    """What the talker reads before the reply [P, T + 1, D]. ids: [P, T] int64. x, hidden: [P, T, D], the thinker's inputs and outputs."""
    talker, thinker = omni.model.talker, omni.model.thinker
    begin = torch.tensor(omni.model.speaker_map[omni.speaker]["bos_token"], device=x.device)
    opening = thinker.get_input_embeddings()(begin) + talker.get_input_embeddings()(begin.new_tensor(talker.codec_pad_token))
    return torch.cat([x.masked_fill(_audio_at(omni, ids), 0.0) + hidden, opening.expand(len(x), 1, -1)], 1)


def reply_for_talker(omni: QwenOmni, text: Tensor, hidden: Tensor) -> Tensor:
    """What the talker reads of the reply, [B, L + 2, D]: each token that was written before the end, the end, padding.

    As in the library, a reply has one token at least, and one that was cut off loses its last.

    Args:
        text: [B, L] int64, ends from the end on. hidden: [B, L, D], the thinker's outputs at these tokens.
    """
    talker, embed = omni.model.talker, omni.model.thinker.get_input_embeddings()
    length = text.shape[1]
    ended = torch.isin(text, omni.text_ends)
    written = torch.where(ended.any(1), ended.int().argmax(1), length - 1).clamp(min=1)[:, None]
    place = torch.arange(length + 2, device=text.device)
    end, padding = embed(text.new_tensor([talker.text_eos_token, talker.text_pad_token]))
    said = nn.functional.pad(hidden + embed(text), (0, 0, 0, 2))
    said = torch.where((place < written)[..., None], said, padding)
    return torch.where((place == written)[..., None], end, said)


def codes_for_talker(omni: QwenOmni, reply: Tensor, place: Tensor, codes: Tensor) -> Tensor:
    """The talker's inputs [B, N, D] at places [N] of the answer, from `reply_for_talker` and the codes [B, N] drawn before each."""
    beside = reply[:, place.clamp(max=reply.shape[1] - 1)]
    embedded: Tensor = omni.model.talker.get_input_embeddings()(codes)
    return beside + embedded


def text_logits(omni: QwenOmni, hidden: Tensor) -> Tensor:
    """[N, D] -> [N, V] fp32, -inf at ids that may not be written."""
    return omni.model.thinker.lm_head(hidden).float().masked_fill(omni.text_banned, -torch.inf)


def audio_logits(omni: QwenOmni, hidden: Tensor) -> Tensor:
    """[N, D] -> [N, V] fp32, -inf at ids that cannot be spoken."""
    return omni.model.talker.codec_head(hidden).float().masked_fill(omni.audio_banned, -torch.inf)


def answer_logits(omni: QwenOmni, prompts: OmniPrompts, answers: Answers) -> tuple[Tensor, Tensor]:
    """Logits of the free positions, in their order: text [N, V], audio [M, V'], with gradient. A column is an id.

    Args:
        prompts: as many as there are answers, or a G-th of them: then the G answers to each stand side by side.
    """
    group = len(answers.text) // len(prompts.ids)
    x, valid = embed_prompts(omni, prompts).repeat_interleave(group, 0), prompts.valid.repeat_interleave(group, 0)
    before, length = x.shape[1], answers.text.shape[1]
    embed = omni.model.thinker.get_input_embeddings()
    with _kept(omni, omni.words):
        hidden = run(omni.words, torch.cat([x, embed(answers.text)], 1), nn.functional.pad(valid, (0, length), value=True))
    text = text_logits(omni, hidden[:, before - 1 : -1][answers.text_free])
    if not answers.audio_free.any():
        return text, text.new_zeros(0, len(omni.audio_banned))
    talker, count = omni.model.talker, answers.audio.shape[1]
    opening = prompt_for_talker(omni, prompts.ids.repeat_interleave(group, 0), x, hidden[:, :before])
    reply = reply_for_talker(omni, answers.text, hidden[:, before:])
    fed = torch.cat([torch.full_like(answers.audio[:, :1], talker.codec_bos_token), answers.audio[:, :-1]], 1)
    spoken = codes_for_talker(omni, reply, torch.arange(count, device=x.device), fed)
    states = talker.thinker_to_talker_proj(torch.cat([opening, spoken], 1))
    with _kept(omni, talker.model):
        out = run(talker.model, states, nn.functional.pad(valid, (0, 1 + count), value=True))
    return text, audio_logits(omni, out[:, before + 1 :][answers.audio_free])


def _kept(omni: QwenOmni, layers: nn.Module) -> AbstractContextManager[None]:
    """What the model has layers keep for the backward, where there is to be one."""
    return recomputed(layers) if omni.checkpointing and torch.is_grad_enabled() else nullcontext()


def _audio_at(omni: QwenOmni, ids: Tensor) -> Tensor:
    return (ids == omni.model.config.thinker_config.audio_token_index)[..., None]
