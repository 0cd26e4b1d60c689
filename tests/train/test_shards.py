"""Several processes that train one model, over gloo: they are one process, whoever resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paras2s_cli.train.metrics import read_metrics
from paras2s_cli.train.stored import Stored, stored_groups

ROOT = Path(__file__).parents[2]
PATHS = (ROOT, ROOT / "kernels", ROOT / "tests" / "models", ROOT / "tests" / "train")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs by one process and by two, some of which compute layers again, in pieces; the resumed went on from the killed."""
    root = tmp_path_factory.mktemp("ranks")
    lora, grpo, again = {"lora": True}, {"stage": "grpo"}, {"checkpointing": True, "at_once": 4}
    jobs = [
        {"size": 1, "folder": "one"},
        {"size": 1, "folder": "one-lora", **lora},
        {"size": 1, "folder": "one-grpo", **grpo},
        {"size": 1, "folder": "one-grpo-lora", **grpo, **lora},
        {"size": 2, "folder": "two"},
        {"size": 2, "folder": "two-lora", **lora, **again},
        {"size": 2, "folder": "two-grpo", **grpo, **again},
        {"size": 2, "folder": "two-grpo-lora", **grpo, **lora},
        {"size": 2, "folder": "killed-grpo", **grpo, **again, "die": 3},
        {"size": 2, "folder": "resumed-grpo", **grpo, **again, "of": "killed-grpo"},
        {"size": 2, "folder": "killed", "die": 4},
        *({"size": size, "folder": f"resumed-{size}", "of": "killed"} for size in (1, 2, 3)),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, Path(__file__).parent / "ranks_stage.py", *map(json.dumps, jobs)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def lines(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder / "metrics.jsonl")]


def assert_same(found: Path, wanted: Path, atol: float) -> None:
    """Losses, norms before clipping, held-out losses and the weights that are kept."""
    rows, reference = lines(found), lines(wanted)
    assert [row.keys() for row in rows] == [row.keys() for row in reference] and len(rows) == 6
    assert max(row["grad_norm"] for row in reference) > 0.2  # of a clip at 0.1 in GRPO, at 1 in SFT
    for row, other in zip(rows, reference, strict=True):
        lists = {k for k, v in other.items() if isinstance(v, list)}  # what was rolled out, of all ranks
        assert all(row[k] == other[k] for k in lists)
        assert {k: v for k, v in row.items() if k not in lists} == pytest.approx(
            {k: v for k, v in other.items() if k not in lists}, abs=atol
        )
    tensors, others = load_file(found / "final.safetensors"), load_file(wanted / "final.safetensors")
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], atol=atol, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["", "-lora", "-grpo", "-grpo-lora"])
def test_two_ranks_are_one(runs: Path, what: str) -> None:
    assert_same(runs / f"two{what}", runs / f"one{what}", 5e-5)


@pytest.mark.slow
def test_killed_and_resumed_by_as_many_or_by_fewer_or_more(runs: Path) -> None:
    """As many: to the bit. Others read the rows that are theirs from the files of two."""
    assert [row["step"] for row in lines(runs / "killed")] == [1, 2, 3, 4]
    assert_same(runs / "resumed-2", runs / "two", 0.0)
    assert_same(runs / "resumed-grpo", runs / "two-grpo", 0.0)
    for size in (1, 3):
        assert lines(runs / f"resumed-{size}")[:4] == lines(runs / "killed")
        assert_same(runs / f"resumed-{size}", runs / "one", 5e-5)


@pytest.mark.slow
def test_every_rank_saves_its_own_rows_and_no_others(runs: Path) -> None:
    """Weights and both moments of AdamW: half of the numbers in each file; only what is no matrix's is rank 0's alone."""
    folder = runs / "two" / "checkpoints" / "step-000006"
    for group in ("model", "optimizer0"):
        files = [load_file(folder / f"{group}-0000{rank}-of-00002.safetensors") for rank in (1, 2)]
        sizes = [sum(t.numel() for name, t in file.items() if not name.endswith(".step")) for file in files]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
        assert not any(name.endswith(".step") for name in files[1])
        assert files[0].keys() - files[1].keys() == {name for name in files[0] if name.endswith(".step")}
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".safetensors") == ["COMPLETE", "state.json"]


def test_rows_across_files(tmp_path: Path) -> None:
    table = torch.arange(21.0).view(7, 3)
    for rank, rows in enumerate((table[:3], table[3:6], table[6:], table[7:])):
        alone = {"step": torch.tensor(4.0)} if rank == 0 else {}
        save_file({"w": rows.contiguous(), **alone}, tmp_path / f"a.b-0000{rank + 1}-of-00004.safetensors")
    save_file({"w": table}, tmp_path / "whole.safetensors")
    groups = stored_groups(tmp_path)
    assert groups.keys() == {"a.b", "whole"}
    assert set(groups["a.b"]) == {"w", "step"} and groups["a.b"]["step"] == 4 and groups["a.b"].shape("step") == ()
    for stored in groups.values():
        assert isinstance(stored, Stored) and stored.shape("w") == (7, 3) and torch.equal(stored["w"], table)
        for start in range(8):
            for stop in range(start, 8):
                assert torch.equal(stored.rows("w", start, stop), table[start:stop])
