"""A small fake bench: five systems of known quality over rendered sine tones."""

import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from paras2s_cli.bench.stats import Scored

sys.path[:0] = [str(Path(__file__).parent / "support"), str(Path(__file__).parents[1] / "judge" / "support")]

STYLES = {
    "emotion": ["happy", "surprised", "sad", "angry", "fearful", "disgusted"],
    "sarcasm": ["sincere", "sarcastic"],
    "age": ["adult", "child"],
    "gender": ["male", "female"],
}
LEVELS = {"base": 1.7, "cascade": 2.9, "sft": 3.2, "aligned": 4.2, "topline": 4.8}


@pytest.fixture
def scored(tmp_path: Path) -> Callable[..., Scored]:
    """One row; every field can be given by name."""

    def make(**fields: object) -> Scored:
        plain: dict[str, object] = dict(
            system="aligned",
            mode="greedy",
            query="q",
            text="t",
            dimension="age",
            style="child",
            seed=0,
            score=4.0,
            truth=4.0,
            heard_text="hello there",
            written_text="Hello, there!",
            tone_in="bright",
            tone_out="warm",
            reason="it fits",
            query_audio=tmp_path / "none.wav",
            answer_audio=None,
        )
        return Scored(**(plain | fields))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def bench_rows(tmp_path_factory: pytest.TempPathFactory) -> list[Scored]:
    """Rows of 8 sentences a dimension, two styles each, two modes, two seeds; every clip sounds different."""
    folder = tmp_path_factory.mktemp("bench")
    rng = random.Random(0)
    rows = []

    def tone(name: str, hz: float) -> Path:
        path = folder / f"{name}.wav"
        if not path.exists():
            time = np.arange(8000) / 16000
            soundfile.write(path, 0.2 * np.sin(2 * np.pi * hz * time), 16000)
        return path

    for d, (dimension, styles) in enumerate(STYLES.items()):
        for k in range(8):
            text = f"{dimension} sentence {k}"
            easy = rng.gauss(0, 0.3)
            for j in (0, 1):
                style = styles[(2 * k + j) % len(styles)]
                query = f"{dimension}-{k}-{style}"
                for s, (system, level) in enumerate(LEVELS.items()):
                    for mode, seed in (("greedy", 0), ("greedy", 1), ("T=1", 0), ("T=1", 1)):
                        score = min(5.0, max(1.0, level + easy + rng.gauss(0, 0.4)))
                        rows.append(
                            Scored(
                                system=system,
                                mode=mode,
                                query=query,
                                text=text,
                                dimension=dimension,
                                style=style,
                                seed=seed,
                                score=score,
                                truth=float(round(score)),
                                heard_text="that is good news",
                                written_text=None if system == "cascade" else "That is good news.",
                                tone_in=style,
                                tone_out="warm",
                                reason="it fits",
                                query_audio=tone(query, 200 + 31 * d + 7 * k + 3 * j),
                                answer_audio=tone(f"{query}-{s}", 400 + 31 * d + 7 * k + 3 * j + 53 * s),
                            )
                        )
    return rows
