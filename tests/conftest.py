"""The pocket world and its judge, once a session: whole (slow to make, kept in the user's cache), unvoiced (made at once), and in part."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from paras2s_cli.judge.pipeline import Judge
    from paras2s_cli.pocket.embedded import PocketWorld
    from paras2s_cli.pocket.espeak import Espeak

Speak = Callable[..., np.ndarray]

LONG = ("test_end_to_end.py", "test_readme.py", "test_listener.py")
"""Files that take minutes: they start first."""


def pytest_configure() -> None:
    """Workers of pytest-xdist, and what they start, keep to cores of their own: threads on shared ones wait for one another by spinning."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1 and hasattr(os, "sched_getaffinity"):
        mine = sorted(os.sched_getaffinity(0))[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) :: workers]
        if mine:
            os.sched_setaffinity(0, mine)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One long file at the head for one worker, the kernels for the other, then the other long ones."""
    items.sort(key=lambda item: _turn(item.path))


def _turn(path: Path) -> int:
    if path.name in LONG:
        return 2 * LONG.index(path.name)
    return 1 if "kernels" in path.parts else 2 * len(LONG)


@pytest.fixture(scope="session")
def pocket_world() -> PocketWorld:
    """The whole world, rendered into the user's cache where that lacks it (about a minute): for tests marked `slow`."""
    from paras2s_cli.data.worlds import load_world

    return load_world("pocket", 2, print)  # type: ignore[return-value]


@pytest.fixture(scope="session")
def pocket_judge(pocket_world: PocketWorld) -> Judge:
    """The judge that `paras2s judge` uses, trained where the cache lacks it (more than a minute): for tests marked `slow`."""
    from paras2s_cli.judge.backends import load_judge
    from paras2s_cli.recipe.judging import PolytoneRecipe
    from paras2s_cli.recipe.load import load_recipe

    return load_judge(load_recipe("pocket/polytone", [], PolytoneRecipe), print)


@pytest.fixture(scope="session")
def silent_world() -> PocketWorld:
    """The whole world with nothing rendered: rows and rules are real, features are zeros, codes are random and all different."""
    from paras2s_cli.audio.features import SIZE
    from paras2s_cli.data.worlds import Spoken
    from paras2s_cli.pocket import build, plan
    from paras2s_cli.pocket.codec import BLOCK, Codec
    from paras2s_cli.pocket.embedded import PocketWorld
    from paras2s_cli.pocket.world import load_world

    rules, rng, utterances = load_world(), np.random.default_rng(0), {}
    for u in [*plan.queries(rules), *plan.polytone(rules), *plan.carriers(rules), *plan.answers(rules)]:
        codes = rng.integers(64, size=rng.integers(20, 45)) if u.purpose == "answer" else None
        utterances[u.id] = Spoken(build._row(u), Path(f"{u.id}.wav"), np.zeros((4, SIZE), np.float32), codes)
    codec = Codec(rng.normal(size=(64, BLOCK, 34)).astype(np.float32))
    return PocketWorld(build.Rendering(Path(), utterances, codec), 1)


@pytest.fixture(scope="session")
def espeak_helper() -> Iterator[Espeak]:
    """One espeak-ng helper process."""
    from paras2s_cli.pocket.espeak import Espeak

    with Espeak() as speaker:
        yield speaker


@pytest.fixture(scope="session")
def speak(espeak_helper: Espeak) -> Speak:
    """speak(text, voice, tone, seed=None) -> float32 [T] at 16 kHz: any text in a voice of world.yaml (or `assistant`) and a style; without
    a seed the voice does not vary."""
    from paras2s_cli.pocket import espeak, render
    from paras2s_cli.pocket.world import load_world

    rules = load_world()
    voices = {name: voice for split in rules.voices.values() for name, voice in split.items()} | {"assistant": rules.assistant}

    def said(text: str, voice: str = "assistant", tone: str = "calm", seed: int | None = None) -> np.ndarray:
        recording = render.analyse(espeak_helper.speak(text, voices[voice].variant), espeak.RATE)
        variation = None if seed is None else rules.variation
        wave = render.perform(recording, voices[voice], rules.styles[tone], variation, np.random.default_rng(seed or 0))
        return (wave / 32768).astype(np.float32)

    return said
