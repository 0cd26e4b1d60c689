"""Answers' codes as sound, whole or as they come."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import soxr
import torch
from torch import Tensor

from paras2s_cli.models.voice.flow import FRAMES, Context, Flow
from paras2s_cli.models.voice.vocoder import Vocoder

BATCH = 16
"""Answers that are drawn together."""
_WORLD_RATE = 16000


@dataclass
class _State:
    """B rows between two chunks. mel, wave: [B, M, bins] and [B, M * hop], what has been made but not been said."""

    context: Context | None
    mel: Tensor
    wave: Tensor

    def select(self, rows: Tensor) -> "_State":
        return _State(None if self.context is None else self.context.select(rows), self.mel[rows], self.wave[rows])


class Voice:
    """Kimi-Audio's detokenizer and vocoder.

    The noise that a waveform starts from is drawn from a seed and not from its place in a batch: the same codes and seed give the same
    waveform (in another batch: up to rounding).
    """

    def __init__(self, flow: Flow, vocoder: Vocoder) -> None:
        self.flow, self.vocoder = flow, vocoder
        self.rate = vocoder.config.sampling_rate

    @property
    def size(self) -> int:
        """Number of codes."""
        return self.flow.speech_model.config.semantic_vocab_size

    def stream(self, codes: np.ndarray, seed: int = 0) -> Iterator[np.ndarray]:
        """The waveform of codes [N] int64 in pieces, float32 [T] at `rate` Hz: one a chunk, which depends on no code after that chunk."""
        for _, waves in self._pieces([codes], seed):
            yield waves[0]

    def speak(self, codes: np.ndarray, seed: int = 0) -> np.ndarray:
        """The whole waveform of codes [N] int64: float32 [N * 4 * hop_size] in -1..1 at `rate` Hz. No codes give no samples."""
        return np.concatenate([np.zeros(0, np.float32), *self.stream(codes, seed)])

    def decode(self, codes: Sequence[np.ndarray], seed: int = 0) -> list[np.ndarray]:
        """Many code sequences [N] int64 to sound, in batches: float32 [T] each, at the 16 kHz of worlds and judges."""
        waves: list[list[np.ndarray]] = [[np.zeros(0, np.float32)] for _ in codes]
        order = sorted(range(len(codes)), key=lambda i: len(codes[i]))
        for first in range(0, len(order), BATCH):
            batch = order[first : first + BATCH]
            for rows, pieces in self._pieces([codes[i] for i in batch], seed):
                for row, piece in zip(rows, pieces, strict=True):
                    waves[batch[row]].append(piece)
        return [soxr.resample(np.concatenate(parts), self.rate, _WORLD_RATE, quality="HQ") for parts in waves]

    @torch.inference_mode()
    def _pieces(self, codes: Sequence[np.ndarray], seed: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """Pieces [B, T] of the waveforms of some rows at a time, with their numbers. Rows whose chunks are of one length are one batch:
        until they end that is all of them, and neither network has to know of padding."""
        chunk, ahead = self.flow.chunking.codes, self.flow.chunking.look_ahead
        generator = torch.Generator().manual_seed(seed)
        rows, state = [i for i, row in enumerate(codes) if len(row)], None
        for place in count(0, chunk):
            if not rows:
                return
            noise = torch.randn(FRAMES * (chunk + ahead), self.vocoder.config.num_mels, generator=generator)
            alike: dict[tuple[int, bool], list[int]] = {}
            for i, row in enumerate(rows):
                alike.setdefault((min(len(codes[row]), place + chunk), len(codes[row]) <= place + chunk), []).append(i)
            going: list[int] = []
            following = None
            for (end, last), some in alike.items():
                numbers = [rows[i] for i in some]
                part = np.stack([codes[row][max(0, place - ahead) : end] for row in numbers])
                wave, left = self._chunk(part, noise, None if state is None else state.select(torch.tensor(some)), last)
                yield numbers, wave.cpu().numpy()
                if not last:
                    going, following = numbers, left
            rows, state = going, following

    def _chunk(self, codes: np.ndarray, noise: Tensor, state: _State | None, last: bool) -> tuple[Tensor, _State | None]:
        """One chunk [B, N] of rows to what can be said now, float32 [B, T], and what is left.

        What the vocoder makes of a chunk's end without what follows is made again with it, and the two are blended by a Hamming window,
        as in the published code. There the window's halves add up to 1.08, and the last chunk is not blended.
        """
        device = self.vocoder.conv_pre.weight.device
        mel, context = self.flow(torch.from_numpy(codes).to(device), noise, None if state is None else state.context, last)
        said = mel.shape[1] // 2  # frames
        if state is not None:
            mel, said = torch.cat([state.mel, mel], 1), 2 * state.mel.shape[1]
        wave = self.vocoder(mel).float()
        if state is not None:
            overlap = state.wave.shape[1]
            rise = torch.hamming_window(2 * overlap, device=device)[:overlap] / 1.08
            wave = torch.cat([state.wave.lerp(wave[:, :overlap], rise), wave[:, overlap:]], 1)
        if last:
            return wave, None
        samples = said * self.vocoder.config.hop_size
        return wave[:, :samples], _State(context, mel[:, said:], wave[:, samples:])
