"""The monitor of GRPO: whom it samples, when it teaches the reward model again, and that a resumed run knows what was judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from paras2s_cli.data.worlds import Spoken
from paras2s_cli.judge.stages import Heard, Toned, Utterance
from paras2s_cli.pocket.embedded import PocketWorld
from paras2s_cli.recipe.aligning import Grpo
from paras2s_cli.recipe.training import Train
from paras2s_cli.train import monitor as module
from paras2s_cli.train.distill import Judged
from paras2s_cli.train.grpo import Experience
from paras2s_cli.train.monitor import Monitor

GROUP = 4
SAID = Utterance(Heard("yes", True), Toned({}, {}, {}), "calm")


class FirstCode:
    """Gives an answer its first code, with a sign."""

    sign = 1.0

    def rewards(self, queries: Sequence[Spoken], codes: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.tensor([self.sign * float(c[0]) for c in codes])


def judge_answers(judge: Any, world: Any, queries: Sequence[Spoken], codes: Sequence[np.ndarray]) -> list[Judged]:
    return [Judged(q, c, SAID, SAID, float(c[0])) for q, c in zip(queries, codes, strict=True)]


@pytest.fixture
def watched(silent_world: PocketWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Monitor:
    monkeypatch.setattr(module, "judge_answers", judge_answers)
    monkeypatch.setattr(module, "write_wav", lambda path, wave: path.touch())
    monkeypatch.setattr(PocketWorld, "decode", lambda self, codes: [np.zeros(1600, np.float32)] * len(codes))
    monkeypatch.setattr(Monitor, "refit", lambda self, step: 7)
    return made(silent_world, tmp_path)


def made(world: PocketWorld, folder: Path) -> Monitor:
    settings = Grpo(train=Train(steps=100, lr=1e-3), prompts=8, group=GROUP, judge_every=2, judge_answers=16, refit_below=0.75)
    tokenizer = SimpleNamespace(decode=lambda ids: "Yes.")
    return Monitor(folder, settings, 1, None, world, FirstCode(), tokenizer)  # type: ignore[arg-type]


def experience(world: PocketWorld, step: int) -> Experience:
    rng = np.random.default_rng(step)
    queries = [world.queries("train")[i] for i in rng.integers(600, size=8)]
    codes = [rng.integers(1, 6, 20) for _ in range(8 * GROUP)]
    answers = SimpleNamespace(text=torch.zeros(8 * GROUP, 3, dtype=torch.long))
    rewards = torch.tensor([float(c[0]) for c in codes])
    return Experience(queries, SimpleNamespace(answers=answers), codes, rewards)  # type: ignore[arg-type]


def test_every_query_is_sampled_equally_often_and_not_always_the_same_answers(watched: Monitor) -> None:
    first, other = watched._sample(1, 32), watched._sample(3, 32)
    assert len(set(first)) == 16 and set(Counter(i // GROUP for i in first).values()) == {2}
    assert first == watched._sample(1, 32) != other


def test_only_every_so_many_steps_are_judged(watched: Monitor, silent_world: PocketWorld) -> None:
    judged = []
    for step in range(4):
        metrics: dict = {}
        watched.after(step, metrics, experience(silent_world, step))
        judged.append("judge_score" in metrics)
        assert not metrics or (metrics["judge_gap"] == 0 and metrics["text_heard"] == 1 and metrics["judge_pearson"] == pytest.approx(1))
    assert judged == [False, True, False, True]


def test_a_reward_model_that_has_drifted_is_taught_again_once_that_is_sure(watched: Monitor, silent_world: PocketWorld) -> None:
    watched.reward.sign = -1.0  # type: ignore[attr-defined]
    refitted = []
    for step in range(1, 12, 2):
        metrics: dict = {}
        watched.after(step, metrics, experience(silent_world, step))
        assert metrics["judge_pearson"] == pytest.approx(-1)
        refitted.append("refitted" in metrics)
    assert refitted == [False] * 3 + [True] * 3  # 64 answers after the fourth sample


def test_what_was_judged_is_known_after_a_kill(watched: Monitor, silent_world: PocketWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(6):
        watched.after(step, {}, experience(silent_world, step))
    watched.seen.close()
    monkeypatch.setattr(module, "resumed_from", lambda folder: 4)
    again = made(silent_world, watched.folder)
    assert len(again.judged) == 32 and len(watched.judged) == 48
    for mine, before in zip(again.judged, watched.judged, strict=False):
        assert mine.query.id == before.query.id and np.array_equal(mine.codes, before.codes)
