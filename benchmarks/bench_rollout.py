"""Rollouts at pocket size: the engine beside a plain loop without a cache, on the same weights and the same draws.

    pytest benchmarks/bench_rollout.py --benchmark-only -s

Weights are random: only the shapes matter to the time. 8 prompts x 8 answers of 36 positions after prompts of 42.
"""

import time

import numpy as np
import pytest
import torch

from paras2s_cli.models.prompt import Answers, spoken_queries
from paras2s_cli.models.small import new_model, word_tokenizer
from paras2s_cli.models.speech_lm import SpeechLM, Streams, causal
from paras2s_cli.rollout.engine import AUDIO, TEXT, rollout
from paras2s_cli.rollout.sampling import Sampling, draw, uniforms

PROMPTS, GROUP, LIMIT, FEATURES = 8, 8, 36, 44


def pocket_sized() -> tuple[SpeechLM, Streams]:
    """A model that never ends an answer, so that both loops do all positions, and prompts of 42 positions."""
    tokenizer = word_tokenizer(["one two three four five six seven eight"] * 4)
    shape = {"hidden_size": 192, "intermediate_size": 512, "shared_layers": 3, "text_layers": 1, "audio_layers": 2}
    model = new_model(tokenizer, codes=1024, features=FEATURES, heads=6, kv_heads=2, delay=2, seed=1, **shape)
    model.audio_ids = model.audio_ids[:-2]  # no end tokens
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=(36 * 4, FEATURES)).astype(np.float32) for _ in range(PROMPTS)]
    return model.eval(), spoken_queries(tables, model.config, model.specials)


@torch.no_grad()
def plain_loop(model: SpeechLM, prompts: Streams) -> Answers:
    """The same sampling, each step over the whole sequence again."""
    wide, specials, rows = prompts.repeat(GROUP), model.specials, PROMPTS * GROUP
    audio = torch.empty(rows, 0, dtype=torch.long)
    text, ids, writing = audio, torch.arange(rows), torch.ones(rows, dtype=torch.bool)
    for step in range(LIMIT):
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
        column, _ = draw(model.text_logits(words[:, -1]), uniforms(1, ids, step, TEXT), 1.0, 0)
        text = torch.cat([text, torch.where(writing, column, specials.blank)[:, None]], 1)
        writing = writing & (column != specials.text_eos)
        code = torch.full((rows,), specials.blank)
        if step >= model.config.kimia_mimo_audiodelaytokens:
            code = model.audio_ids[draw(model.audio_logits(sounds[:, -1]), uniforms(1, ids, step, AUDIO), 1.0, 0)[0]]
        audio = torch.cat([audio, code[:, None]], 1)
    return Answers(audio, text, torch.ones_like(audio, dtype=torch.bool), torch.ones_like(text, dtype=torch.bool))


def engine(model: SpeechLM, prompts: Streams) -> Answers:
    """The engine's rollouts of the same."""
    ids = torch.arange(PROMPTS * GROUP)
    return rollout(model, prompts, group=GROUP, sampling=Sampling(1.0), seed=1, row_ids=ids, limit=LIMIT).answers


@pytest.mark.parametrize("loop", [engine, plain_loop], ids=["engine", "plain"])
def test_rollout(benchmark, loop) -> None:  # type: ignore[no-untyped-def]
    """Both streams' tokens a second."""
    model, prompts = pocket_sized()
    benchmark.extra_info["tokens"] = tokens = 2 * PROMPTS * GROUP * LIMIT
    benchmark.pedantic(loop, args=(model, prompts), rounds=3, warmup_rounds=1)
    print(f"\n{loop.__name__}: {tokens / benchmark.stats['median']:.0f} tokens/s")


def test_ratio() -> None:
    """Prints the ratio of one run, and checks that both loops draw the same tokens."""
    model, prompts = pocket_sized()
    took, drawn = {}, {}
    for loop in (engine, plain_loop, engine, plain_loop):
        begun = time.perf_counter()
        drawn[loop.__name__] = loop(model, prompts)
        took[loop.__name__] = time.perf_counter() - begun
    same = (drawn["engine"].audio == drawn["plain_loop"].audio).float().mean()
    print(f"\nengine {took['plain_loop'] / took['engine']:.1f} x as fast as the plain loop; {same:.1%} of the codes are the same")
    assert same > 0.95  # a draw can tip where rounding differs, and then the rest of its row differs
