"""Codes to mel frames, a chunk at a time, by flow matching: Euler steps from noise along the velocity that the DiT gives.

A chunk is drawn with the first codes of the next one at hand. What is drawn for those is thrown away; they are drawn again where they
belong. The rest is heard once more as finished, and its keys and values are what the next chunk sees of it (Kimi-Audio, arXiv
2504.18425, and its public code).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from paras2s_cli.models.voice.config import FlowConfig
from paras2s_cli.models.voice.dit import DiT, Past

FRAMES = 4
"""Mel frames a code: 12.5 Hz to 50 Hz."""
_FINISHED = 999
"""The time at which finished frames are heard."""


@dataclass(frozen=True)
class Chunking:
    """How an answer is cut, as the published code has it.

    codes: of a chunk. look_ahead: how many of them are drawn with it and kept for the next. points: moments from noise to speech,
    ends included: one step fewer. window: frames of the past that a chunk sees.
    """

    codes: int = 30
    look_ahead: int = 12
    points: int = 30
    window: int = 900

    def __post_init__(self) -> None:
        assert 0 < self.look_ahead < self.codes and self.points > 1 and self.window > 0


@dataclass
class Context:
    """What the chunks of B rows so far leave to the next. start: the next frame's position."""

    past: Past
    start: int

    def select(self, rows: Tensor) -> "Context":
        """Some rows."""
        return Context([(keys[rows], values[rows]) for keys, values in self.past], self.start)


class Flow(nn.Module):
    """The DiT with its units, under the name that it has in the published checkpoint."""

    def __init__(self, config: FlowConfig, chunking: Chunking) -> None:
        super().__init__()
        self.speech_model = DiT(config.model.dit)
        self.chunking = chunking
        self.mean, self.std = (config.mel_mean, config.mel_std) if config.normalize_mel else (0.0, 1.0)

    def forward(self, codes: Tensor, noise: Tensor, context: Context | None, last: bool) -> tuple[Tensor, Context | None]:
        """One chunk of B rows.

        Args:
            codes: [B, N] int64. noise: [>= 4 N, bins], the same for every row, so that a row is drawn alike in any batch.
            last: nothing follows, and nothing is looked ahead to.

        Returns:
            [B, T, bins] in the vocoder's units, T = 4 N or, where more follows, 4 (N - look_ahead); and what the next chunk has to
            know. None where it knows nothing: after the last, and where positions run out and begin anew.
        """
        frames = codes.repeat_interleave(FRAMES, 1)
        start, past = (0, None) if context is None else (context.start, context.past)
        x = noise[: frames.shape[1]].to(self.speech_model.input_linear.weight).expand(len(codes), -1, -1)
        steps = self.chunking.points - 1
        for step in range(steps):
            velocity, _ = self.speech_model(x, frames, 1000 * step // steps, start, past)
            x = x + velocity / steps
        if last:
            return x * self.std + self.mean, None
        kept = x.shape[1] - FRAMES * self.chunking.look_ahead
        x = x[:, :kept]
        _, seen = self.speech_model(x, frames[:, :kept], _FINISHED, start, past)
        return x * self.std + self.mean, self._context(seen, start + kept, kept)

    def _context(self, seen: Past, start: int, kept: int) -> Context | None:
        if start + 2 * kept > self.speech_model.config.max_seq_len:
            return None
        window = self.chunking.window
        return Context([(keys[:, :, -window:], values[:, :, -window:]) for keys, values in seen], start)
