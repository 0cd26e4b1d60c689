"""The decode loop against recomputation without a cache, and what a row must not depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from naive_lm import NaiveLM, legal, log_softmax
from tiny_lm import CODES, random_frames, tiny_model

from paras2s_cli.errors import UsageError
from paras2s_cli.models.prompt import codes_of, spoken_queries
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.rollout.engine import Rollouts, rollout
from paras2s_cli.rollout.rows import Rows
from paras2s_cli.rollout.sampling import AUDIO, TEXT, Sampling, row_keys, uniforms

LENGTHS = [22, 9, 41, 4, 30, 16, 12, 25]
PLAIN = Sampling(1.0)


def run(
    model: SpeechLM, lengths: Sequence[int], ids: Sequence[int], sampling: Sampling = PLAIN, *, limit: int = 14, seed: int = 9
) -> Rollouts:
    prompts = spoken_queries(random_frames(lengths), model.config, model.specials)
    return rollout(model, prompts, group=len(ids) // len(lengths), sampling=sampling, seed=seed, row_ids=torch.tensor(ids), limit=limit)


@dataclass
class Row:
    """What one answer consists of, without padding."""

    audio: list[int]
    text: list[int]
    text_logprobs: np.ndarray
    audio_logprobs: np.ndarray
    ended: bool


def row_of(rolled: Rollouts, i: int) -> Row:
    n = int(rolled.answers.valid[i].sum())
    return Row(
        rolled.answers.audio[i, :n].tolist(),
        rolled.answers.text[i, :n].tolist(),
        rolled.text_logprobs[i, :n].numpy(),
        rolled.audio_logprobs[i, :n].numpy(),
        bool(rolled.ended[i]),
    )


def same(a: Row, b: Row) -> None:
    assert (a.audio, a.text, a.ended) == (b.audio, b.text, b.ended)
    np.testing.assert_allclose(a.text_logprobs, b.text_logprobs, atol=2e-5)
    np.testing.assert_allclose(a.audio_logprobs, b.audio_logprobs, atol=2e-5)


def check_form(model: SpeechLM, rolled: Rollouts) -> None:
    """Which positions were chosen, which were forced, and that only legal ids are there."""
    s, offset, delay = model.specials, model.config.kimia_token_offset, model.config.kimia_mimo_audiodelaytokens
    a = rolled.answers
    for i in range(len(a.audio)):
        audio, text = a.audio[i].tolist(), a.text[i].tolist()
        stops = [t for t, x in enumerate(audio) if x in (s.media_end, s.msg_end)]
        assert len(stops) == int(rolled.ended[i])
        last = stops[0] if stops else len(audio) - 1
        assert a.audio_free[i].tolist() == [delay <= t <= last for t in range(len(audio))]
        assert all(x == s.blank for x in (*audio[:delay], *audio[last + 1 :]))
        assert all(offset <= x < offset + CODES for x in audio[delay : last + (not stops)])
        written = min(text.index(s.text_eos) if s.text_eos in text else len(text), last)
        assert a.text_free[i].tolist() == [t <= written for t in range(len(text))]
        assert all(x == s.blank for x in text[written + 1 :]) and all(0 <= x < offset for x in text)
        assert a.valid[i].tolist() == [t <= max(last, written) for t in range(len(text))]
    for logprobs, free in ((rolled.text_logprobs, a.text_free), (rolled.audio_logprobs, a.audio_free)):
        assert (logprobs[~free] == 0).all() and (logprobs[free] < 0).all()


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.8), Sampling(0.8, 10), Sampling(0.0)])
@pytest.mark.parametrize(("delay", "limit"), [(3, 14), (0, 14), (3, 40)])
def test_the_form_of_answers(delay: int, limit: int, sampling: Sampling) -> None:
    model = tiny_model(delay=delay)
    rolled = run(model, LENGTHS, range(8 * 8), sampling, limit=limit)
    check_form(model, rolled)
    assert (rolled.answers.valid.sum(1)[~rolled.ended] == limit).all()
    if sampling.temperature == 1:
        assert (limit == 40) == bool(rolled.ended.float().mean() > 0.9)
        assert rolled.ended.any()


def test_text_that_ends_before_the_speech_does_and_the_other_way_round() -> None:
    """Random answers rarely end their text, so here an end is likely on both streams."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.3)
        model.mimo_output.weight.mul_(0.3)
        model.lm_head.weight[model.config.kimia_token_offset // 4 : model.config.kimia_token_offset] = -torch.ones(32)
        model.model.norm.weight.copy_(model.model.norm.weight.abs())
    rolled = run(model, LENGTHS, range(8 * 16), limit=30)
    check_form(model, rolled)
    texts = rolled.answers.text == model.specials.text_eos
    early = texts.any(1) & (rolled.answers.text_free.sum(1) < rolled.answers.valid.sum(1))
    late = ~texts.any(1) & rolled.ended
    assert early.sum() > 5 and late.sum() > 5


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_are_those_of_the_naive_model_without_a_cache(temperature: float) -> None:
    """Greedy: the argmax of a full recomputation each step. Sampled: the log-probabilities are the naive ones."""
    model = tiny_model()
    naive, s = NaiveLM.of(model), model.specials
    lengths = [9, 17]
    rolled = run(model, lengths, [0, 1], Sampling(temperature), limit=9)
    prompts = spoken_queries(random_frames(lengths), model.config, s)
    for i in range(2):
        keep, count = prompts.valid[i], -(-lengths[i] // 4)
        audio, text = prompts.audio[i][keep].tolist(), prompts.text[i][keep].tolist()
        continuous = prompts.continuous[i][keep].tolist()
        frames = prompts.features[i].double().flatten(0, 1).numpy()[: 4 * count]  # type: ignore[index]
        row = row_of(rolled, i)
        for step in range(len(row.audio)):
            words, sounds = (x[-1] for x in naive.logits(audio, text, continuous, frames))
            words, sounds = (log_softmax(x / (temperature or 1.0)) for x in legal(model, words, sounds))
            for free, given, found, logprobs, ids in (
                (rolled.answers.text_free, row.text, row.text_logprobs, words, np.arange(len(words))),
                (rolled.answers.audio_free, row.audio, row.audio_logprobs, sounds, model.audio_ids.numpy()),
            ):
                if not free[i, step]:
                    continue
                if temperature == 0:
                    assert given[step] == ids[logprobs.argmax()]
                assert abs(found[step] - logprobs[ids == given[step]][0]) < 2e-5
            audio.append(row.audio[step])
            text.append(row.text[step])
            continuous.append(False)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.8, 10)])
def test_a_row_does_not_depend_on_its_batch(sampling: Sampling) -> None:
    model = tiny_model()
    ids = [100 + 7 * i for i in range(16)]
    batch = run(model, LENGTHS, ids, sampling)
    order = [5, 2, 7, 0]
    turned = run(model, [LENGTHS[p] for p in order], [ids[2 * p + g] for p in order for g in (0, 1)], sampling, limit=20)
    for i in range(16):
        row = row_of(batch, i)
        if row.ended:
            same(row, row_of(run(model, [LENGTHS[i // 2]], [ids[i]], sampling, limit=14), 0))
    for place, p in enumerate(order):
        for g in (0, 1):
            a, b = row_of(batch, 2 * p + g), row_of(turned, 2 * place + g)
            if a.ended:  # the other batch had a higher limit
                same(a, b)
            else:
                assert b.audio[: len(a.audio)] == a.audio and b.text[: len(a.text)] == a.text
    assert batch.ended.sum() >= 4


def test_a_rows_numbers_are_those_of_its_key_and_step() -> None:
    rows = Rows(5, 9, torch.device("cpu"))
    keys = row_keys(3, torch.arange(5))
    rows.open(slice(0, 5), torch.arange(5), keys, torch.zeros(5, dtype=torch.int64), 0)
    rows.step[:] = torch.tensor([0, 3, 8, 9, 1])
    rows.keep(torch.tensor([1, 2, 4]))
    for stream, numbers in zip((TEXT, AUDIO), rows.numbers(slice(0, 3)), strict=True):
        assert numbers is not None and torch.equal(numbers, uniforms(keys[[1, 2, 4]], torch.tensor([3, 8, 1]), stream))


def test_rows_seeds_and_groups_differ() -> None:
    model = tiny_model()
    rolled = run(model, [9], range(8))
    assert len({tuple(row.tolist()) for row in rolled.answers.text}) == 8
    again, other = run(model, [9], range(8)), run(model, [9], range(8), seed=10)
    assert torch.equal(again.answers.audio, rolled.answers.audio) and torch.equal(again.text_logprobs, rolled.text_logprobs)
    width = min(other.answers.text.shape[1], rolled.answers.text.shape[1])
    assert not (other.answers.text[:, :width] == rolled.answers.text[:, :width]).all(1).any()


def test_codes_are_those_between_the_delay_and_the_end() -> None:
    model = tiny_model()
    rolled = run(model, LENGTHS, range(8), limit=40)
    for i, codes in enumerate(codes_of(rolled.answers, model.config)):
        row = row_of(rolled, i)
        assert row.ended and codes.tolist() == [x - model.config.kimia_token_offset for x in row.audio[3:-1]]


def test_a_model_that_has_diverged_is_told_of() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.mimo_norm.weight[3] = torch.nan
    with pytest.raises(UsageError, match="not finite"):
        run(model, LENGTHS[:2], range(4))


def test_memory_made_under_inference_mode_serves_outside() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model().to(dtype)
        prompts = spoken_queries(random_frames([12, 9]), model.config, model.specials)
        prompts.features = None if prompts.features is None else prompts.features.to(dtype)
        given = {"group": 2, "sampling": PLAIN, "seed": 1, "row_ids": torch.arange(4), "limit": 6}
        with torch.inference_mode():
            first = rollout(model, prompts, **given)
        assert torch.equal(first.answers.audio, rollout(model, prompts, **given).answers.audio)
