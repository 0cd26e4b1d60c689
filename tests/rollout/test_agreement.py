"""The trainer scores rollouts as the engine drew them, whatever batch they rode in."""

from __future__ import annotations

import pytest
import torch
from tiny_lm import random_frames, tiny_model

from paras2s_cli.models.prompt import spoken_queries
from paras2s_cli.models.speech_lm import SpeechLM, Streams
from paras2s_cli.rollout.engine import Rollouts, rollout
from paras2s_cli.rollout.sampling import Sampling
from paras2s_cli.train.grpo import stream_logprobs
from paras2s_cli.train.policy import NativePolicy

LENGTHS = [22, 9, 41, 4, 30, 16, 12, 25]
TOP_10 = Sampling(0.8, 10)
WARPS = [TOP_10, Sampling(0.8, 0, 0.9), Sampling(1.3, 12, 0.8, text_temperature=0.7, text_top_k=20, text_top_p=0.95)]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def prompts_of(model: SpeechLM, lengths: list[int], dtype: torch.dtype) -> Streams:
    prompts = spoken_queries(random_frames(lengths), model.config, model.specials)
    assert prompts.features is not None
    prompts.features = prompts.features.to(dtype)
    return prompts


def distance(model: SpeechLM, prompts: Streams, rolled: Rollouts, sampling: Sampling) -> float:
    """Mean |ratio - 1| of all tokens that were drawn."""
    answers = rolled.answers
    with torch.no_grad():
        scored = stream_logprobs(NativePolicy(model), prompts, answers, sampling)
    apart = [
        (found.logprobs.float() - given).exp().sub(1).abs()[free]
        for found, given, free in zip(
            scored, (rolled.text_logprobs, rolled.audio_logprobs), (answers.text_free, answers.audio_free), strict=True
        )
    ]
    return float(torch.cat(apart).mean())


@pytest.mark.parametrize("sampling", WARPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [64, 24])
def test_on_policy_the_ratio_is_1(dtype: torch.dtype, batch: int, sampling: Sampling) -> None:
    model = tiny_model().to(dtype)
    prompts = prompts_of(model, LENGTHS, dtype)
    rolled = rollout(model, prompts, group=8, sampling=sampling, seed=5, row_ids=torch.arange(64), limit=24, batch=batch)
    assert distance(model, prompts, rolled, sampling) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_alone_and_in_a_batch_of_64(dtype: torch.dtype) -> None:
    """In fp32 the tokens are the same; in bf16 a draw may tip, but what was drawn is scored right."""
    model = tiny_model().to(dtype)
    together = prompts_of(model, LENGTHS * 8, dtype)
    whole = rollout(model, together, group=1, sampling=TOP_10, seed=5, row_ids=torch.arange(64), limit=24)
    apart = []
    for i in (0, 3, 13, 42, 63):
        prompts = prompts_of(model, [LENGTHS[i % 8]], dtype)
        alone = rollout(model, prompts, group=1, sampling=TOP_10, seed=5, row_ids=torch.tensor([i]), limit=24)
        apart.append(distance(model, prompts, alone, TOP_10))
        if dtype is torch.float32:
            n = alone.answers.audio.shape[1]
            assert torch.equal(alone.answers.audio[0], whole.answers.audio[i, :n])
            assert torch.equal(alone.answers.text[0], whole.answers.text[i, :n])
            assert not whole.answers.audio_free[i, n:].any() and alone.ended[0] == whole.ended[i]
            torch.testing.assert_close(alone.audio_logprobs[0], whole.audio_logprobs[i, :n], atol=2e-5, rtol=0)
    assert sum(apart) / len(apart) <= BOUNDS[dtype]  # an answer has a few tokens only


def test_a_trainer_that_warps_otherwise_is_far_off() -> None:
    model = tiny_model()
    prompts = prompts_of(model, LENGTHS, torch.float32)
    rolled = rollout(model, prompts, group=8, sampling=WARPS[2], seed=5, row_ids=torch.arange(64), limit=24)
    for other in (Sampling(1.3, 12, 0.8), Sampling(1.3, 0, 0.8, 0.7, 20, 0.95), Sampling(1.3, 12, 1.0, 0.7, 20, 0.95), Sampling(0.8)):
        assert distance(model, prompts, rolled, other) > 1e-2
