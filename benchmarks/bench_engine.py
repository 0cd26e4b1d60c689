"""The decode engine over sizes of groups and lengths of prompts, on whatever device is there.

    pytest benchmarks/bench_engine.py --benchmark-only --benchmark-columns=median,iqr,rounds
    pytest benchmarks/bench_engine.py --benchmark-only --benchmark-save-data --benchmark-json=engine.json

On a GPU the model is of Kimi-Audio's shape, 9.77 billion random weights in bf16 that are made there; on the CPU of the pocket's. A rollout
is timed whole, prompts and all. `test_beside_peers` has one size beside loops with a cache and transformers' `generate`. extra_info has the
tokens of both streams (`generate` draws one a position) and, in bf16, the phases of the roof: bytes and FLOPs of reading the prompts, of
the products of all steps, and the keys and values that steps read.
"""

import functools
from collections.abc import Callable
from functools import partial

import pytest
import torch

from benchmarks.rollout_loops import cached_loop, transformers_generate
from benchmarks.shapes import KIMI_AUDIO, POCKET
from paras2s_cli.models.speech_lm import SpeechLM, Streams
from paras2s_cli.models.tokenizer import Specials
from paras2s_cli.rollout.engine import rollout
from paras2s_cli.rollout.sampling import Sampling

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
GROUPS, PREFIXES = (1, 2, 4, 8, 16), (128, 512, 4096)
ROWS, LIMIT = (32, 64) if CUDA else (1, 16)  # rows in flight, unless a group is larger
SIZE = (32, 8, 512, 128) if CUDA else (8, 8, 64, 32)  # prompts, group, prefix, positions of an answer
PEERS = ["loop, dynamic cache", "loop, static cache", "transformers, dynamic cache", "transformers, static cache"]
PEERS += ["loop, compiled"] if CUDA else []


@functools.cache
def random_model() -> SpeechLM:
    """Weights that are made on the device. Answers never end, so that all do all positions."""
    config = KIMI_AUDIO if CUDA else POCKET
    torch.manual_seed(0)
    with torch.device("meta"):
        model = SpeechLM(config, Specials(*range(1, 10)))
    ids = model.audio_ids[:-2]
    model.to(DTYPE).to_empty(device=DEVICE)
    model.audio_ids = ids.to(DEVICE)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5) if weight.dim() > 1 else torch.nn.init.ones_(weight)
    return model.eval().requires_grad_(False)


def prompts_of(count: int, prefix: int) -> Streams:
    """Random audio codes."""
    config = random_model().config
    audio = torch.randint(config.kimia_token_offset, config.vocab_size, (count, prefix), device=DEVICE)
    there = torch.ones_like(audio, dtype=torch.bool)
    return Streams(audio, torch.full_like(audio, random_model().specials.blank), there, ~there, None)


def engine(prompts: Streams, group: int, limit: int) -> None:
    """All rows at once."""
    rows = len(prompts.audio) * group
    ids = torch.arange(rows, device=DEVICE)
    found = rollout(random_model(), prompts, group=group, sampling=Sampling(), seed=1, row_ids=ids, limit=limit, batch=rows)
    assert found.answers.audio.shape == (rows, limit)


def phases_of(prompts: int, group: int, prefix: int, limit: int) -> list[list[float]]:
    """Bytes and FLOPs of what cannot be done at the same time: reading the prompts, the products of the steps after that, and the keys and
    values that these read, each prompt's once for its group."""
    model, rows, steps = random_model(), prompts * group, limit - 1
    config = model.config
    blocks = sum(weight.numel() for block in model.blocks() for weight in block.parameters())
    heads = (config.kimia_token_offset + len(model.audio_ids)) * config.hidden_size
    layers = config.num_hidden_layers + config.kimia_mimo_layers
    position = 2 * layers * config.num_key_value_heads * config.head_dim * DTYPE.itemsize
    looks = 2 * layers * config.num_attention_heads * config.head_dim * prefix**2 * prompts  # half of each square, twice two FLOPs
    return [
        [blocks * DTYPE.itemsize, 2 * blocks * prompts * prefix + looks],
        [steps * (blocks + heads) * DTYPE.itemsize, 2 * steps * rows * (blocks + heads)],
        [steps * (prompts * prefix + rows * limit / 2) * position, 0],
    ]


def measure(benchmark: pytest.FixtureRequest, call: Callable[[], object], size: tuple[int, int, int, int], streams: int = 2) -> None:
    """Times a rollout; size as of `SIZE`."""
    prompts, group, prefix, limit = size

    def synchronised() -> None:
        call()
        if CUDA:
            torch.cuda.synchronize()

    benchmark.group = f"{prompts}x{group}, prompts of {prefix}, answers of {limit}"  # type: ignore[attr-defined]
    benchmark.extra_info.update(  # type: ignore[attr-defined]
        tokens=streams * prompts * group * limit,
        device=torch.cuda.get_device_name() if CUDA else "cpu",
        torch=torch.__version__,
    )
    if DTYPE is torch.bfloat16:  # as the roof's product is
        benchmark.extra_info["phases"] = phases_of(*size)  # type: ignore[attr-defined]
    benchmark.pedantic(synchronised, rounds=3, warmup_rounds=1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("variant", ["engine", *PEERS])
def test_beside_peers(benchmark: pytest.FixtureRequest, variant: str) -> None:
    count, group, prefix, limit = SIZE
    model, asked = random_model(), prompts_of(count, prefix)
    kind = variant.replace(",", "").split()
    call: Callable[[], object]
    if variant == "engine":
        call = partial(engine, asked, group, limit)
    elif kind[0] == "loop":
        call = partial(cached_loop, model, asked, group=group, limit=limit, cache=kind[1])
    else:
        call = partial(transformers_generate(model.config, DEVICE, DTYPE, kind[1], group=group, limit=limit), asked.audio)
    measure(benchmark, call, SIZE, streams=1 if kind[0] == "transformers" else 2)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("group", GROUPS)
def test_engine(benchmark: pytest.FixtureRequest, group: int, prefix: int) -> None:
    count = max(1, ROWS // group)
    asked = prompts_of(count, prefix)
    measure(benchmark, lambda: engine(asked, group, LIMIT), (count, group, prefix, LIMIT))
