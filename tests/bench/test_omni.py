"""A folder with a Qwen2.5-Omni as a system of a bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import soundfile

from paras2s_cli.bench.outside import Checkpoint
from paras2s_cli.bench.run import run_bench
from paras2s_cli.recipe.benching import BenchRecipe
from tests.qwen2_5_omni import QWEN2_5_OMNI, write_qwen2_5_omni

if TYPE_CHECKING:
    from paras2s_cli.judge.pipeline import Judge
    from paras2s_cli.pocket.embedded import PocketWorld


@pytest.mark.slow
def test_its_answers_are_heard_judged_and_kept(tmp_path: Path, pocket_world: PocketWorld, pocket_judge: Judge) -> None:
    folder = write_qwen2_5_omni(tmp_path / QWEN2_5_OMNI)
    recipe = BenchRecipe(systems=[f"qwen=model:{folder}"], sampled=[], limit=1, draws=100, players=0, answer_limit=12)
    sources = {"qwen": Checkpoint(str(folder), recipe)}
    run_bench(recipe, pocket_world, pocket_judge, lambda name: pytest.fail(name), tmp_path / "bench", print, sources=sources)
    rows = [json.loads(line) for line in (tmp_path / "bench" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["system"] == "qwen" and row["mode"] == "as it is" and row["truth"] is None for row in rows)
    assert all(row["score"] in (None, 1.0) and row["reason"] for row in rows)
    sounds = [soundfile.info(row["answer_audio"]) for row in rows]
    assert all(s.samplerate == 16000 and s.frames % 320 == 0 for s in sounds) and any(s.frames for s in sounds)
    assert len({row["written_text"] for row in rows}) > 1
