"""The reward model: the judge distilled into one pass over features and audio codes.

Two towers, for the query and for the answer, begin as the speech LM's own shared layers; their meeting gives the probabilities of the
Likert digits, and the reward is the expected digit (ParaS2S, arXiv 2511.08723: the digit as a token, trained by cross-entropy). The
towers also say what the judge heard on each side, which teaches them far more a pair than a digit does.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paras2s_cli.judge.ears import Describer, pad
from paras2s_cli.models.prompt import spoken_queries
from paras2s_cli.models.speech_lm import SpeechLM, Streams, causal

DIGITS = 5
WORD_PRIOR = 8.0
"""Logit that a word is not heard, where no position speaks for it."""


@dataclass
class Side:
    """What a tower makes of B utterances. vector: [B, width]; words: [B, words] logits of what the judge heard."""

    vector: Tensor
    words: Tensor


class Tower(nn.Module):
    """A stream of either side to one vector: the trunk's shared layers, in which words are spotted, pooled by learned attention."""

    def __init__(self, model: SpeechLM, width: int, words: int) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(model)
        del (
            self.trunk.lm_head,
            self.trunk.mimo_output,
            self.trunk.model.mimo_layers,
            self.trunk.model.mimo_norm,
            self.trunk.model.norm,
        )
        self.trunk.model.layers = self.trunk.model.layers[: model.config.shared_layers]
        size = model.config.hidden_size
        self.norm = nn.RMSNorm(size)
        self.look = nn.Linear(size, 4)
        self.project = nn.Linear(4 * size, width)
        self.spot = nn.Linear(size, words)
        self.gather = nn.Linear(words, width)

    def forward(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """[B, T] streams -> vectors [B, width] and logits [B, words] of each word's being heard anywhere."""
        positions, mask = causal(streams.valid)
        hidden = self.norm(self.trunk.shared(self.trunk.embed(streams), positions, mask))
        outside = ~streams.valid[..., None]
        weights = self.look(hidden).float().masked_fill(outside, -torch.inf).softmax(1)
        pooled = self.project(torch.einsum("btk,btd->bkd", weights, hidden.float()).flatten(1))
        # A word is where it is said: a vector of the whole utterance learns sentences by heart, and new ones are its trouble.
        words = self.spot(hidden).float().masked_fill(outside, -torch.inf).logsumexp(1) - WORD_PRIOR
        return pooled + self.gather(words.sigmoid()), words


class RewardModel(nn.Module):
    """Query features and answer codes in, Likert logits out.

    Args:
        model: the speech LM that the towers start from.
        ear: what the judge tells tones with; the reward model has a copy, which it does not train further.
        words: size of the vocabulary of heard words.
        query_tones, answer_tones: how many of each the ear tells apart, in this order.
    """

    def __init__(self, model: SpeechLM, ear: Describer, *, words: int, query_tones: int, answer_tones: int, width: int = 256) -> None:
        super().__init__()
        self.query, self.answer = Tower(model, width, words), Tower(model, width, words)
        # The trunk hears words twelve times a second; a tone is told from finer and longer movements. An answer has no waveform yet.
        self.ear, self.query_tones = copy.deepcopy(ear), query_tones
        self.bring = nn.Linear(2 * (query_tones + 4), width)
        self.tones = nn.Linear(width, answer_tones)
        self.asked, self.said, self.both = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.digit = nn.Linear(width, DIGITS)
        self.thaw()

    def thaw(self) -> None:
        """Lets all be trained but the ear."""
        self.requires_grad_(True)
        self.ear.requires_grad_(False)

    def queries(self, tables: Sequence[np.ndarray], augmented: Sequence[np.ndarray] | None = None) -> Side:
        """Features [F, SIZE] a query -> Q of them. Where words are spotted, `augmented` takes their place; the ear has learnt already."""
        lm = self.query.trunk
        vector, words = self.query(spoken_queries(tables if augmented is None else augmented, lm.config, lm.specials))
        tones, ages, sexes = self.ear(*pad(tables))
        chances = torch.cat([x.float().log_softmax(-1) for x in (tones[:, : self.query_tones], ages, sexes)], 1)
        # The judge asks which of a sentence's two styles is likelier, be both unlikely: that is told from logarithms.
        manner = torch.cat([chances.exp(), chances.clamp(min=-8) / 4 + 1], 1)
        return Side(vector + self.bring(manner), words)

    def answers(self, codes: Sequence[np.ndarray]) -> Side:
        """Audio codes [N] an answer -> A of them."""
        lm = self.answer.trunk
        width = max(len(c) for c in codes) + 2
        audio = torch.full((len(codes), width), lm.specials.blank)
        valid = torch.zeros_like(audio, dtype=torch.bool)
        for i, row in enumerate(codes):
            start = width - len(row) - 2
            audio[i, start], audio[i, -1] = lm.specials.media_begin, lm.specials.media_end
            audio[i, start + 1 : -1] = torch.from_numpy(row) + lm.config.kimia_token_offset
            valid[i, start:] = True
        vector, words = self.answer(Streams(audio, torch.full_like(audio, lm.specials.blank), valid, torch.zeros_like(valid), None))
        return Side(vector, words)

    def digits(self, queries: Tensor, answers: Tensor) -> Tensor:
        """Logits of the digits 1..5: [..., width] twice, broadcast -> [..., 5]."""
        # One layer on [query, answer, query * answer], of which the first two thirds need no pairs.
        joint = self.asked(F.gelu(queries)) + self.said(F.gelu(answers)) + self.both(F.gelu(queries * answers))
        return self.digit(F.dropout(F.gelu(joint), 0.2, self.training)).float()

    def expected(self, logits: Tensor) -> Tensor:
        """The reward: the expected digit, [..., 5] -> [...]."""
        return (logits.softmax(-1) * torch.arange(1, DIGITS + 1, device=logits.device)).sum(-1)

    @torch.no_grad()
    def grade(self, tables: Sequence[np.ndarray], codes: Sequence[np.ndarray], group: int = 1) -> tuple[Tensor, Tensor]:
        """Rewards [Q * group] fp32 of answers, `group` of them to each query in turn, and probabilities [Q * group, words] of the words
        in them. An answer without codes gets 1 and has no words."""
        spoken = [c if len(c) else np.zeros(1, dtype=np.int64) for c in codes]
        queries, answers = self.queries(tables).vector.repeat_interleave(group, 0), self.answers(spoken)
        rewards = self.expected(self.digits(queries, answers.vector))
        there = torch.tensor([len(c) > 0 for c in codes])
        return torch.where(there, rewards, torch.ones(())), answers.words.sigmoid() * there[:, None]

    def reward(self, tables: Sequence[np.ndarray], codes: Sequence[np.ndarray], group: int = 1) -> Tensor:
        """The rewards of `grade`."""
        return self.grade(tables, codes, group)[0]


def agreeing(rewards: Tensor, spoken: Tensor, written: Tensor, weight: float) -> Tensor:
    """Rewards of answers whose sound may say other words than their text: r - weight (r - 1) (1 - J).

    J is the overlap of the words (Jaccard's, of probabilities: sum min / sum max). A text that is not spoken earns nothing then, and an
    answer cannot mend its sound alone.

    Args:
        rewards: [B], from 1. spoken: [B, words] probabilities. written: [B, words], 1 where a word is written. weight: 0..1.
    """
    overlap = torch.minimum(spoken, written).sum(1) / torch.maximum(spoken, written).sum(1).clamp(min=1e-6)
    return rewards - weight * (rewards - 1) * (1 - overlap)
