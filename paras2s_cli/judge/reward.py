"""The reward model: the judge distilled into one pass over features and audio codes.

A query is heard by frozen copies of the judge's two ears, without its closed set of texts: the policy cannot game a recording. An answer
is never made a sound: a tower that begins as the speech LM's own shared layers reads words and tone off its codes. A small network on
what was heard on both sides gives the probabilities of the Likert digits, and the reward is the expected digit (ParaS2S, arXiv
2511.08723: the digit as a token, trained by cross-entropy).
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from paras2s_cli.judge.ears import Describer, Transcriber, best_path, pad
from paras2s_cli.judge.pair_digits import PairDigits, Side, expected_digit, manner_of
from paras2s_cli.judge.vocabulary import Vocabulary
from paras2s_cli.models.speech_lm import SpeechLM, Streams, causal

WORD_PRIOR = 8.0
"""Logit that a word is not heard, where no position speaks for it."""


class Tower(nn.Module):
    """Words and tones of answers: the trunk's shared layers, in which words are spotted, pooled for the tone by learned attention."""

    def __init__(self, model: SpeechLM, words: int, tones: int) -> None:
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
        self.tone = nn.Sequential(nn.Linear(4 * size, size), nn.GELU(), nn.Linear(size, tones))
        self.spot = nn.Linear(size, words)

    def forward(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """[B, T] streams -> logits [B, words] of each word's being heard anywhere, and logits [B, tones]."""
        positions, mask = causal(streams.valid)
        hidden = self.norm(self.trunk.shared(self.trunk.embed(streams), positions, mask))
        outside = ~streams.valid[..., None]
        weights = self.look(hidden).float().masked_fill(outside, -torch.inf).softmax(1)
        tones = self.tone(torch.einsum("btk,btd->bkd", weights, hidden.float()).flatten(1)).float()
        # A word is where it is said: a vector of the whole utterance learns sentences by heart, and new ones are its trouble.
        words = self.spot(hidden).float().masked_fill(outside, -torch.inf).logsumexp(1) - WORD_PRIOR
        return words, tones


class RewardModel(nn.Module):
    """Query features and answer codes in, Likert logits out.

    Args:
        model: the speech LM that the tower starts from.
        transcriber, describer: the judge's ears; the reward model has copies, which it does not train further.
        words: the vocabulary of heard words.
        query_tones, answer_tones: how many of each the describer tells apart, in this order.
    """

    def __init__(
        self,
        model: SpeechLM,
        transcriber: Transcriber,
        describer: Describer,
        *,
        words: Sequence[str],
        query_tones: int,
        answer_tones: int,
    ) -> None:
        super().__init__()
        self.vocabulary, self.query_tones = Vocabulary(words), query_tones
        self.ears = nn.ModuleDict({"transcriber": copy.deepcopy(transcriber), "describer": copy.deepcopy(describer)})
        self.answer = Tower(model, len(words), answer_tones)
        self.digits = PairDigits(len(words), query_tones * (query_tones - 1) // 2 + 2, answer_tones)
        self.thaw()

    def thaw(self) -> None:
        """Lets all be trained but the ears."""
        self.requires_grad_(True)
        self.ears.requires_grad_(False)

    def queries(self, tables: Sequence[np.ndarray]) -> Side:
        """Features [F, SIZE] a query -> Q of them."""
        x, lengths = pad(tables)
        tones, ages, sexes = self.ears["describer"](x, lengths)
        logprobs = self.ears["transcriber"](x, lengths)
        spelled = [best_path(row[:length]) for row, length in zip(logprobs, lengths.tolist(), strict=True)]
        words = self.vocabulary.words_in([self.vocabulary.nearest(text) for text in spelled])
        return Side(words, manner_of(tones[:, : self.query_tones], ages, sexes))

    def read(self, codes: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Audio codes [N] an answer -> logits of the tower for A of them."""
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

    def answers(self, codes: Sequence[np.ndarray]) -> Side:
        """Audio codes [N] an answer -> A of them. An answer without codes has no words and sounds like any."""
        words, tones = self.read([c if len(c) else np.zeros(1, dtype=np.int64) for c in codes])
        there = torch.tensor([len(c) > 0 for c in codes])[:, None]
        return Side(words.sigmoid() * there, torch.where(there, tones.softmax(-1), 1 / tones.shape[1]))

    @torch.no_grad()
    def grade(self, tables: Sequence[np.ndarray], codes: Sequence[np.ndarray], group: int = 1) -> tuple[Tensor, Tensor]:
        """Rewards [Q * group] fp32 of answers, `group` of them to each query in turn, and probabilities [Q * group, words] of the words
        in them. An answer without codes gets 1 and has no words."""
        answers = self.answers(codes)
        rewards = expected_digit(self.digits.own(self.queries(tables).repeat(group), answers))
        there = torch.tensor([len(c) > 0 for c in codes])
        return torch.where(there, rewards, torch.ones(())), answers.words


def agreeing(rewards: Tensor, spoken: Tensor, written: Tensor, weight: float) -> Tensor:
    """Rewards of answers whose sound may say other words than their text: r - weight (r - 1) (1 - J).

    J is the overlap of the words (Jaccard's, of probabilities: sum min / sum max). A text that is not spoken earns nothing then, and an
    answer cannot mend its sound alone.

    Args:
        rewards: [B], from 1. spoken: [B, words] probabilities. written: [B, words], 1 where a word is written. weight: 0..1.
    """
    overlap = torch.minimum(spoken, written).sum(1) / torch.maximum(spoken, written).sum(1).clamp(min=1e-6)
    return rewards - weight * (rewards - 1) * (1 - overlap)
