"""`align` with the reward model that hears, on the real world and judge, at the smallest size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paras2s_cli.errors import Paras2sError
from paras2s_cli.judge.hearing import pair_lm
from paras2s_cli.judge.hearing.audio_lm import Question
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.pocket.embedded import PocketWorld
from paras2s_cli.recipe.aligning import AlignRecipe
from paras2s_cli.recipe.load import load_recipe
from paras2s_cli.train.align import Run, aligned_model
from paras2s_cli.train.metrics import read_metrics
from tests.commands import TINY
from tests.qwen2_5_omni import write_qwen2_5_omni

pytestmark = pytest.mark.slow
SMALLER = (
    "reward.answers=16",
    "reward.train.steps=2",
    "reward.train.batch=4",
    "reward.held_out=8",
    "grpo.train.steps=2",
    "grpo.judge_answers=2",
)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def test_a_run_is_rewarded_by_what_is_heard(
    pocket_world: PocketWorld, pocket_judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_lm, "PAIR", Question("How good?", pair_lm.PAIR.answers))
    hears = [
        f"reward.audio_lm.model={write_qwen2_5_omni(tmp_path / 'omni')}",
        "reward.audio_lm.device=cpu",
        "reward.digits=null",
        "grpo.agreement=0",
    ]
    words = ["reward=local/distill", *(word for word in TINY if "digits" not in word), *hears, *SMALLER]
    recipe = load_recipe("pocket", words, AlignRecipe)
    monkeypatch.setattr(pocket_judge.listener, "open_speech", None)  # words of what nobody has learnt to say take long to look for
    said: list[str] = []

    def run(recipe: AlignRecipe) -> Run:
        made = Run(recipe, tmp_path / "run", said.append, lambda stage: lambda step, metrics: None, pocket_world)
        made.listener, made.judge = pocket_judge.listener, pocket_judge  # type: ignore[assignment]
        return made

    with pytest.raises(Paras2sError, match=r"below reward\.floor"):
        aligned_model(run(recipe.model_copy(update={"reward": recipe.reward.model_copy(update={"floor": 1.0})})))
    out = tmp_path / "run"
    taught = out / "reward" / "hearing"
    first, told = losses(taught), [line for line in said if "Pearson" in line]
    assert not (out / "reward" / "model").exists() and len(told) == 1
    # as a run leaves it that is killed before the reward model is taught
    shutil.rmtree(taught)
    said.clear()
    aligned_model(run(recipe))
    kept = [f"all {count} answers to {split} queries are judged already" for count, split in ((16, "train"), (8, "validation"))]
    assert [line for line in said if line in (*kept, *told)] == [*kept, *told] and losses(taught) == first
    assert [0 < loss < 10 for loss in first] == [True, True]
    assert json.loads((out / "reward" / "model" / "agreement.json").read_text())["pairs"] == 8
    assert (out / "reward" / "model" / "adapter_model.safetensors").stat().st_size < 100_000
    rewards = [line["reward"] for line in read_metrics(out / "grpo" / "metrics.jsonl")]
    assert len(rewards) == 2 and all(1 <= reward <= 5 for reward in rewards)
    assert (out / "grpo" / "model" / "COMPLETE").exists()
    said.clear()
    aligned_model(run(recipe))
    assert not said
