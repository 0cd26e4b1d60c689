"""Qwen2.5-Omni's rollouts and their scores, against the library: its forward in float64 a row at a time, and its own generate."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from naive_omni import score

from paras2s_cli.models.omni import OmniPrompts, QwenOmni
from paras2s_cli.models.omni_streams import answer_logits
from paras2s_cli.rollout.engine import Rollouts
from paras2s_cli.rollout.omni import rollout_omni
from paras2s_cli.rollout.sampling import Sampling, Warp, restrict
from tests.qwen2_5_omni import write_qwen2_5_omni

PLAIN = Sampling(1.0)
WARPED = Sampling(1.4, 12, 0.9, text_temperature=0.7, text_top_k=60, text_top_p=0.95)
LENGTHS = [9000, 5000, 16000]


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> QwenOmni:
    return QwenOmni.load(write_qwen2_5_omni(tmp_path_factory.mktemp("omni")))


def queries(omni: QwenOmni, lengths: list[int] = LENGTHS) -> OmniPrompts:
    rng = np.random.default_rng(0)
    return omni.prompt([(0.1 * rng.normal(size=n)).astype(np.float32) for n in lengths])


def sampled(omni: QwenOmni, sampling: Sampling, prompts: OmniPrompts | None = None, **changes: Any) -> Rollouts:
    prompts = queries(omni) if prompts is None else prompts
    rows = torch.arange(2 * len(prompts.ids))
    return rollout_omni(omni, prompts, **{"group": 2, "sampling": sampling, "seed": 4, "row_ids": rows, "limit": 14, **changes})


def both(rolled: Rollouts) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Ids, which of them were drawn, and their log-probabilities: text, audio."""
    answers = rolled.answers
    return [(answers.text, answers.text_free, rolled.text_logprobs), (answers.audio, answers.audio_free, rolled.audio_logprobs)]


def rescored(logits: torch.Tensor, ids: torch.Tensor, warp: Warp) -> torch.Tensor:
    return (restrict(logits, warp, ids) / (warp.temperature or 1.0)).log_softmax(-1).gather(1, ids[:, None])[:, 0]


@pytest.mark.parametrize("sampling", [PLAIN, WARPED])
def test_logprobs_are_those_of_a_slow_float64_model(omni: QwenOmni, sampling: Sampling) -> None:
    prompts, slow = queries(omni), copy.deepcopy(omni.model).double()
    rolled = sampled(omni, sampling, prompts)
    streams = both(rolled)
    lengths = [[int(n) for n in free.sum(1)] for _, free, _ in streams]
    assert len(set(lengths[0])) > 1 and len(set(lengths[1])) > 1 and rolled.ended.any()
    banned = omni.text_banned, omni.audio_banned
    with torch.no_grad():
        for row in range(6):
            text, codes = (ids[row][free[row]].tolist() for ids, free, _ in streams)
            wanted = score(slow, omni.speaker, prompts, row // 2, text, codes, sampling, banned)
            for (_, free, found), given in zip(streams, wanted, strict=True):
                assert found[row][free[row]].tolist() == pytest.approx(given, abs=2e-5)
                assert not found[row][~free[row]].any()


@pytest.mark.parametrize("sampling", [PLAIN, WARPED])
@pytest.mark.parametrize("batch", [6, 2])
def test_on_policy_the_ratio_is_1(omni: QwenOmni, sampling: Sampling, batch: int) -> None:
    prompts = queries(omni)
    rolled = sampled(omni, sampling, prompts, batch=batch)
    logits = answer_logits(omni, prompts, rolled.answers)
    for (ids, free, given), scores, warp in zip(both(rolled), logits, (sampling.text, sampling.audio), strict=True):
        assert scores.requires_grad
        assert float((rescored(scores, ids[free], warp) - given[free]).exp().sub(1).abs().mean().detach()) <= 1e-5


def test_a_row_draws_the_same_alone_and_in_a_batch(omni: QwenOmni) -> None:
    whole = sampled(omni, WARPED)
    alone = sampled(omni, WARPED, queries(omni).select(slice(1, 2)), row_ids=torch.tensor([2, 3]))
    for (ids, free, logprobs), (own, own_free, own_logprobs) in zip(both(whole), both(alone), strict=True):
        width = own.shape[1]
        assert torch.equal(ids[2:4, :width], own) and torch.equal(free[2:4, :width], own_free) and not free[2:4, width:].any()
        torch.testing.assert_close(logprobs[2:4, :width], own_logprobs, atol=2e-5, rtol=0)
    in_turn = sampled(omni, WARPED, batch=2).answers
    assert torch.equal(in_turn.audio, whole.answers.audio) and torch.equal(in_turn.text, whole.answers.text)
    assert not torch.equal(whole.answers.audio, sampled(omni, WARPED, seed=5).answers.audio)
    assert not torch.equal(whole.answers.text[0], whole.answers.text[1])


def test_greedy_is_the_librarys_generate_to_the_last_sample(omni: QwenOmni, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

    prompts, codes = queries(omni, [9000, 12345]), []
    talk = omni.model.talker.generate
    monkeypatch.setattr(omni.model.talker, "generate", lambda **given: codes.append(talk(**given)) or codes[-1])
    silent = [torch.nonzero(banned)[:, 0].tolist() for banned in (omni.text_banned, omni.audio_banned)]
    thought, talked = (LogitsProcessorList([SuppressTokensLogitsProcessor(ids)]) for ids in silent)
    torch.manual_seed(7)
    said, waves = omni.model.generate(
        input_ids=prompts.ids,
        attention_mask=prompts.valid.long(),
        input_features=prompts.mel,
        feature_attention_mask=prompts.frames.long(),
        speaker=omni.speaker,
        thinker_max_new_tokens=20,
        thinker_do_sample=False,
        thinker_logits_processor=thought,
        talker_max_new_tokens=20,
        talker_do_sample=False,
        talker_top_k=None,
        talker_top_p=None,
        talker_temperature=None,
        talker_repetition_penalty=1.0,
        talker_eos_token_id=omni.audio_ends.tolist(),
        talker_logits_processor=talked,
    )
    rolled = rollout_omni(omni, prompts, group=1, sampling=Sampling(0.0), seed=1, row_ids=torch.arange(2), limit=20)
    for row in range(2):
        for whole, (ids, free, _) in zip((said, codes[0]), both(rolled), strict=True):
            given = ids[row][free[row]]
            assert torch.equal(whole[row, whole.shape[1] - ids.shape[1] :][: len(given)], given)
    spoken = [c for c in rolled.answers.audio[0].tolist() if c < omni.codes]
    assert np.array_equal(omni.speak([np.array(spoken)], [7])[0], waves[0].numpy())


def test_an_answer_of_no_words_and_one_of_one_token(omni: QwenOmni) -> None:
    """A thinker that says nothing, and a limit of one, still make an answer that is scored as it was drawn."""
    prompts = queries(omni)
    for limit, logit in ((1, 0.0), (6, 50.0)):
        quiet = copy.copy(omni)
        quiet.model = copy.deepcopy(omni.model)
        with torch.no_grad():
            head = quiet.model.thinker.lm_head
            head.register_forward_hook(lambda _, __, out, logit=logit: out + logit * torch.eye(out.shape[-1])[omni.text_ends[0]])
        rolled = sampled(quiet, PLAIN, prompts, limit=limit)
        assert rolled.answers.text_free.sum(1).tolist() == [1] * 6
        logits = answer_logits(quiet, prompts, rolled.answers)
        for (ids, free, given), scores in zip(both(rolled), logits, strict=True):
            torch.testing.assert_close(rescored(scores, ids[free], Warp()), given[free], atol=2e-5, rtol=0)


def test_only_what_can_be_written_and_spoken_is_drawn(omni: QwenOmni) -> None:
    hot = sampled(omni, Sampling(50.0), limit=40)
    for ids, free, _ in both(hot):
        assert len(ids[free].unique()) > 20
    assert not omni.text_banned[hot.answers.text].any() and not omni.audio_banned[hot.answers.audio].any()
    places = torch.isin(hot.answers.audio, omni.audio_ends) & hot.answers.audio_free
    assert torch.equal(places.any(1) & torch.isin(hot.answers.text[:, -1], omni.text_ends), hot.ended)


def test_other_scores_are_far_off(omni: QwenOmni) -> None:
    """Untempered, with the streams swapped, or with another row's reply in the talker's ear, the ratio is not 1."""
    prompts, rolled = queries(omni), sampled(omni, WARPED)
    (text, text_free, given), (audio, audio_free, heard) = both(rolled)
    logits = answer_logits(omni, prompts, rolled.answers)
    assert (rescored(logits[0], text[text_free], Warp()) - given[text_free]).exp().sub(1).abs().mean() > 0.05
    rolled.answers.text = text.roll(1, 0)
    rolled.answers.text_free = text_free.roll(1, 0)
    other = answer_logits(omni, prompts, rolled.answers)[1]
    assert (rescored(other, audio[audio_free], WARPED.audio) - heard[audio_free]).exp().sub(1).abs().mean() > 0.01
