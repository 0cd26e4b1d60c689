"""The shared cache: prompts stored once, rows of uneven lengths, and rows that move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_lm import random_frames, tiny_model

from paras2s_cli.models.cache import Prefix
from paras2s_cli.models.prompt import spoken_queries
from paras2s_cli.models.speech_lm import SpeechLM, Streams, causal
from paras2s_cli.rollout.cache import SharedCache
from paras2s_cli.rollout.decode import decode
from paras2s_cli.rollout.products import AsTheyAre, Packed, Products

LIMIT = 6
ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def filled(model: SpeechLM, prompts: Streams, slots: int, rows: int, order: torch.Tensor | None) -> SharedCache:
    """Prompts prefilled into the last places."""
    config = model.config
    cache = SharedCache(config, slots, prompts.audio.shape[1] + 3, rows, LIMIT, torch.float32, torch.device("cpu"))
    layers = [Prefix() for _ in range(cache.layers)]
    positions, mask = causal(prompts.valid)
    model.hidden(model.embed(prompts), positions, mask, layers)
    cache.store_prompts(torch.arange(slots - len(prompts.audio), slots), layers, positions[:, -1] + 1, order)
    return cache


def whole(model: SpeechLM, prompts: Streams, prompt: int, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the last position of a prompt and these ids on both streams, without a cache."""
    keep = prompts.valid[prompt]
    one = Streams(*(x[prompt : prompt + 1] for x in (prompts.audio, prompts.text, prompts.valid, prompts.continuous)), None)
    assert prompts.features is not None
    one.features = prompts.features[prompt : prompt + 1]
    x = model.embed(one)[:, keep]
    tail = torch.tensor([ids])
    x = torch.cat([x, model.model.embed_tokens(tail) + model.model.embed_tokens(tail)], 1)
    text, audio = model.hidden(x, *causal(torch.ones(1, x.shape[1], dtype=torch.bool)))
    return model.text_logits(text[0, -1]), model.audio_logits(audio[0, -1])


def as_they_are(model: SpeechLM) -> Products:
    return AsTheyAre(model, 60)


def packed(model: SpeechLM) -> Products:
    return Packed(model, 7, 60)


@pytest.mark.parametrize("made", [as_they_are, pytest.param(packed, marks=ONEDNN)])
@torch.no_grad()
def test_rows_at_different_positions_that_move_see_their_own_past(made: Callable[[SpeechLM], Products]) -> None:
    model = tiny_model()
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.RMSNorm)):
        norm.weight.uniform_(0.5, 1.5)
        norm.eps = 0.01
    products = made(model)
    prompts = spoken_queries(random_frames([22, 9, 33]), model.config, model.specials)
    cache = filled(model, prompts, slots=5, rows=7, order=products.order)
    prompt_of = [0, 2, 2, 1, 0, 1, 2]
    cache.open(slice(0, 7), torch.tensor(prompt_of) + 2)
    past: list[list[int]] = [[] for _ in prompt_of]
    rows, generator = list(range(7)), torch.Generator().manual_seed(0)
    lengths = positions = causal(prompts.valid)[0][:, -1] + 1

    def feed() -> None:
        ids = torch.randint(0, 60, (len(rows),), generator=generator)
        positions = torch.tensor([int(lengths[prompt_of[r]]) + len(past[r]) for r in rows])
        x = model.model.embed_tokens(ids) + model.model.embed_tokens(ids)
        text, audio = decode(model.config, products, x, products.turns(positions), cache.step(len(rows), 5))
        assert text is not None
        for place, row in enumerate(rows):
            past[row].append(int(ids[place]))
            words, sounds = whole(model, prompts, prompt_of[row], past[row])
            torch.testing.assert_close(text[place], words, atol=2e-5, rtol=0)
            torch.testing.assert_close(audio[place], sounds, atol=2e-5, rtol=0)

    assert int(positions.max()) > int(positions.min())
    feed()
    feed()
    for gone in (1, 4):
        kept = torch.tensor([i for i, row in enumerate(rows) if row != gone])
        cache.keep(kept)
        rows = [rows[i] for i in kept]
        feed()
    # a new row, where an old one stood
    rows.append(7)
    past.append([])
    prompt_of.append(0)
    cache.open(slice(len(rows) - 1, len(rows)), torch.tensor([2]))
    feed()
    feed()
    assert sorted(len(past[r]) for r in rows) == [2, 6, 6, 6, 6, 6]


def test_a_group_owns_its_answers_only() -> None:
    """8 answers to a prompt of 512 positions: 8 suffixes and one prefix."""
    config = tiny_model().config
    shared = SharedCache(config, 4, 512, 32, 200, torch.float32, torch.device("meta"))
    stored = shared.prefix.numel() + shared.suffix.numel()
    number = 2 * (config.num_hidden_layers + config.kimia_mimo_layers) * config.num_key_value_heads * config.head_dim
    assert stored == number * (4 * 512 + 32 * 200) < 0.4 * number * 32 * (512 + 200)
