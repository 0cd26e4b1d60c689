"""Likert digits of a pair, from what was heard on its two sides."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIGITS = 5


@dataclass
class Side:
    """What is heard in B utterances. words: [B, words] probabilities of each word's being said; manner: [B, ...], how."""

    words: Tensor
    manner: Tensor

    def __getitem__(self, rows: Tensor | np.ndarray | slice) -> "Side":
        return Side(self.words[rows], self.manner[rows])

    def repeat(self, times: int) -> "Side":
        """Each of them so many times in turn."""
        return Side(self.words.repeat_interleave(times, 0), self.manner.repeat_interleave(times, 0))

    def renamed(self, order: Tensor) -> "Side":
        """With the words in another order, [words]."""
        return Side(self.words[:, order], self.manner)


def manner_of(tones: Tensor, ages: Tensor, sexes: Tensor) -> Tensor:
    """1 or -1 for each two tones, for age and for sex: which is likelier. [B, tones], [B, 2], [B, 2] -> [B, tones (tones - 1) / 2 + 2].

    The judge asks which of a sentence's two styles is likelier, be both unlikely. Logits and probabilities serve alike.
    """
    first, second = torch.triu_indices(tones.shape[1], tones.shape[1], 1, device=tones.device)
    likelier = torch.cat([tones[:, first] > tones[:, second], ages[:, :1] > ages[:, 1:], sexes[:, :1] > sexes[:, 1:]], 1)
    return 2 * likelier.float() - 1


def expected_digit(logits: Tensor) -> Tensor:
    """The reward: the expected digit 1..5, of logits [..., 5] -> [...]."""
    return (logits.softmax(-1) * torch.arange(1, DIGITS + 1, device=logits.device)).sum(-1)


class PairDigits(nn.Module):
    """The last part of the reward model: the judge's rubric as a network.

    Args:
        words: size of the vocabulary, the same on both sides. asked_manner, said_manner: sizes of the two sides' manner.
    """

    def __init__(self, words: int, asked_manner: int, said_manner: int, width: int = 256) -> None:
        super().__init__()
        self.ask = nn.Sequential(nn.Linear(words + asked_manner, width), nn.GELU(), nn.Linear(width, width))
        self.say = nn.Sequential(nn.Linear(words + said_manner, width), nn.GELU(), nn.Linear(width, width))
        self.asked, self.said, self.both = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.shared = nn.Linear(words, width, bias=False)
        self.digit = nn.Linear(width, DIGITS)

    def forward(self, queries: Side, answers: Side) -> Tensor:
        """Logits of the digits 1..5 of every query with every answer: Q, A -> [Q, A, 5] fp32."""
        return self._meet(Side(queries.words[:, None], queries.manner[:, None]), Side(answers.words[None], answers.manner[None]))

    def own(self, queries: Side, answers: Side) -> Tensor:
        """Logits of the digits 1..5 of each query with the answer in its place: B, B -> [B, 5] fp32."""
        return self._meet(queries, answers)

    def _meet(self, queries: Side, answers: Side) -> Tensor:
        query = F.gelu(self.ask(torch.cat([queries.words, queries.manner], -1)))
        answer = F.gelu(self.say(torch.cat([answers.words, answers.manner], -1)))
        # One layer on [query, answer, query * answer, words of both], of which the first two parts need no pairs.
        joint = self.asked(query) + self.said(answer) + self.both(query * answer) + self.shared(queries.words * answers.words)
        return self.digit(F.dropout(F.gelu(joint), 0.2, self.training)).float()
