"""The reward model: the judge distilled into one pass over features and audio codes.

Two towers, for the query and for the answer, begin as the speech LM's own shared layers; their meeting gives the probabilities of the
Likert digits, and the reward is the expected digit (ParaS2S, arXiv 2511.08723: the digit as a token, trained by cross-entropy). The
towers also say what the judge heard on each side, which teaches them far more a pair than a digit does.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paras2s_cli.judge.ears import Pooled, pad
from paras2s_cli.models.prompt import spoken_queries
from paras2s_cli.models.speech_lm import SpeechLM, Streams, causal

DIGITS = 5


class Tower(nn.Module):
    """A stream of either side to one vector: the trunk's shared layers, pooled by learned attention."""

    def __init__(self, model: SpeechLM, width: int, words: int, tones: int) -> None:
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
        self.words = nn.Linear(width, words)
        self.tones = nn.Linear(width, tones)

    def forward(self, streams: Streams) -> Tensor:
        """[B, T] streams -> [B, width]."""
        positions, mask = causal(streams.valid)
        hidden = self.norm(self.trunk.shared(self.trunk.embed(streams), positions, mask))
        weights = self.look(hidden).float().masked_fill(~streams.valid[..., None], -torch.inf).softmax(1)
        return self.project(torch.einsum("btk,btd->bkd", weights, hidden.float()).flatten(1))


class RewardModel(nn.Module):
    """Query features and answer codes in, Likert logits out.

    Args:
        model: the speech LM that the towers start from.
        ear: what the judge tells tones with; the reward model starts from a copy.
        words: size of the vocabulary of heard words. tones: number of tone probabilities of an `Utterance`.
    """

    def __init__(self, model: SpeechLM, ear: Pooled, words: int, tones: int, width: int = 256) -> None:
        super().__init__()
        self.query, self.answer = Tower(model, width, words, tones), Tower(model, width, words, tones)
        # The trunk hears words twelve times a second; a tone is told from finer and longer movements.
        self.manner = copy.deepcopy(ear)
        self.bring = nn.Linear(ear.out.out_features, width)
        self.asked, self.said, self.both = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.digit = nn.Linear(width, DIGITS)

    def queries(self, tables: Sequence[np.ndarray]) -> Tensor:
        """Features [F, SIZE] a query -> [Q, width]."""
        lm = self.query.trunk
        return self.query(spoken_queries(tables, lm.config, lm.specials)) + self.bring(F.gelu(self.manner(*pad(tables))))

    def answers(self, codes: Sequence[np.ndarray]) -> Tensor:
        """Audio codes [N] an answer -> [A, width]."""
        lm = self.answer.trunk
        width = max(len(c) for c in codes) + 2
        audio = torch.full((len(codes), width), lm.specials.blank)
        valid = torch.zeros_like(audio, dtype=torch.bool)
        for i, row in enumerate(codes):
            start = width - len(row) - 2
            audio[i, start], audio[i, -1] = lm.specials.media_begin, lm.specials.media_end
            audio[i, start + 1 : -1] = torch.from_numpy(row) + lm.config.kimia_token_offset
            valid[i, start:] = True
        return self.answer(Streams(audio, torch.full_like(audio, lm.specials.blank), valid, torch.zeros_like(valid), None))

    def digits(self, queries: Tensor, answers: Tensor) -> Tensor:
        """Logits of the digits 1..5: [..., width] twice, broadcast -> [..., 5]."""
        # One layer on [query, answer, query * answer], of which the first two thirds need no pairs.
        joint = self.asked(F.gelu(queries)) + self.said(F.gelu(answers)) + self.both(F.gelu(queries * answers))
        return self.digit(F.dropout(F.gelu(joint), 0.2, self.training)).float()

    def expected(self, logits: Tensor) -> Tensor:
        """The reward: the expected digit, [..., 5] -> [...]."""
        return (logits.softmax(-1) * torch.arange(1, DIGITS + 1, device=logits.device)).sum(-1)

    @torch.no_grad()
    def reward(self, tables: Sequence[np.ndarray], codes: Sequence[np.ndarray], group: int = 1) -> Tensor:
        """Rewards of answers, `group` of them to each query in turn: [Q * group] fp32. An answer without codes gets 1."""
        spoken = [c if len(c) else np.zeros(1, dtype=np.int64) for c in codes]
        queries = self.queries(tables).repeat_interleave(group, 0)
        rewards = self.expected(self.digits(queries, self.answers(spoken)))
        return torch.where(torch.tensor([len(c) > 0 for c in codes]), rewards, torch.ones(()))
