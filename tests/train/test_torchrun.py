"""The command under torchrun: one run folder, one voice, one model; and what several processes do not do."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from paras2s_cli.errors import UsageError
from paras2s_cli.main import main
from paras2s_cli.models.folder import load_model
from paras2s_cli.recipe.aligning import AlignRecipe
from paras2s_cli.recipe.judging import PolytoneRecipe
from paras2s_cli.recipe.load import load_recipe
from paras2s_cli.recipe.speaking import SftRecipe
from paras2s_cli.train.align import prepare
from paras2s_cli.train.metrics import read_metrics
from paras2s_cli.train.ranks import Ranks
from paras2s_cli.train.supervised import run_supervised
from tests.commands import ROOT, TINY, environment

LINE = "torchrun --nproc-per-node 2 -m paras2s_cli align pocket --out runs/two"


def run(folder: Path, line: str, *words: str) -> subprocess.CompletedProcess[str]:
    torchrun, *rest = shlex.split(line)
    assert torchrun == "torchrun"  # which may be out of the path here: it stands beside this interpreter
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *rest, *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_the_readmes_line(tmp_path: Path, pocket_judge: object) -> None:
    """Two processes do all of it, and the second tells nothing. The reward model is refitted on the way."""
    assert f"    {LINE}\n" in (ROOT / "README.md").read_text()
    few = ["sft.demonstrations.count=12", "sft.train.steps=2", "sft.evaluate_every=2", "reward.answers=16", "grpo.train.steps=2"]
    done = run(tmp_path, LINE, "--no-bench", *TINY, *few)
    assert done.stderr.count("aligning by GRPO") == done.stderr.count("warming up") == done.stderr.count("the aligned model") == 1
    rows = read_metrics(tmp_path / "runs/two/grpo/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and all(0 <= row["off_policy_audio"] < 0.1 for row in rows)
    load_model(tmp_path / "runs/two/grpo/model")


def refused(recipe: str, *overrides: str, size: int = 2) -> str:
    kinds = {"pocket/sft": SftRecipe, "pocket/polytone": PolytoneRecipe, "pocket/align": AlignRecipe}
    loaded = load_recipe(recipe, overrides, kinds[recipe])
    with pytest.raises(UsageError) as refusal:
        if isinstance(loaded, AlignRecipe):
            prepare(loaded, Path("nowhere"), print, lambda name: print, Ranks(1, size))
        else:
            run_supervised(loaded, Path("nowhere"), print, lambda name: print, Ranks(1, size))
    return str(refusal.value)


def test_what_several_processes_do_not_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert refused("pocket/polytone").startswith("polytone is trained in one process")
    assert refused("pocket/sft", "train.optimizer=muon").startswith("train.optimizer: muon turns whole matrices")
    assert refused("pocket/align", "grpo.train.optimizer=muon").startswith("grpo.train.optimizer")
    assert refused("pocket/align", size=9).startswith("grpo.prompts: 8 a step are too few for 9 processes")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sft", "pocket", "-o", str(tmp_path / "run")]) == 2
    assert "there is no RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main(["judge", "a.wav", "b.wav"]) == 2
    assert capsys.readouterr().err == "paras2s (rank 1): judge runs in one process: start it without torchrun\n"
    assert not (tmp_path / "run").exists()
