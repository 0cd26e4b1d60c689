"""Small random checkpoints in the layout of the published ones, and sounds of many lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint_omni import write_omni_thinker
from tests.checkpoint_qwen_audio import write_qwen_audio
from tests.checkpoint_whisper import write_whisper
from tests.qwen2_5_omni import write_qwen2_5_omni

LENGTHS = (8000, 31999, 500, 70000, 16000)
"""Samples: the checkpoints hear 32000 at a time."""
PAIRS = [(8000, 31000), (30000, 3000), (12345, 20000), (5000, 1700)]
"""Samples of query and answer."""


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by the family's name."""
    root = tmp_path_factory.mktemp("checkpoints")
    written = {"whisper": write_whisper(root / "whisper"), "timeless": write_whisper(root / "timeless", alignment=False)}
    return written | {"qwen2_audio": write_qwen_audio(root / "qwen2_audio"), "omni": write_omni_thinker(root / "omni")}


@pytest.fixture(scope="session")
def waves() -> list[np.ndarray]:
    """A tone of its own for each length, under noise."""
    rng = np.random.default_rng(0)
    sines = (np.sin(2 * np.pi * (200 + 90 * i) * np.arange(n) / 16000) * (0.1 + 0.1 * rng.random(n)) for i, n in enumerate(LENGTHS))
    return [sine.astype(np.float32) for sine in sines]


@pytest.fixture(scope="session")
def folders(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Qwen2.5-Omni whole, with a talker that is not needed here."""
    return {**checkpoints, "omni": write_qwen2_5_omni(tmp_path_factory.mktemp("whole") / "omni")}


@pytest.fixture(scope="session")
def pairs() -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)

    def wave(length: int) -> np.ndarray:
        pitch, loud = rng.uniform(150, 900), rng.uniform(0.05, 0.4)
        return (loud * np.sin(2 * np.pi * pitch * np.arange(length) / 16000) + 0.02 * rng.standard_normal(length)).astype(np.float32)

    return [wave(a) for a, _ in PAIRS], [wave(b) for _, b in PAIRS]
