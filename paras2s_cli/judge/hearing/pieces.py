"""Long audio in pieces that a model can hear, cut where it is quietest."""

import numpy as np

_FRAME = 1600
"""Samples whose loudness is compared: 0.1 s at 16 kHz."""
_PART = 6
"""A cut is looked for in the last sixth of a piece: 5 s of 30."""


def cut(wave: np.ndarray, longest: int) -> list[tuple[int, np.ndarray]]:
    """Pieces of at most `longest` samples, each with the sample that it starts at. Put together they are the wave [T]."""
    pieces, start = [], 0
    while len(wave) - start > longest:
        end = _quietest(wave, start + longest - longest // _PART, start + longest)
        pieces.append((start, wave[start:end]))
        start = end
    return [*pieces, (start, wave[start:])]


def _quietest(wave: np.ndarray, first: int, last: int) -> int:
    """The middle of the quietest frame between two samples."""
    frame = min(_FRAME, last - first)
    power = np.cumsum(np.concatenate([[0.0], np.square(wave[first:last], dtype=np.float64)]))
    return first + int(np.argmin(power[frame:] - power[:-frame])) + frame // 2
