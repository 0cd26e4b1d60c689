"""A stand-in for the judge's networks, so that what surrounds them can be tested without them.

It 'hears' the length of a wave. A tone's probability depends on the whole batch, as rounding does in a network
(but far more), so that a resumed run that listens in other batches is found out. Each call is a line in the
file $STAND_IN_LOG and takes $STAND_IN_SLEEP seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from paras2s_cli.audio.write import write_wav
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.judge.stages import Heard, Toned, Utterance, Verdict
from paras2s_cli.recipe.judging import PolytoneRecipe

MAKER = "stand_in_judge:make_judge"
ALIEN = 3000
"""Answers of this many samples are not of this world."""


class Ears:
    name = "ears/1"

    def listen(self, waves: Sequence[np.ndarray], role: str) -> list[Utterance]:
        time.sleep(float(os.environ.get("STAND_IN_SLEEP", "0")))
        if log := os.environ.get("STAND_IN_LOG"):
            with open(log, "a") as file:
                file.write(f"{len(waves)}\n")
        shade = np.float32(sum(len(wave) for wave in waves) % 997 / 2000)
        tones = {"flat": 0.01, "happy": 0.5 + shade, "sad": 0.5 - shade, "[angry]": np.float32(0.1)}
        toned = Toned(tones, {"adult": 0.9, "child": 0.1}, {"male": 0.2, "female": 0.8})
        return [Utterance(self._hear(wave), toned, f"happy {role}") for wave in waves]

    def _hear(self, wave: np.ndarray) -> Heard:
        if not wave.any():
            return Heard("", False, False, "silence")
        return Heard(f"{len(wave)} samples", len(wave) != ALIEN)


class Rubric:
    name = "rubric/1"

    def score(
        self, pairs: Sequence[tuple[Utterance, Utterance]], *, closed: bool, requirements: Sequence[str | None] | None = None
    ) -> list[Verdict]:
        return [self._one(answer, closed) for _, answer in pairs]

    def _one(self, answer: Utterance, closed: bool) -> Verdict:
        if not answer.heard.speech:
            return Verdict(1, 1, 1, f"No speech ({answer.heard.nothing}).")
        if not answer.heard.known:
            return Verdict(1, 1, 1, "Garbled.") if closed else Verdict(None, None, None, "Unknown.", "outside-world")
        score = int(answer.heard.text.split()[0]) // 10 % 5 + 1
        return Verdict(5, score, score, "It [almost] fits.")


def make_judge(recipe: PolytoneRecipe, say: Callable[[str], None]) -> Judge:
    return Judge(Ears(), Rubric())


def make_pairs(folder: Path, count: int) -> Path:
    """A manifest of `count` pairs with `count` answers to 3 queries, 10 or more milliseconds each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, frames in [("q", 200 + 10 * i) for i in range(3)]:
        write_wav(folder / f"{name}{(frames - 200) // 10}.wav", rng.uniform(-0.1, 0.1, frames))
    rows = []
    for index in range(count):
        write_wav(folder / f"a{index}.wav", rng.uniform(-0.1, 0.1, 300 + 10 * index))
        rows.append(
            {
                "query": f"q{index % 3}.wav",
                "answer": f"a{index}.wav",
                "id": f"p{index}",
                "system": "kimi",
                "extra": [1],
            }
        )
    manifest = folder / "pairs.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def rows_of(text: str | Path) -> list[dict]:
    """Judgements without their seconds."""
    lines = (text.read_text() if isinstance(text, Path) else text).splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


if __name__ == "__main__":
    from paras2s_cli.judge import auto, backends
    from paras2s_cli.main import main

    auto.MODELS.clear()  # whatever this machine has
    backends.MAKERS["pocket"] = MAKER
    sys.exit(main(sys.argv[1:]))
