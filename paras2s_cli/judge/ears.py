"""The two small networks of the pocket judge: one hears words, the other hears tones. They share nothing but their features."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paras2s_cli.audio.features import SIZE

LETTERS = " abcdefghijklmnopqrstuvwxyz"
"""What the transcriber writes; column 0 is CTC's blank."""


def pad(tables: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Features of several utterances: [B, F, SIZE], zero-padded, and lengths [B]."""
    lengths = torch.tensor([len(t) for t in tables])
    return nn.utils.rnn.pad_sequence([torch.from_numpy(t) for t in tables], batch_first=True), lengths


def mask_of(lengths: Tensor, width: int) -> Tensor:
    """[B, width] bool, True inside."""
    return torch.arange(width)[None, :] < lengths[:, None]


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Makes one speaker and microphone into another, and hides a part (SpecAugment, Park et al. 2019): x [B, F, SIZE], same shape back.

    Bands move by up to one and change in level, pitch moves by a semitone or so, a few bands and frames are hidden.
    """
    b, f, size = x.shape
    bands = size - 4
    x = x.clone()
    move = 2 * torch.rand(b, 1, 1, generator=generator) - 1
    mel = x[:, :, :bands]
    up, down = torch.cat([mel[:, :, 1:], mel[:, :, -1:]], 2), torch.cat([mel[:, :, :1], mel[:, :, :-1]], 2)
    x[:, :, :bands] = torch.lerp(mel, torch.where(move > 0, up, down), move.abs())
    x[:, :, :bands] += 0.08 * torch.randn(b, 1, bands, generator=generator)
    x[:, :, bands] += 0.2 * torch.randn(b, 1, generator=generator)
    column = torch.arange(size)[None, :]
    low = torch.randint(0, bands, (b, 1), generator=generator)
    wide = torch.randint(0, 7, (b, 1), generator=generator)
    x = x.masked_fill(((column >= low) & (column < low + wide) & (column < bands))[:, None, :], 0.0)
    frames = torch.arange(f)[None, :]
    start = torch.randint(0, f, (b, 1), generator=generator)
    long = torch.randint(0, 9, (b, 1), generator=generator)
    return x.masked_fill(((frames >= start) & (frames < start + long))[:, :, None], 0.0)


def channels_last(x: Tensor) -> Tensor:
    """[B, W, F] -> [B, F, W] in memory, too: what follows it would take four times as long backward over a transposed view."""
    return x.transpose(1, 2).contiguous()


class _Conv(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        # x: [B, F, W]
        return x + F.gelu(channels_last(self.mix((self.norm(x) * mask[..., None]).transpose(1, 2))))


class Transcriber(nn.Module):
    """Letters from features, by CTC. Its view is a second wide, so that it spells what it hears rather than what it has read."""

    def __init__(self, width: int = 144) -> None:
        super().__init__()
        self.enter = nn.Conv1d(SIZE, width, 5, padding=2)
        self.blocks = nn.ModuleList(_Conv(width, dilation) for dilation in (1, 2, 4, 4))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, len(LETTERS) + 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, F, SIZE] -> log-probabilities [B, F, letters + 1]."""
        mask = mask_of(lengths, x.shape[1])
        y = F.gelu(channels_last(self.enter((x * mask[..., None]).transpose(1, 2))))
        for block in self.blocks:
            y = block(y, mask)
        return self.out(self.norm(y)).float().log_softmax(-1)


class Pooled(nn.Module):
    """Convolutions over features, and what learned attention, mean and deviation make of them: one vector an utterance."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(SIZE, width, 5, padding=2)
        self.blocks = nn.ModuleList(_Conv(width, dilation) for dilation in (1, 2, 4))
        self.look = nn.Linear(width, 4)
        self.out = nn.Linear(width * 6 + 1, out)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, F, SIZE] -> [B, out]."""
        mask = mask_of(lengths, x.shape[1])
        y = F.gelu(channels_last(self.enter((x * mask[..., None]).transpose(1, 2))))
        for block in self.blocks:
            y = block(y, mask)
        weights = self.look(y).float().masked_fill(~mask[..., None], -torch.inf).softmax(1)  # [B, F, 4]
        looks = torch.einsum("bfk,bfw->bkw", weights, y.float()).flatten(1)
        inside = mask[..., None].float()
        mean = (y.float() * inside).sum(1) / inside.sum(1)
        spread = ((y.float() - mean[:, None]).square() * inside).sum(1).div(inside.sum(1)).add(1e-5).sqrt()
        seconds = lengths[:, None].float() / 100
        return self.out(torch.cat([looks, mean, spread, seconds], 1))


class Describer(nn.Module):
    """Tone, age and sex from features. It is never told words."""

    def __init__(self, tones: int, width: int = 96) -> None:
        super().__init__()
        self.pooled = Pooled(width, 128)
        self.tone = nn.Linear(128, tones)
        self.age = nn.Linear(128, 2)
        self.sex = nn.Linear(128, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, F, SIZE] -> logits of tones [B, tones], ages [B, 2] (adult, child), sexes [B, 2] (male, female)."""
        h = F.gelu(self.pooled(x, lengths))
        return self.tone(h), self.age(h), self.sex(h)


@lru_cache(4096)
def spell(text: str) -> str:
    """A text in LETTERS: lower case, without punctuation, single blanks."""
    kept = "".join(c if c in LETTERS else " " for c in text.lower())
    return " ".join(kept.split())


def best_path(logprobs: Tensor) -> str:
    """CTC's best path, [F, letters + 1] -> text."""
    columns = torch.unique_consecutive(logprobs.argmax(-1))
    return " ".join("".join(LETTERS[c - 1] for c in columns.tolist() if c).split())
