"""What the decode engine is measured beside: loops over positions, and transformers' `generate`.

Loops draw by the engine's own sampler, two tokens a position; `generate` draws one. Prompts are of one length: nothing is padded, and
attention needs no mask.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.prompt import Answers
from paras2s_cli.models.speech_lm import SpeechLM, Streams, causal
from paras2s_cli.rollout.sampling import AUDIO, TEXT, Warp, draw, row_keys

PLAIN = Warp()


class CopiedCache:
    """One layer's keys and values, a copy of the prompt's for every row, read by torch's own attention: in a new tensor for every position
    (growing, a dynamic cache), or in one that has room."""

    def __init__(self, copies: int, room: int, growing: bool) -> None:
        self.copies, self.room, self.growing, self.length = copies, room, growing, 0
        self.keys = self.values = torch.empty(0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if not self.length:
            self.length, room = k.shape[2], 0 if self.growing else self.room
            self.keys, self.values = (F.pad(x.repeat_interleave(self.copies, 0), (0, 0, 0, room)) for x in (k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        if self.growing:
            self.keys, self.values = torch.cat([self.keys, k], 2), torch.cat([self.values, v], 2)
        else:
            self.keys[:, :, self.length], self.values[:, :, self.length] = k[:, :, 0], v[:, :, 0]
        self.length += 1
        seen = slice(0, self.length)
        return F.scaled_dot_product_attention(q, self.keys[:, :, seen], self.values[:, :, seen], enable_gqa=True)


class StaticCache(CopiedCache):
    """The same for steps that are compiled: `at` [1] int64 says where, and all of the room is looked at under a mask. Products of grouped
    heads, which the compiler fuses with what is about them."""

    at: Tensor
    seen: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if not self.length:
            return super().attend(q, k, v, mask)
        self.keys.index_copy_(2, self.at, k)
        self.values.index_copy_(2, self.at, v)
        rows, heads, _, dim = q.shape
        scores = (q.view(rows, k.shape[1], -1, dim) * dim**-0.5) @ self.keys.transpose(-1, -2)
        shares = scores.masked_fill(~self.seen, -torch.inf).softmax(-1, dtype=torch.float32).to(v.dtype)
        return (shares @ self.values).view(rows, heads, 1, dim)


@torch.no_grad()
def cached_loop(
    model: SpeechLM, prompts: Streams, *, group: int, limit: int, cache: str = "static", shared_prefill: bool = True, first: int = 0
) -> Answers:
    """A plain loop, until all answers have ended.

    Args:
        cache: dynamic; static; or compiled, static too and every step one CUDA graph of compiled kernels.
        shared_prefill: a prompt is read once and copied to its rows; else every row reads it. first: the number of the first prompt.
    """
    rows, width, specials, device = len(prompts.audio) * group, prompts.audio.shape[1], model.specials, prompts.audio.device
    copies = group if shared_prefill else 1
    streams = prompts if shared_prefill else prompts.repeat(group)
    positions, mask = causal(streams.valid)
    layers = model.config.num_hidden_layers + model.config.kimia_mimo_layers
    made = partial(StaticCache, growing=False) if cache == "compiled" else partial(CopiedCache, growing=cache == "dynamic")
    caches = [made(copies, limit) for _ in range(layers)]
    hidden = [x[:, -1].repeat_interleave(copies, 0) for x in model.hidden(model.embed(streams), positions, mask, caches)]
    step_of = _compiled_step(model, caches, width, limit) if cache == "compiled" else partial(_step, model, caches)
    heads = model.text_head, model.audio_head
    keys, writing = row_keys(1, first * group + torch.arange(rows, device=device)), torch.ones(rows, dtype=torch.bool, device=device)
    speaking, texts, codes = writing.clone(), [], []
    for step in range(limit):
        column, _ = draw(F.linear(hidden[0], heads[0]), keys, step, TEXT, PLAIN)
        texts.append(torch.where(writing, column, specials.blank))
        writing = writing & (column != specials.text_eos)
        code = torch.full((rows,), specials.blank, device=device)
        if step >= model.config.kimia_mimo_audiodelaytokens:
            code = model.audio_ids[draw(F.linear(hidden[1], heads[1]), keys, step, AUDIO, PLAIN)[0]]
        codes.append(code)
        speaking = speaking & (code != specials.media_end)
        if not speaking.any():
            break
        if step + 1 < limit:
            hidden = step_of(code, texts[-1], torch.full((1,), width + step, device=device))
    audio, text = torch.stack(codes, 1), torch.stack(texts, 1)
    return Answers(audio, text, torch.ones_like(audio, dtype=torch.bool), torch.ones_like(text, dtype=torch.bool))


def _step(model: SpeechLM, caches: list[CopiedCache], code: Tensor, text: Tensor, position: Tensor) -> list[Tensor]:
    x = model.model.embed_tokens(code[:, None]) + model.model.embed_tokens(text[:, None])
    return [x[:, -1] for x in model.hidden(x, position[None].expand(len(x), 1), torch.ones(1, 1, 1, 1, dtype=torch.bool), caches)]


def _compiled_step(model: SpeechLM, caches: list[CopiedCache], width: int, limit: int) -> Callable[..., list[Tensor]]:
    places = torch.arange(width + limit, device=model.lm_head.weight.device)

    def step(code: Tensor, text: Tensor, position: Tensor) -> list[Tensor]:
        for cache in caches:
            assert isinstance(cache, StaticCache)
            cache.at, cache.seen = position, places <= position
        return _step(model, caches, code, text, position)

    compiled = torch.compile(step, mode="reduce-overhead", dynamic=False)
    # a graph's outputs live until its next replay
    return lambda *given: [x.clone() for x in compiled(*given)]


@torch.no_grad()
def loop_without_a_cache(model: SpeechLM, prompts: Streams, *, group: int, limit: int) -> Answers:
    """Every step over all that is there."""
    wide, rows, specials = prompts.repeat(group), len(prompts.audio) * group, model.specials
    audio = text = torch.empty(rows, 0, dtype=torch.int64)
    keys, writing = row_keys(1, torch.arange(rows)), torch.ones(rows, dtype=torch.bool)
    for step in range(limit):
        more = torch.ones_like(audio, dtype=torch.bool)
        streams = Streams(
            torch.cat([wide.audio, audio], 1),
            torch.cat([wide.text, text], 1),
            torch.cat([wide.valid, more], 1),
            torch.cat([wide.continuous, ~more], 1),
            wide.features,
        )
        positions, mask = causal(streams.valid)
        words, sounds = model.hidden(model.embed(streams), positions, mask)
        column, _ = draw(model.text_logits(words[:, -1]), keys, step, TEXT, PLAIN)
        text = torch.cat([text, torch.where(writing, column, specials.blank)[:, None]], 1)
        writing = writing & (column != specials.text_eos)
        code = torch.full((rows,), specials.blank)
        if step >= model.config.kimia_mimo_audiodelaytokens:
            code = model.audio_ids[draw(model.audio_logits(sounds[:, -1]), keys, step, AUDIO, PLAIN)[0]]
        audio = torch.cat([audio, code[:, None]], 1)
    return Answers(audio, text, torch.ones_like(audio, dtype=torch.bool), torch.ones_like(text, dtype=torch.bool))


def transformers_generate(
    config: SpeechLMConfig, device: torch.device, dtype: torch.dtype, cache: str, *, group: int, limit: int
) -> Callable[[Tensor], Tensor]:
    """`generate` of a Qwen2 of the same width, heads and number of layers over the audio codes, with a dynamic or static cache: prompts
    [P, T] int64 -> [P * group, T + limit]."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with device:
        library = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=config.codes,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers + config.kimia_mimo_layers,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.num_key_value_heads,
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=0,
            )
        ).eval()
    torch.set_default_dtype(before)
    named = {} if cache == "dynamic" else {"cache_implementation": cache}

    def generate(prompts: Tensor) -> Tensor:
        drawn: Tensor = library.generate(
            prompts % config.codes,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            top_k=0,
            num_return_sequences=group,
            min_new_tokens=limit,
            max_new_tokens=limit,
            **named,
        )
        assert drawn.shape == (len(prompts) * group, prompts.shape[1] + limit)
        return drawn

    return generate
