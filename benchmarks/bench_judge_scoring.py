"""The judge's local score stage beside plain transformers, in one run on whatever device is there.

    pytest benchmarks/bench_judge_scoring.py --benchmark-only --benchmark-columns=median,iqr,rounds
    pytest benchmarks/bench_judge_scoring.py -k ratio -s        # in turns, ratios to ours

16 pairs behind the judge's own rubric of some 660 tokens, from utterances to probabilities, tokenizer and all. `one at a time` and `padded`
are transformers with torch's fused attention, without a prefix cache; `padded, cached` has the rubric's keys and values copied to every
row of the batch beforehand, untimed. Weights are random: a small Qwen2 on the CPU, Qwen2.5-7B's shape in bfloat16 on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache, Qwen2Config, Qwen2ForCausalLM

from paras2s_cli.judge.local.prompt import Prompts
from paras2s_cli.judge.local.reader import LabelReader
from paras2s_cli.judge.stages import Heard, Toned, Utterance
from paras2s_cli.recipe.judging import LocalLM
from paras2s_kernels.transformers_attention import register_with_transformers
from tests.judge_lm import write_tokenizer

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
PAIRS, TARGET, TURNS = 16, 3.0, 5
SMALL = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2}
LARGE = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
SHAPE: dict[str, Any] = LARGE | {"vocab_size": 152064} if CUDA else SMALL | {"vocab_size": 1024}
Read = Callable[[], Tensor]


def pairs() -> list[tuple[Utterance, Utterance]]:
    """Of several lengths: 5 to 20 words on each side."""
    words = [
        "yes",
        "today",
        "I",
        "have",
        "met",
        "my",
        "ex",
        "at",
        "the",
        "station",
        "and",
        "we",
        "had",
        "to",
        "talk",
        "for",
        "an",
        "hour",
        "and",
        "more",
    ]
    toned = Toned({}, {}, {})

    def said(count: int, tone: str) -> Utterance:
        return Utterance(Heard(" ".join(words[:count]) + ".", True), toned, tone)

    return [(said(5 + 7 * i % 16, "sad"), said(5 + 11 * i % 16, "gentle")) for i in range(PAIRS)]


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Read]:
    """Ours and its peers by name: each returns the probabilities of the labels among all tokens, [N, 5]."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, 1024)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts = Prompts(tokenizer, LocalLM(backend="local", model="random"))
    torch.manual_seed(0)
    with torch.device(DEVICE):
        config = Qwen2Config(**SHAPE, attn_implementation=register_with_transformers(), dtype=torch.bfloat16 if CUDA else torch.float32)
        model = Qwen2ForCausalLM(config).to(config.dtype).eval()
    reader, asked = LabelReader(model, prompts.shared, prompts.labels), pairs()
    texts = [tokenizer.decode(tokens) for tokens in prompts.encode(asked, [None] * PAIRS)]

    def plainly(ids: Tensor, **options: Any) -> Tensor:
        model.set_attn_implementation("sdpa")
        logits = model(ids.to(DEVICE), logits_to_keep=1, **options).logits[:, -1]
        return logits.float().softmax(1)[:, prompts.labels].cpu()

    def ours() -> Tensor:
        model.set_attn_implementation(register_with_transformers())
        labels, mass = reader.read(prompts.encode(asked, [None] * PAIRS))
        return labels * mass[:, None]

    def one_at_a_time() -> Tensor:
        return torch.cat([plainly(tokenizer(text, return_tensors="pt").input_ids, use_cache=False) for text in texts])

    def padded() -> Tensor:
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        return plainly(batch.input_ids, attention_mask=batch.attention_mask.to(DEVICE), use_cache=False)

    with torch.no_grad():
        cache: DynamicCache = model.model(torch.tensor([prompts.shared], device=DEVICE), use_cache=True).past_key_values
    cache.batch_repeat_interleave(PAIRS)
    length = len(prompts.shared)

    def padded_cached() -> Tensor:
        rows = [tokens[length:] for tokens in prompts.encode(asked, [None] * PAIRS)]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[1] * length + [0] * (longest - len(row)) + [1] * len(row) for row in rows], device=DEVICE)
        positions = (mask.cumsum(1) - 1)[:, length:]
        found = plainly(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
        cache.crop(-longest)
        return found

    return {"ours": ours, "one at a time": one_at_a_time, "padded": padded, "padded, cached": padded_cached}


@torch.no_grad()
def timed(read: Read) -> tuple[float, Tensor]:
    begun = time.perf_counter()
    found = read()
    return time.perf_counter() - begun, found


@pytest.mark.parametrize("variant", ("ours", "one at a time", "padded", "padded, cached"))
def test_judge_scoring(benchmark: Any, readers: dict[str, Read], variant: str) -> None:
    """Pairs a second."""
    benchmark.group = f"{PAIRS} pairs"
    benchmark.pedantic(timed, args=(readers[variant],), rounds=TURNS, warmup_rounds=1)
    benchmark.extra_info.update(
        pairs_per_second=PAIRS / benchmark.stats["median"],
        device=torch.cuda.get_device_name() if CUDA else "cpu",
        torch=torch.__version__,
    )


def test_ratio(readers: dict[str, Read]) -> None:
    """Prints each peer's time over ours, in rounds that take turns, and checks that all read the same probabilities."""
    took: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(TURNS + 1):
        for name, read in readers.items():
            seconds, found = timed(read)
            if name == "ours":
                wanted = found
            torch.testing.assert_close(found, wanted, atol=0.01 if CUDA else 1e-4, rtol=0)
            if turn:
                took[name].append(seconds)
    own = median(took["ours"])
    print(f"\n{PAIRS} pairs on {DEVICE}, {torch.get_num_threads()} threads")
    for name, times in took.items():
        print(f"  {name}: {PAIRS / median(times):.1f} pairs/s, {median(times) / own:.2f} x the time of ours")
    print(f"  wanted of one at a time: {TARGET}")
