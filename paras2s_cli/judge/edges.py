"""Recordings begin and end with pauses; what the small networks have learnt from does not."""

import numpy as np

_BLOCK = 160
"""Samples of a block: 10 ms."""
_BELOW = 40.0
"""dB under the loudest block at which a block is a pause."""
_LONG, _LEFT = 10, 2
"""Blocks: what is longer than the first is cut to the second. Speech of the embedded world has at most 8."""


def between_pauses(wave: np.ndarray) -> np.ndarray:
    """float [T] at 16 kHz -> the same from shortly before its first sound to shortly after its last; silence as it is."""
    count = len(wave) // _BLOCK
    power = np.square(wave[: count * _BLOCK], dtype=np.float64).reshape(count, _BLOCK).mean(1)
    loud = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (-_BELOW / 10))
    if not len(loud):
        return wave
    before, after = int(loud[0]), count - 1 - int(loud[-1])
    start = before - _LEFT if before > _LONG else 0
    end = count - after + _LEFT if after > _LONG else None
    return wave[start * _BLOCK : end and end * _BLOCK]
