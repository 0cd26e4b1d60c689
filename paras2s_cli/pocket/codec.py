"""A codec for the assistant's voice that needs no pretraining: WORLD parameters and one k-means codebook.

12.5 codes a second, one stream, as Kimi-Audio's. A code is 80 ms of envelope, melody and voicing taken together; it is decoded
by WORLD's synthesis from the centroids. It is made for one voice: other voices come out as the assistant.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pyworld
from safetensors.numpy import load_file, save_file

from paras2s_cli.pocket.render import BINS, CEILING_HZ, FLOOR_HZ, FRAME_MS, RATE, synthesise

BLOCK = 8
"""WORLD frames a code: 80 ms, 1280 samples."""
_POINTS = 32
_BINS = pyworld.get_cheaptrick_fft_size(RATE, FLOOR_HZ) // 2 + 1
_MELODY_WEIGHT, _VOICING_WEIGHT = 6.0, 1.5


@cache
def _up(bins: int) -> np.ndarray:
    """Linear interpolation from mel-spaced points to the bins of a spectrum: [_POINTS, bins]."""
    mel = np.log1p(np.linspace(0, RATE / 2, bins) / 700)
    points = np.linspace(mel[0], mel[-1], _POINTS)
    return np.maximum(0, 1 - np.abs(mel[None, :] - points[:, None]) / (points[1] - points[0]))


@cache
def _down() -> np.ndarray:
    """The mean of a spectrum around each point: [_BINS, _POINTS]."""
    up = _up(_BINS)
    return (up / up.sum(1, keepdims=True)).T


def parameters(wave: np.ndarray) -> np.ndarray:
    """WORLD parameters of a waveform by blocks.

    Args:
        wave: [T] float64 at 16 kHz.

    Returns:
        [ceil(T / 1280), BLOCK, 34] float32: log power of the envelope at 32 mel-spaced points, log2 of F0 (interpolated through
        unvoiced frames), voicing.
    """
    wave = np.pad(wave, (0, -len(wave) % (BLOCK * RATE // 100)))
    f0, times = pyworld.dio(wave, RATE, f0_floor=FLOOR_HZ, f0_ceil=CEILING_HZ, frame_period=FRAME_MS)
    f0 = pyworld.stonemask(wave, f0, times, RATE)
    envelope = pyworld.cheaptrick(wave, f0, times, RATE, f0_floor=FLOOR_HZ)
    coded = np.log(envelope @ _down() + 1e-9)
    voiced = f0 > 0
    frames = np.arange(len(f0))
    melody = np.interp(frames, frames[voiced], np.log2(f0[voiced])) if voiced.any() else np.full(len(f0), 7.5)
    table = np.concatenate([coded, melody[:, None], voiced[:, None]], axis=1).astype(np.float32)
    count = len(wave) * 100 // RATE // BLOCK
    return table[: count * BLOCK].reshape(count, BLOCK, _POINTS + 2)


class Codec:
    """codebook [K, BLOCK, 34] float32, in the units of `parameters`."""

    def __init__(self, codebook: np.ndarray) -> None:
        self.codebook = codebook

    @property
    def size(self) -> int:
        """Number of codes."""
        return len(self.codebook)

    @classmethod
    def fit(cls, blocks: np.ndarray, size: int, *, seed: int, rounds: int = 25) -> "Codec":
        """k-means (Lloyd) on blocks [N, BLOCK, 34]; empty clusters are put on the worst served blocks."""
        import torch  # here: processes that only decode start without it

        points = torch.from_numpy(_weighted(blocks))
        generator = torch.Generator().manual_seed(seed)
        centres = points[torch.randperm(len(points), generator=generator)[:size]].clone()
        for _ in range(rounds):
            distance, nearest = torch.cdist(points, centres).min(1)
            count = torch.bincount(nearest, minlength=size)
            sums = torch.zeros_like(centres).index_add_(0, nearest, points)
            centres = sums / count.clamp(min=1)[:, None]
            empty = (count == 0).nonzero()[:, 0]
            centres[empty] = points[distance.topk(len(empty)).indices]
        served = torch.cdist(points, centres).argmin(1).numpy()
        members = np.bincount(served, minlength=size)
        book = np.zeros((size, *blocks.shape[1:]), dtype=np.float64)
        np.add.at(book, served, blocks)
        return cls((book[members > 0] / members[members > 0][:, None, None]).astype(np.float32))

    def encode(self, blocks: np.ndarray) -> np.ndarray:
        """Nearest codes of blocks [N, BLOCK, 34]: int64 [N]."""
        import torch

        points = torch.from_numpy(_weighted(blocks)), torch.from_numpy(_weighted(self.codebook))
        return np.asarray(torch.cdist(*points).argmin(1))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The waveform of codes [N]: float32 [N * 1280] in -1..1 at 16 kHz. No codes give no samples."""
        if len(codes) == 0:
            return np.zeros(0, dtype=np.float32)
        table = self.codebook[codes].reshape(-1, _POINTS + 2).astype(np.float64)
        # A three-frame mean takes the steps between blocks off the envelope and the melody.
        padded = np.pad(table, ((1, 1), (0, 0)), mode="edge")
        smooth = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
        f0 = np.where(table[:, -1] > 0.5, 2 ** smooth[:, -2], 0.0)
        wave = synthesise(f0, smooth[:, :_POINTS] @ _up(BINS), FRAME_MS, 0.1)[: len(codes) * BLOCK * RATE // 100]
        return np.clip(wave, -1, 1).astype(np.float32)

    def save(self, path: Path) -> None:
        save_file({"codebook": self.codebook}, path)

    @classmethod
    def load(cls, path: Path) -> "Codec":
        return cls(load_file(path)["codebook"])


def _weighted(blocks: np.ndarray) -> np.ndarray:
    """Blocks as points: a semitone of melody and a neper of envelope weigh about the same to a listener."""
    scaled = blocks.astype(np.float32).copy()
    scaled[..., _POINTS] *= _MELODY_WEIGHT
    scaled[..., _POINTS + 1] *= _VOICING_WEIGHT
    return scaled.reshape(len(blocks), -1)


@cache
def _codec_of(path: str) -> Codec:
    return Codec.load(Path(path))


def decode_from(path: str, codes: np.ndarray) -> np.ndarray:
    """`Codec.decode` by the codec in a file, which a process reads once."""
    return _codec_of(path).decode(codes)
