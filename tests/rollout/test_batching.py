"""Continuous batching: rows that end make room, prompts are read once, and nothing of it shows in the answers."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from tiny_lm import random_frames, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from paras2s_cli.models.prompt import spoken_queries
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.rollout import engine
from paras2s_cli.rollout.engine import Engine, Rollouts, rollout
from paras2s_cli.rollout.graphs import bucket
from paras2s_cli.rollout.sampling import Sampling

LENGTHS = [22, 9, 41, 4, 30, 16, 12, 25]
TOP_10 = Sampling(0.8, 10)


def run(model: SpeechLM, lengths: list[int], group: int, *, limit: int = 40, batch: int = 64, first: int = 0) -> Rollouts:
    prompts = spoken_queries(random_frames(lengths), model.config, model.specials).to(model.lm_head.weight.device)
    ids = torch.arange(first, first + len(lengths) * group)
    if prompts.features is not None:
        prompts.features = prompts.features.to(model.lm_head.weight.dtype)
    return rollout(model, prompts, group=group, sampling=TOP_10, seed=3, row_ids=ids, limit=limit, batch=batch)


def same(a: Rollouts, b: Rollouts) -> None:
    assert torch.equal(a.answers.audio, b.answers.audio) and torch.equal(a.answers.text, b.answers.text)
    assert torch.equal(a.answers.audio_free, b.answers.audio_free) and torch.equal(a.answers.text_free, b.answers.text_free)
    assert torch.equal(a.ended, b.ended)
    torch.testing.assert_close(a.audio_logprobs, b.audio_logprobs, atol=2e-5, rtol=0)
    torch.testing.assert_close(a.text_logprobs, b.text_logprobs, atol=2e-5, rtol=0)


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows each step fed."""
    counts: list[int] = []
    plain = Engine._forward

    def counted(self: Engine, model: SpeechLM, count: int, prompts: int, sampling: Sampling) -> None:
        counts.append(count)
        plain(self, model, count, prompts, sampling)

    monkeypatch.setattr(Engine, "_forward", counted)
    return iter([counts])


@pytest.mark.parametrize("group", [1, 4])
def test_a_small_batch_refilled_from_the_queue_gives_the_same_answers(group: int, fed: Iterator[list[int]]) -> None:
    model, counts = tiny_model(), next(fed)
    at_once = run(model, LENGTHS, group)
    steps = len(counts)
    counts.clear()
    refilled = run(model, LENGTHS, group, batch=2 * group)
    same(at_once, refilled)
    lengths = at_once.answers.valid.sum(1)
    assert int(lengths.min()) + 10 < int(lengths.max())
    # every batch of 2 prompts on its own would take the steps of its longest answer
    alone = sum(int(lengths[i : i + 2 * group].max()) - 1 for i in range(0, len(lengths), 2 * group))
    assert steps < len(counts) < alone or group == 1
    assert max(counts) == 2 * group


def test_long_answers_do_not_hold_the_batch(fed: Iterator[list[int]]) -> None:
    counts = next(fed)
    rolled = run(tiny_model(), LENGTHS, 8)
    needed = int((rolled.answers.valid.sum(1) - 1).sum())
    assert needed <= sum(counts) < 1.3 * needed < 0.7 * 64 * len(counts)
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("limit", [8, 14])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_were_cut_off_ride_along(dtype: torch.dtype, limit: int) -> None:
    """Prompts without padding and answers up to the limit: no row has a place to spare."""
    model = tiny_model().to(dtype)
    rolled = run(model, [20] * 60, 2, limit=limit, batch=16)
    assert 0 < int((~rolled.ended).sum()) < 120
    if dtype is torch.float32:
        same(rolled, run(model, [20] * 60, 2, limit=limit))


def test_a_group_larger_than_the_batch_is_rolled_out_whole() -> None:
    model = tiny_model()
    same(run(model, LENGTHS[:2], 8, batch=3), run(model, LENGTHS[:2], 8))


def flops(model: SpeechLM, group: int, lengths: list[int] = LENGTHS) -> int:
    with FlopCounterMode(display=False) as counter:
        run(model, lengths, group, limit=1)
    return counter.get_total_flops()


def test_the_prefill_of_a_group_costs_one_prompt() -> None:
    """7 more answers to a prompt cost nothing at their first position, heads included."""
    model = tiny_model()
    one = flops(model, 1)
    assert one == flops(model, 8) > 1e6
    assert flops(model, 1, LENGTHS * 2) == 2 * one


@torch.no_grad()
def test_weights_may_change_in_place_between_calls() -> None:
    model = tiny_model()
    run(model, LENGTHS, 2)
    memory = engine._engines[model]
    other = tiny_model(seed=2)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        mine.copy_(theirs)
    changed = run(model, LENGTHS, 2)
    assert engine._engines[model] is memory
    same(changed, run(other, LENGTHS, 2))


def test_memory_is_kept_for_smaller_calls_grows_for_larger_and_goes_with_the_model() -> None:
    model = tiny_model()
    first = run(model, LENGTHS[:3], 2, limit=20)
    memory = engine._engines[model]
    run(model, LENGTHS[3:4], 1, limit=9)
    same(run(model, LENGTHS[:3], 2, limit=20), first)
    assert engine._engines[model] is memory
    run(model, LENGTHS, 4, limit=30)
    assert engine._engines[model] is not memory and engine._engines[model].shape.limit == 30
    count = len(engine._engines)
    del model
    gc.collect()
    assert len(engine._engines) == count - 1


def test_buckets() -> None:
    assert [bucket(n, 200) for n in (1, 2, 3, 5, 33, 64, 65, 128, 129, 193)] == [1, 2, 4, 8, 64, 64, 128, 128, 192, 200]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@torch.no_grad()
def test_graphs_replay_what_the_eager_engine_does() -> None:
    """With batches that shrink through several sizes, and again with other weights in the same memory."""
    model = tiny_model().cuda()
    recorded = 0
    for seed in (1, 2):
        for mine, theirs in zip(model.parameters(), tiny_model(seed=seed).parameters(), strict=True):
            mine.copy_(theirs)
        graphed = run(model, LENGTHS, 8)
        memory = engine._engines[model]
        graphs, memory.graphs = memory.graphs, None
        plain = run(model, LENGTHS, 8)
        memory.graphs = graphs
        assert graphs is not None and len(graphs._recorded) >= 3
        assert seed == 1 or len(graphs._recorded) == recorded
        recorded = len(graphs._recorded)
        share = (graphed.answers.audio == plain.answers.audio[:, : graphed.answers.audio.shape[1]]).float().mean()
        assert share > 0.98  # rounding may tip a draw, and with it the rest of its row
