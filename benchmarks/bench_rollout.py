"""Rollouts at pocket size beside their peers, in one run.

    pytest benchmarks/bench_rollout.py --benchmark-only -s      # times by pytest-benchmark
    pytest benchmarks/bench_rollout.py -k ratio -s              # interleaved, ratios to the engine

8 and 32 prompts of 42 positions x 8 answers of 36. Weights are random and, but for one case, no answer ends early: all do the same
positions. The engine and the plain loops draw two tokens a position, transformers one, from a Qwen2 of the same width, heads and number
of layers.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paras2s_cli.models.prompt import Answers, spoken_queries
from paras2s_cli.models.small import new_model, word_tokenizer
from paras2s_cli.models.speech_lm import SpeechLM, Streams, causal
from paras2s_cli.rollout.engine import rollout
from paras2s_cli.rollout.sampling import AUDIO, TEXT, Sampling, Warp, draw, row_keys

GROUP, LIMIT, FEATURES, CODES, PROMPT = 8, 36, 44, 1024, 42
SHAPE = {"hidden_size": 192, "intermediate_size": 512, "shared_layers": 3, "text_layers": 1, "audio_layers": 2, "heads": 6, "kv_heads": 2}
PLAIN = Warp()
TARGETS = {8: 2.0, 32: 1.5}


def pocket_sized(prompts: int) -> tuple[SpeechLM, Streams]:
    """A model that never ends an answer, so that all loops do all positions, and prompts of 42 positions."""
    tokenizer = word_tokenizer(["one two three four five six seven eight"] * 4)
    model = new_model(tokenizer, codes=CODES, features=FEATURES, delay=2, seed=1, **SHAPE)
    model.audio_ids = model.audio_ids[:-2]  # no end tokens
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=((PROMPT - 6) * 4, FEATURES)).astype(np.float32) for _ in range(prompts)]
    return model.eval(), spoken_queries(tables, model.config, model.specials)


def engine(model: SpeechLM, prompts: Streams) -> Answers:
    """The engine's rollouts."""
    ids = torch.arange(len(prompts.audio) * GROUP)
    return rollout(model, prompts, group=GROUP, sampling=Sampling(), seed=1, row_ids=ids, limit=LIMIT).answers


class CopiedCache:
    """One layer's keys and values, a copy of the prompt's for every row, read by torch's own attention."""

    def __init__(self, copies: int) -> None:
        self.copies, self.length = copies, 0
        self.keys = self.values = torch.empty(0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if not self.length:
            rows, heads, self.length, dim = k.shape
            self.keys, self.values = (torch.empty(rows * self.copies, heads, self.length + LIMIT, dim) for _ in range(2))
            self.keys[:, :, : self.length], self.values[:, :, : self.length] = (x.repeat_interleave(self.copies, 0) for x in (k, v))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        self.keys[:, :, self.length], self.values[:, :, self.length] = k[:, :, 0], v[:, :, 0]
        self.length += 1
        seen = slice(0, self.length)
        return F.scaled_dot_product_attention(q, self.keys[:, :, seen], self.values[:, :, seen], attn_mask=mask, enable_gqa=True)


@torch.no_grad()
def cached_loop(model: SpeechLM, prompts: Streams, *, shared_prefill: bool, first: int = 0) -> Answers:
    """The same sampling by a plain loop, until all answers have ended. shared_prefill: a prompt is read once and copied to its rows; else
    every row reads it. first: the number of the first prompt."""
    rows, specials = len(prompts.audio) * GROUP, model.specials
    copies = GROUP if shared_prefill else 1
    streams = prompts if shared_prefill else prompts.repeat(GROUP)
    positions, mask = causal(streams.valid)
    caches = [CopiedCache(copies) for _ in range(model.config.num_hidden_layers + model.config.kimia_mimo_layers)]
    hidden = [x[:, -1].repeat_interleave(copies, 0) for x in model.hidden(model.embed(streams), positions, mask, caches)]
    seen = torch.cat([streams.valid, torch.ones(len(streams.valid), LIMIT, dtype=torch.bool)], 1).repeat_interleave(copies, 0)
    position = (positions[:, -1:] + 1).repeat_interleave(copies, 0)
    keys, writing = row_keys(1, first * GROUP + torch.arange(rows)), torch.ones(rows, dtype=torch.bool)
    speaking = torch.ones(rows, dtype=torch.bool)
    texts, codes = [], []
    for step in range(LIMIT):
        column, _ = draw(model.text_logits(hidden[0]), keys, step, TEXT, PLAIN)
        texts.append(torch.where(writing, column, specials.blank))
        writing = writing & (column != specials.text_eos)
        code = torch.full((rows,), specials.blank)
        if step >= model.config.kimia_mimo_audiodelaytokens:
            code = model.audio_ids[draw(model.audio_logits(hidden[1]), keys, step, AUDIO, PLAIN)[0]]
        codes.append(code)
        speaking &= code != specials.media_end
        if not speaking.any():
            break
        if step + 1 < LIMIT:
            x = model.model.embed_tokens(code[:, None]) + model.model.embed_tokens(texts[-1][:, None])
            here = seen[:, None, None, : prompts.audio.shape[1] + step + 1]
            hidden = [x[:, -1] for x in model.hidden(x, position + step, here, caches)]
    audio, text = torch.stack(codes, 1), torch.stack(texts, 1)
    return Answers(audio, text, torch.ones_like(audio, dtype=torch.bool), torch.ones_like(text, dtype=torch.bool))


def plain_batches(model: SpeechLM, prompts: Streams) -> Answers:
    """The plain loop over batches of 16 prompts, as many rows as the engine has in flight, each until its last answer has ended."""
    parts = [cached_loop(model, prompts.select(rows), shared_prefill=True, first=int(rows[0])) for rows in torch.arange(32).split(16)]
    whole = [torch.zeros(0)] * 4
    for i, name in enumerate(("audio", "text", "audio_free", "text_free")):
        tables = [getattr(part, name) for part in parts]
        width = max(t.shape[1] for t in tables)
        whole[i] = torch.cat([F.pad(t, (0, width - t.shape[1])) for t in tables])
    return Answers(*whole)


@torch.no_grad()
def loop_without_a_cache(model: SpeechLM, prompts: Streams) -> Answers:
    """The same sampling, every step over all that is there."""
    wide, rows, specials = prompts.repeat(GROUP), len(prompts.audio) * GROUP, model.specials
    audio = text = torch.empty(rows, 0, dtype=torch.int64)
    keys, writing = row_keys(1, torch.arange(rows)), torch.ones(rows, dtype=torch.bool)
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
        column, _ = draw(model.text_logits(words[:, -1]), keys, step, TEXT, PLAIN)
        text = torch.cat([text, torch.where(writing, column, specials.blank)[:, None]], 1)
        writing = writing & (column != specials.text_eos)
        code = torch.full((rows,), specials.blank)
        if step >= model.config.kimia_mimo_audiodelaytokens:
            code = model.audio_ids[draw(model.audio_logits(sounds[:, -1]), keys, step, AUDIO, PLAIN)[0]]
        audio = torch.cat([audio, code[:, None]], 1)
    return Answers(audio, text, torch.ones_like(audio, dtype=torch.bool), torch.ones_like(text, dtype=torch.bool))


def transformers_generate(implementation: str) -> Callable[[SpeechLM, Streams], Tensor]:
    """`generate` of a Qwen2 of the same size with its dynamic or static cache."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = Qwen2Config(
        vocab_size=CODES,
        hidden_size=SHAPE["hidden_size"],
        intermediate_size=SHAPE["intermediate_size"],
        num_hidden_layers=SHAPE["shared_layers"] + SHAPE["text_layers"] + SHAPE["audio_layers"],
        num_attention_heads=SHAPE["heads"],
        num_key_value_heads=SHAPE["kv_heads"],
        tie_word_embeddings=False,
        **ends,
    )
    library = Qwen2ForCausalLM(config).eval()

    def generate(model: SpeechLM, prompts: Streams) -> Tensor:
        ids = torch.randint(1, CODES, prompts.audio.shape, generator=torch.Generator().manual_seed(0))
        cache = {} if implementation == "dynamic" else {"cache_implementation": implementation}
        drawn: Tensor = library.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            num_return_sequences=GROUP,
            min_new_tokens=LIMIT,
            max_new_tokens=LIMIT,
            **cache,
        )
        assert drawn.shape == (len(ids) * GROUP, PROMPT + LIMIT)
        return drawn

    return generate


def loops() -> dict[str, Callable[[SpeechLM, Streams], object]]:
    """The engine and its peers by name."""
    return {
        "engine": engine,
        "plain loop": partial(cached_loop, shared_prefill=False),
        "plain loop, prompts read once": partial(cached_loop, shared_prefill=True),
        "transformers, dynamic cache": transformers_generate("dynamic"),
        "transformers, static cache": transformers_generate("static"),
    }


@pytest.mark.parametrize("prompts", TARGETS)
@pytest.mark.parametrize("name", loops())
def test_rollout(benchmark, name: str, prompts: int) -> None:  # type: ignore[no-untyped-def]
    """Positions a second."""
    model, streams = pocket_sized(prompts)
    benchmark.extra_info["positions"] = positions = prompts * GROUP * LIMIT
    benchmark.pedantic(loops()[name], args=(model, streams), rounds=3, warmup_rounds=1)
    print(f"\n{name}: {positions / benchmark.stats['median']:.0f} positions/s")


@pytest.mark.parametrize("prompts", TARGETS)
def test_ratio(prompts: int) -> None:
    """Prints each peer's time over the engine's, in rounds that take turns, and checks that engine and plain loop draw the same."""
    model, streams = pocket_sized(prompts)
    took: dict[str, list[float]] = {}
    drawn = {}
    all_loops = loops()
    for turn in range(6):
        for name, loop in all_loops.items():
            begun = time.perf_counter()
            drawn[name] = loop(model, streams)
            if turn:
                took.setdefault(name, []).append(time.perf_counter() - begun)
    own = median(took["engine"])
    speed, threads = prompts * GROUP * LIMIT / own, torch.get_num_threads()
    print(f"\n{prompts} prompts x {GROUP}, {threads} threads: engine {own:.3f} s, {speed:.0f} positions/s")
    for name, seconds in took.items():
        print(f"  {name}: {median(seconds):.3f} s, {median(seconds) / own:.2f} x the engine's")
    best = min(median(s) for name, s in took.items() if "engine" not in name)
    print(f"  the best of them: {best / own:.2f} x (wanted: {TARGETS[prompts]})")
    same = (drawn["engine"].audio == drawn["plain loop"].audio).float().mean()  # type: ignore[attr-defined]
    assert same > 0.95  # a draw can tip where rounding differs, and then the rest of its row differs


def test_ratio_of_answers_that_end_early() -> None:
    """Prints the ratio to the plain loop at 32 prompts x 8, where answers end at lengths from 1 to LIMIT: the engine moves up those that
    go on and takes new prompts in, the loop runs each batch of prompts to its longest answer. Checks that both draw the same codes."""
    model, streams = pocket_sized(32)
    with torch.no_grad():
        model.audio_ids = torch.cat([model.audio_ids, torch.full((60,), model.specials.media_end)])  # one draw in 19 ends an answer
    took: dict[str, list[float]] = {"engine": [], "plain loop, prompts read once": []}
    for turn in range(6):
        for name, loop in (("engine", engine), ("plain loop, prompts read once", plain_batches)):
            begun = time.process_time()
            drawn = loop(model, streams)
            if turn:
                took[name].append(time.process_time() - begun)
            if name == "engine":
                rolled = drawn
    own, other = (median(seconds) for seconds in took.values())
    lengths = rolled.valid.sum(1)
    same = (rolled.audio == drawn.audio[:, : rolled.audio.shape[1]])[rolled.audio_free].float().mean()
    print(f"\nanswers of {int(lengths.min())} to {int(lengths.max())}, mean {lengths.float().mean():.1f}: ", end="")
    print(f"engine {own:.3f} s, plain loop {other / own:.2f} x the engine's; {same:.1%} of the codes are the same")
    assert same > 0.95


def test_ratio_to_a_loop_without_a_cache() -> None:
    """Prints the ratio at 8 prompts x 8, in rounds that take turns, and checks that both draw the same."""
    model, streams = pocket_sized(8)
    took: dict[str, list[float]] = {}
    drawn = {}
    for turn in range(4):
        for loop in (engine, loop_without_a_cache):
            begun = time.perf_counter()
            drawn[loop.__name__] = loop(model, streams)
            if turn:
                took.setdefault(loop.__name__, []).append(time.perf_counter() - begun)
    ratio = median(took["loop_without_a_cache"]) / median(took["engine"])
    same = (drawn["engine"].audio == drawn["loop_without_a_cache"].audio).float().mean()
    print(f"\nengine {ratio:.1f} x as fast as a loop without a cache; {same:.1%} of the codes are the same")
    assert same > 0.95
