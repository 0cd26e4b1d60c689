"""A world of four sentences in two styles each whose recordings are tones, and its answers; for what surrounds a world."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from speech_server import wav

from paras2s_cli.data.worlds import Spoken

STYLES = {"emotion": ("happy", "sad"), "age": ("adult", "child")}


class World:
    """Queries of 1000, 1010, ... frames; an answer of 3010 (blind) or 3020 (best) frames."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder

    def queries(self, split: str) -> list[Spoken]:
        names = [(d, s, style) for d, styles in STYLES.items() for s in range(2) for style in styles]
        return [self._spoken(f"{d}-{s}-{style}", 1000 + 10 * i, d, f"{d} {s}", style) for i, (d, s, style) in enumerate(names)]

    def blind_answer(self, text: str) -> Spoken:
        return self._spoken("blind", 3010, text=f"blind to {text}")

    def best_answers(self, query: Spoken) -> list[Spoken]:
        return [self._spoken("best", 3020, text=f"best for {query.row['style']}", tone="warm")]

    def truth(self, query: Spoken, answer: Spoken | None) -> float:
        return 5.0 if answer and answer.id == "best" else 2.0

    def _spoken(self, name: str, frames: int, dimension: str = "", sentence: str = "", style: str = "", **more: Any) -> Spoken:
        path = self.folder / f"{name}.wav"
        path.write_bytes(wav(frames))
        row = {"id": name, "text": sentence, "dimension": dimension, "sentence": sentence.replace(" ", "-"), "style": style} | more
        return Spoken(row, path, np.zeros((4, 44), np.float32))


def load(workers: int, say: object, progress: object) -> World:
    return World(Path(os.environ["PARAS2S_CACHE"]).parent / "world")
