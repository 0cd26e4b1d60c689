"""The reward model by itself: batching changes nothing, pairs are independent, the ears stay as they were, silence gets 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paras2s_cli.audio.features import SIZE
from paras2s_cli.judge.ears import LETTERS, Describer, Transcriber
from paras2s_cli.judge.reward import RewardModel, agreeing
from paras2s_cli.models.small import new_model, word_tokenizer

CODES, WORDS = 20, ["lake", "party", "how", "nasty", "sorry", "i", "am", "so", "the", "to", "sir"]


@pytest.fixture
def reward() -> RewardModel:
    shape = {"hidden_size": 32, "intermediate_size": 48, "shared_layers": 2, "text_layers": 1, "audio_layers": 1}
    lm = new_model(word_tokenizer(["yes no"]), codes=CODES, features=SIZE, heads=4, kv_heads=2, delay=2, seed=1, **shape)
    torch.manual_seed(0)
    return RewardModel(lm, Transcriber(16), Describer(8, 16), words=WORDS, query_tones=5, answer_tones=3).eval()


def tables(lengths: list[int]) -> list[np.ndarray]:
    return [np.random.default_rng([3, n]).standard_normal((n, SIZE)).astype(np.float32) for n in lengths]


def spoken(lengths: list[int]) -> list[np.ndarray]:
    return [np.random.default_rng([4, n]).integers(0, CODES, n) for n in lengths]


@torch.no_grad()
def test_a_pair_alone_and_in_a_batch_of_mixed_lengths(reward: RewardModel) -> None:
    queries, answers = tables([40, 17, 64]), spoken([5, 21, 9])
    together = reward.grade(queries, answers)[0]
    assert together.unique().numel() == 3 and bool(((together > 1) & (together < 5)).all())
    for i in range(3):
        torch.testing.assert_close(reward.grade(queries[i : i + 1], answers[i : i + 1])[0][0], together[i], atol=1e-5, rtol=0)


def test_a_group_is_its_query_with_each_of_its_answers(reward: RewardModel) -> None:
    queries, answers = tables([40, 17]), spoken([5, 21, 9, 12])
    grouped = reward.grade(queries, answers, group=2)[0]
    one_by_one = reward.grade([queries[0], queries[0], queries[1], queries[1]], answers)[0]
    torch.testing.assert_close(grouped, one_by_one, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_word_is_spotted_where_any_position_says_it(reward: RewardModel) -> None:
    """Its logit is the logsumexp over the row's own positions: raising one position's raises it, and padding says nothing."""
    short, long = spoken([4, 30])
    alone = reward.read([short])[0][0]
    padded = reward.read([short, long])[0][0]
    torch.testing.assert_close(alone, padded, atol=1e-5, rtol=0)
    reward.answer.spot.bias[2] += 3
    raised = reward.read([short])[0][0]
    torch.testing.assert_close(raised[2], alone[2] + 3, atol=1e-4, rtol=0)


def test_the_ears_are_never_trained_and_the_rest_is(reward: RewardModel) -> None:
    for _ in range(2):
        assert not any(p.requires_grad for p in reward.ears.parameters())
        assert all(p.requires_grad for n, p in reward.named_parameters() if not n.startswith("ears."))
        reward.requires_grad_(False)
        reward.thaw()
    queries = reward.queries(tables([40]))
    queries.words[:] = 1.0
    loss = reward.digits(queries, reward.answers(spoken([5]))).square().sum()
    loss.backward()
    assert all(p.grad is None for p in reward.ears.parameters())
    for part in (reward.answer.spot, reward.answer.tone[0], reward.digits.shared):
        assert float(part.weight.grad.abs().sum()) > 0


def test_a_query_is_what_the_ears_make_of_it(reward: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words as they are spelled, the nearest known ones taken; tones of queries alone; lengths respected."""

    def path(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        found = torch.full((len(x), x.shape[1], len(LETTERS) + 1), -9.0)
        for i, text in enumerate(["the lak", "how nastty zzzz"]):
            for j, c in enumerate(text):
                found[i, 2 * j, LETTERS.index(c) + 1] = found[i, 2 * j + 1, 0] = 0.0
            found[i, 2 * len(text) :, 0] = 0.0
        return found

    def describe(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tones = torch.tensor([[0.0, 1, 2, 3, 4, 9, 9, 9], [4.0, 3, 2, 1, 0, 9, 9, 9]])
        return tones, torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[0.0, 1], [1, 0]])

    monkeypatch.setattr(reward.ears["transcriber"], "forward", path)
    monkeypatch.setattr(reward.ears["describer"], "forward", describe)
    side = reward.queries(tables([64, 40]))
    assert [[w for w, j in reward.vocabulary.columns.items() if row[j]] for row in side.words] == [["lake", "the"], ["how", "nasty"]]
    assert side.manner.tolist() == [[-1.0] * 10 + [1, -1], [1.0] * 10 + [-1, 1]]


def test_what_is_said_counts_as_far_as_it_is_written() -> None:
    written = torch.tensor([[1.0, 1, 0, 0]] * 4 + [[0.0, 0, 0, 0]])
    spoken = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0.5, 1, 0, 0], [0, 0, 0, 0]])
    rewards = torch.tensor([5.0, 4.0, 5.0, 3.0, 5.0])
    # overlaps: 1, 1/3, 0, 3/4, 0
    torch.testing.assert_close(agreeing(rewards, spoken, written, 1.0), torch.tensor([5.0, 2.0, 1.0, 2.5, 1.0]))
    torch.testing.assert_close(agreeing(rewards, spoken, written, 0.5), torch.tensor([5.0, 3.0, 3.0, 2.75, 3.0]))
    assert torch.equal(agreeing(rewards, spoken, written, 0.0), rewards)


@torch.no_grad()
def test_an_answer_without_codes_gets_1_and_has_no_words(reward: RewardModel) -> None:
    given, words = reward.grade(tables([40, 17]), [spoken([5])[0], np.zeros(0, np.int64)])
    assert given[1] == 1 < given[0] and not words[1].any() and bool((words[0] > 0).all())
