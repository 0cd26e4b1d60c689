"""The reward model by itself: batching changes nothing, pairs are independent, the ear stays as it was, silence gets 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paras2s_cli.audio.features import SIZE
from paras2s_cli.judge.ears import Describer
from paras2s_cli.judge.reward import RewardModel, agreeing
from paras2s_cli.models.small import new_model, word_tokenizer

CODES, WORDS = 20, 11


@pytest.fixture
def reward() -> RewardModel:
    shape = {"hidden_size": 32, "intermediate_size": 48, "shared_layers": 2, "text_layers": 1, "audio_layers": 1}
    lm = new_model(word_tokenizer(["yes no"]), codes=CODES, features=SIZE, heads=4, kv_heads=2, delay=2, seed=1, **shape)
    torch.manual_seed(0)
    return RewardModel(lm, Describer(8), words=WORDS, query_tones=5, answer_tones=3, width=24).eval()


def tables(lengths: list[int]) -> list[np.ndarray]:
    return [np.random.default_rng([3, n]).standard_normal((n, SIZE)).astype(np.float32) for n in lengths]


def spoken(lengths: list[int]) -> list[np.ndarray]:
    return [np.random.default_rng([4, n]).integers(0, CODES, n) for n in lengths]


@torch.no_grad()
def test_a_pair_alone_and_in_a_batch_of_mixed_lengths(reward: RewardModel) -> None:
    queries, answers = tables([40, 17, 64]), spoken([5, 21, 9])
    together = reward.reward(queries, answers)
    assert together.unique().numel() == 3 and bool(((together > 1) & (together < 5)).all())
    for i in range(3):
        torch.testing.assert_close(reward.reward(queries[i : i + 1], answers[i : i + 1])[0], together[i], atol=1e-5, rtol=0)


def test_a_group_is_its_query_with_each_of_its_answers(reward: RewardModel) -> None:
    queries, answers = tables([40, 17]), spoken([5, 21, 9, 12])
    grouped = reward.reward(queries, answers, group=2)
    one_by_one = reward.reward([queries[0], queries[0], queries[1], queries[1]], answers)
    torch.testing.assert_close(grouped, one_by_one, atol=1e-5, rtol=0)


def test_an_answer_without_codes_gets_1(reward: RewardModel) -> None:
    rewards = reward.reward(tables([40, 17]), [spoken([5])[0], np.zeros(0, np.int64)])
    assert rewards[1] == 1 and rewards[0] > 1


@torch.no_grad()
def test_digits_of_all_pairs_are_those_of_a_layer_on_query_answer_and_product(reward: RewardModel) -> None:
    queries, answers = reward.queries(tables([40, 17, 8])).vector, reward.answers(spoken([5, 21])).vector
    found = reward.digits(queries[:, None], answers[None])
    weight = torch.cat([reward.asked.weight, reward.said.weight, reward.both.weight], 1)
    bias = reward.asked.bias + reward.said.bias + reward.both.bias
    for i in range(3):
        for j in range(2):
            joint = torch.nn.functional.gelu(torch.cat([queries[i], answers[j], queries[i] * answers[j]]))
            wanted = reward.digit(torch.nn.functional.gelu(weight @ joint + bias))
            torch.testing.assert_close(found[i, j], wanted, atol=1e-5, rtol=0)
    ones = torch.full((5,), -50.0)
    ones[3] = 50.0
    assert reward.expected(ones) == 4


@torch.no_grad()
def test_a_word_is_spotted_where_any_position_says_it(reward: RewardModel) -> None:
    """Its logit is the logsumexp over the row's own positions: raising one position's raises it, and padding says nothing."""
    short, long = spoken([4, 30])
    alone = reward.answers([short]).words[0]
    padded = reward.answers([short, long]).words[0]
    torch.testing.assert_close(alone, padded, atol=1e-5, rtol=0)
    reward.answer.spot.bias[2] += 3
    raised = reward.answers([short]).words[0]
    torch.testing.assert_close(raised[2], alone[2] + 3, atol=1e-4, rtol=0)


def test_the_ear_is_never_trained_and_the_rest_is(reward: RewardModel) -> None:
    for _ in range(2):
        assert not any(p.requires_grad for p in reward.ear.parameters())
        assert all(p.requires_grad for n, p in reward.named_parameters() if not n.startswith("ear."))
        reward.requires_grad_(False)
        reward.thaw()
    loss = reward.digits(reward.queries(tables([40])).vector, reward.answers(spoken([5])).vector).square().sum()
    loss.backward()
    assert all(p.grad is None for p in reward.ear.parameters())
    assert reward.bring.weight.grad is not None and float(reward.bring.weight.grad.abs().sum()) > 0


@torch.no_grad()
def test_augmented_features_are_for_words_alone(reward: RewardModel) -> None:
    clean, other = tables([40]), [t * 0.5 for t in tables([40])]
    both, plain = reward.queries(clean, other), reward.queries(clean)
    assert torch.equal(both.words, reward.queries(other).words) and not torch.equal(both.words, plain.words)
    # what the ear adds is the same whichever the trunk hears
    ear = plain.vector - reward.queries(other, clean).vector
    torch.testing.assert_close(both.vector - reward.queries(other).vector, ear, atol=1e-4, rtol=0)


def test_what_is_said_counts_as_far_as_it_is_written() -> None:
    written = torch.tensor([[1.0, 1, 0, 0]] * 4 + [[0.0, 0, 0, 0]])
    spoken = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0.5, 1, 0, 0], [0, 0, 0, 0]])
    rewards = torch.tensor([5.0, 4.0, 5.0, 3.0, 5.0])
    # overlaps: 1, 1/3, 0, 3/4, 0
    torch.testing.assert_close(agreeing(rewards, spoken, written, 1.0), torch.tensor([5.0, 2.0, 1.0, 2.5, 1.0]))
    torch.testing.assert_close(agreeing(rewards, spoken, written, 0.5), torch.tensor([5.0, 3.0, 3.0, 2.75, 3.0]))
    assert torch.equal(agreeing(rewards, spoken, written, 0.0), rewards)


@torch.no_grad()
def test_an_answer_without_codes_has_no_words(reward: RewardModel) -> None:
    given, words = reward.grade(tables([40, 17]), [spoken([5])[0], np.zeros(0, np.int64)])
    assert given[1] == 1 and not words[1].any() and bool((words[0] > 0).all())
