"""Digits of pairs: every pair by hand, own pairs are the diagonal, what is renamed on both sides, which tone is likelier."""

from __future__ import annotations

import pytest
import torch

from paras2s_cli.judge.pair_digits import PairDigits, Side, manner_of


@pytest.fixture
def digits() -> PairDigits:
    torch.manual_seed(0)
    return PairDigits(7, 5, 3, width=16).eval()


def side(rows: int, manner: int) -> Side:
    generator = torch.Generator().manual_seed(rows)
    return Side(torch.rand(rows, 7, generator=generator), torch.rand(rows, manner, generator=generator))


@torch.no_grad()
def test_every_pair_by_hand(digits: PairDigits) -> None:
    queries, answers = side(4, 5), side(6, 3)
    found = digits(queries, answers)
    weight = torch.cat([digits.asked.weight, digits.said.weight, digits.both.weight, digits.shared.weight], 1)
    bias = digits.asked.bias + digits.said.bias + digits.both.bias
    gelu = torch.nn.functional.gelu
    for i in range(4):
        for j in range(6):
            query = gelu(digits.ask(torch.cat([queries.words[i], queries.manner[i]])))
            answer = gelu(digits.say(torch.cat([answers.words[j], answers.manner[j]])))
            joint = torch.cat([query, answer, query * answer, queries.words[i] * answers.words[j]])
            torch.testing.assert_close(found[i, j], digits.digit(gelu(weight @ joint + bias)), atol=1e-5, rtol=0)
    torch.testing.assert_close(digits.own(queries, answers[:4]), found[:, :4].diagonal().T, atol=1e-5, rtol=0)


def test_rows_repeated_and_words_renamed() -> None:
    some = side(2, 5)
    assert torch.equal(some.repeat(2).words, some.words[[0, 0, 1, 1]]) and torch.equal(some.repeat(2).manner, some.manner[[0, 0, 1, 1]])
    order = torch.tensor([0, 3, 1, 2, 4, 5, 6])
    other = some.renamed(order)
    assert torch.equal(other.words[:, 1], some.words[:, 3]) and torch.equal(other.manner, some.manner)


def test_manner_compares_every_two_tones() -> None:
    found = manner_of(torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([[0.9, 0.1]]), torch.tensor([[0.4, 0.6]]))
    # 0 over 1, 0 over 2, 1 over 2, adult over child, male over female
    assert found.tolist() == [[-1, -1, 1, 1, -1]]
