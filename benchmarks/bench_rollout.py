"""Rollouts at pocket size beside their peers, in one run.

    pytest benchmarks/bench_rollout.py --benchmark-only -s      # times by pytest-benchmark
    pytest benchmarks/bench_rollout.py -k ratio -s              # interleaved, ratios to the engine

8 and 32 prompts of 42 positions x 8 answers of 36. Weights are random and, but for one case, no answer ends early: all do the same
positions. The engine and the plain loops draw two tokens a position, transformers one, from a Qwen2 of the same width, heads and number
of layers.
"""

import functools
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.rollout_loops import cached_loop, loop_without_a_cache, transformers_generate
from paras2s_cli.models.config import SpeechLMConfig
from paras2s_cli.models.prompt import Answers, spoken_queries
from paras2s_cli.models.small import new_model, word_tokenizer
from paras2s_cli.models.speech_lm import SpeechLM, Streams
from paras2s_cli.rollout.engine import BATCH, rollout
from paras2s_cli.rollout.sampling import Sampling

GROUP, LIMIT, FEATURES, CODES, PROMPT = 8, 36, 44, 1024, 42
SHAPE = {"hidden_size": 192, "intermediate_size": 512, "shared_layers": 3, "text_layers": 1, "audio_layers": 2, "heads": 6, "kv_heads": 2}
TARGETS = {8: 2.0, 32: 1.5}


def pocket_sized(prompts: int) -> tuple[SpeechLM, Streams]:
    """A model that never ends an answer, so that all loops do all positions, and prompts of 42 positions."""
    tokenizer = word_tokenizer(["one two three four five six seven eight"] * 4)
    model = new_model(tokenizer, codes=CODES, features=FEATURES, delay=2, seed=1, **SHAPE)
    model.audio_ids = model.audio_ids[:-2]  # no end tokens
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=((PROMPT - 6) * 4, FEATURES)).astype(np.float32) for _ in range(prompts)]
    return model.eval(), spoken_queries(tables, model.config, model.specials)


def engine(model: SpeechLM, prompts: Streams, batch: int = BATCH) -> Answers:
    """The engine's rollouts."""
    ids = torch.arange(len(prompts.audio) * GROUP)
    return rollout(model, prompts, group=GROUP, sampling=Sampling(), seed=1, row_ids=ids, limit=LIMIT, batch=batch).answers


def plain_batches(model: SpeechLM, prompts: Streams) -> Answers:
    """The plain loop over batches of 16 prompts, as many rows as the engine has in flight, each until its last answer has ended."""
    parts = [cached_loop(model, prompts.select(rows), group=GROUP, limit=LIMIT, first=int(rows[0])) for rows in torch.arange(32).split(16)]
    whole = [torch.zeros(0)] * 4
    for i, name in enumerate(("audio", "text", "audio_free", "text_free")):
        tables = [getattr(part, name) for part in parts]
        width = max(t.shape[1] for t in tables)
        whole[i] = torch.cat([F.pad(t, (0, width - t.shape[1])) for t in tables])
    return Answers(*whole)


@functools.cache
def _generate(config: SpeechLMConfig, cache: str) -> Callable[[Tensor], Tensor]:
    return transformers_generate(config, torch.device("cpu"), torch.float32, cache, group=GROUP, limit=LIMIT)


def library(cache: str, model: SpeechLM, prompts: Streams) -> Tensor:
    """transformers' `generate`."""
    return _generate(model.config, cache)(prompts.audio)


def loops() -> dict[str, Callable[[SpeechLM, Streams], object]]:
    """The engine and its peers by name."""
    return {
        "engine": engine,
        "plain loop": partial(cached_loop, group=GROUP, limit=LIMIT, shared_prefill=False),
        "plain loop, prompts read once": partial(cached_loop, group=GROUP, limit=LIMIT),
        "transformers, dynamic cache": partial(library, "dynamic"),
        "transformers, static cache": partial(library, "static"),
    }


@pytest.mark.parametrize("prompts", TARGETS)
@pytest.mark.parametrize("name", loops())
def test_rollout(benchmark, name: str, prompts: int) -> None:  # type: ignore[no-untyped-def]
    """Positions a second."""
    model, streams = pocket_sized(prompts)
    positions = prompts * GROUP * LIMIT
    tokens = positions if name.startswith("transformers") else 2 * positions
    benchmark.extra_info.update(tokens=tokens, device="cpu", torch=torch.__version__)
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
    best = min(median(s) for name, s in took.items() if name != "engine")
    # a loop that reads prompts once has one of the engine's own ideas
    others = min(median(s) for name, s in took.items() if name not in ("engine", "plain loop, prompts read once"))
    print(
        f"  the best of those that read every row's prompt: {others / own:.2f} x (wanted: {TARGETS[prompts]}); of all: {best / own:.2f} x"
    )
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
        for name, loop in (("engine", partial(engine, batch=16 * GROUP)), ("plain loop, prompts read once", plain_batches)):
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
    took: dict[str, list[float]] = {"engine": [], "loop": []}
    drawn = {}
    for turn in range(4):
        for name, loop in (("engine", engine), ("loop", partial(loop_without_a_cache, group=GROUP, limit=LIMIT))):
            begun = time.perf_counter()
            drawn[name] = loop(model, streams)
            if turn:
                took[name].append(time.perf_counter() - begun)
    ratio = median(took["loop"]) / median(took["engine"])
    same = (drawn["engine"].audio == drawn["loop"].audio).float().mean()
    print(f"\nengine {ratio:.1f} x as fast as a loop without a cache; {same:.1%} of the codes are the same")
    assert same > 0.95
