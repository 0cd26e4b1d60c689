"""Several processes that train one model, over gloo: they are one process, whoever resumes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paras2s_cli.train.metrics import read_metrics
from paras2s_cli.train.shards import Stored, stored_groups

ROOT = Path(__file__).parents[2]


def together(size: int, *jobs: dict) -> None:
    """Runs jobs of ranks_stage.py, one after the other, by so many processes."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    words = [str(size), *(json.dumps({**job, "folder": str(job["folder"])}) for job in jobs)]
    command = [sys.executable, Path(__file__).parent / "ranks_stage.py", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one(root: Path) -> Path:
    """What one process does: full, lora."""
    together(1, {"folder": root / "one" / "full"}, {"folder": root / "one" / "lora", "lora": True})
    return root / "one"


@pytest.fixture(scope="module")
def two(root: Path) -> Path:
    """What two do; and `killed`, whose second rank dies in its fifth step."""
    together(
        2,
        {"folder": root / "two" / "full"},
        {"folder": root / "two" / "lora", "lora": True},
        {"folder": root / "two" / "killed", "die": 4},
    )
    return root / "two"


def lines(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder / "metrics.jsonl")]


def assert_same(found: Path, wanted: Path, atol: float) -> None:
    """Losses, norms before clipping, held-out losses and the weights that are kept."""
    rows, reference = lines(found), lines(wanted)
    assert [row.keys() for row in rows] == [row.keys() for row in reference] and len(rows) == 6
    assert max(row["grad_norm"] for row in reference) > 2  # of a clip at 1
    for row, other in zip(rows, reference, strict=True):
        assert row == pytest.approx(other, abs=atol)
    tensors, others = load_file(found / "final.safetensors"), load_file(wanted / "final.safetensors")
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], atol=atol, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["full", "lora"])
def test_two_ranks_are_one(one: Path, two: Path, what: str) -> None:
    assert_same(two / what, one / what, 5e-5)


@pytest.mark.slow
def test_killed_and_resumed_by_as_many_or_by_fewer_or_more(one: Path, two: Path) -> None:
    """As many: to the bit. Others read the rows that are theirs from the files of two."""
    assert [row["step"] for row in lines(two / "killed")] == [1, 2, 3, 4]
    for size in (1, 3):
        shutil.copytree(two / "killed", two / f"by-{size}")
    together(2, {"folder": two / "killed"})
    assert_same(two / "killed", two / "full", 0.0)
    for size in (1, 3):
        together(size, {"folder": two / f"by-{size}"})
        assert_same(two / f"by-{size}", one / "full", 5e-5)


@pytest.mark.slow
def test_every_rank_saves_its_own_rows_and_no_others(two: Path) -> None:
    """Weights and both moments of AdamW: half of the numbers in each file; only what is no matrix's is rank 0's alone."""
    folder = two / "full" / "checkpoints" / "step-000006"
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
