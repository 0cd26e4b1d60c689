"""A checkpoint is whole or absent, also under SIGKILL, and a damaged one is named."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from paras2s_cli.errors import UsageError
from paras2s_cli.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3, 5), float(step)), "b": torch.arange(4)}


def save(root: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(root, step, {"model": weights(step)}, {"loss": step / 3}, keep)


def test_round_trip(tmp_path: Path) -> None:
    base = torch.randn(8, 8)
    groups = {
        "model": {
            "tied": base,
            "twin": base,
            "rows": base[2:4],
            "columns": base.T,
            "half": torch.randn(3).to(torch.bfloat16),
            "scalar": torch.tensor(7, dtype=torch.int64),
            "none": torch.empty(0, 3),
            "grad": torch.nn.Parameter(torch.randn(2)),
        },
        "empty": {},
        "dotted.name": {"a.b": torch.tensor([float("nan"), -0.0])},
    }
    state = {"loss": 0.1 + 0.2, "best": float("inf"), "rng": [1, 2**127], "none": None}
    folder = save_checkpoint(tmp_path / "run", 120, groups, state)
    assert folder == tmp_path / "run/step-000120" == latest_checkpoint(tmp_path / "run")
    assert sorted(os.listdir(folder)) == [
        "COMPLETE", "dotted.name.safetensors", "empty.safetensors", "model.safetensors", "state.json",
    ]  # fmt: skip
    back = load_checkpoint(folder)
    assert back.step == 120 and back.state == state and back.groups.keys() == groups.keys()
    for name, tensors in groups.items():
        assert back.groups[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            got = back.groups[name][key]
            assert got.dtype == tensor.dtype and got.shape == tensor.shape
            assert torch.equal(got.flatten().view(torch.uint8), tensor.detach().contiguous().flatten().view(torch.uint8))


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 999_999, 1_000_000):
        save(tmp_path, step)
    assert sorted(os.listdir(tmp_path)) == ["step-1000000", "step-999999"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1000000"
    save(tmp_path, 1_000_001, keep=1)
    assert os.listdir(tmp_path) == ["step-1000001"]


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save_checkpoint(tmp_path, 3, {"model": weights(9)}, {})
    assert torch.equal(load_checkpoint(tmp_path / "step-000003").groups["model"]["w"], weights(9)["w"])
    assert os.listdir(tmp_path) == ["step-000003"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "COMPLETE"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_torn_one_is_passed_over_and_named(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    torn = save(tmp_path, 2)
    path = torn / name
    data = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[:-1])
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000001"
    with pytest.raises(UsageError, match="step-000002 is incomplete; delete it"):
        load_checkpoint(torn)
    save(tmp_path, 3)
    assert sorted(os.listdir(tmp_path)) == ["step-000001", "step-000003"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_corrupt_one_is_named(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 1)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(b"\xff" * 16 + data[16:])
    with pytest.raises(UsageError, match=r"step-000001 is corrupt .*; delete it") as refusal:
        load_checkpoint(folder)
    assert "\n" not in str(refusal.value)


def test_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None and latest_checkpoint(tmp_path / "none") is None
    with pytest.raises(UsageError, match="no checkpoint folder"):
        load_checkpoint(tmp_path / "none")


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 1, {"model": weights(1)}, {"bad": object()})
    with pytest.raises(ValueError):
        save_checkpoint(tmp_path, 1, {"../model": weights(1)}, {})
    assert os.listdir(tmp_path) == []


FULL = """
import os, resource, sys, torch
from pathlib import Path
from paras2s_cli.errors import UsageError
from paras2s_cli.train.checkpoint import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(Path(sys.argv[1]), 1, {"model": {"w": torch.zeros(100_000)}}, {})
except UsageError as error:
    print(error, os.listdir(sys.argv[1]))
"""

# torch is imported once; every line on stdin forks a process that resumes and saves without end.
LOOP = """
import os, sys, torch
from pathlib import Path
from paras2s_cli.train.checkpoint import *
torch.set_num_threads(1)
root = Path(sys.argv[1])

def loop():
    last = latest_checkpoint(root)
    step = load_checkpoint(last).step if last else 0
    print(os.getpid(), step, flush=True)
    while True:
        step += 1
        group = {"w": torch.full((50_000,), float(step)), "b": torch.tensor([step])}
        save_checkpoint(root, step, {"model": group, "optimizer": group}, {"at": step})
        (root / "reported").write_text(str(step))

for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        loop()
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


def python(code: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_a_disk_that_takes_no_more_is_one_sentence(tmp_path: Path) -> None:
    said = python(FULL, tmp_path).communicate()[0]
    assert said.startswith("cannot write ") and "File too large" in said and said.endswith(" []\n")


def test_killed_at_any_moment_the_latest_loads(tmp_path: Path) -> None:
    moments = random.Random(0)
    parent = python(LOOP, tmp_path)
    assert parent.stdin is not None and parent.stdout is not None
    before = 0
    for _ in range(25):
        parent.stdin.write("go\n")
        parent.stdin.flush()
        child, resumed = map(int, parent.stdout.readline().split())
        assert resumed == before
        while not (tmp_path / "reported").exists():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        assert parent.stdout.readline() == "killed\n"
        latest = latest_checkpoint(tmp_path)
        assert latest is not None
        saved = load_checkpoint(latest)
        reported = int((tmp_path / "reported").read_text() or 0)  # 0: killed while reporting
        assert saved.step >= max(reported, before)  # nothing that was reported is lost
        before = saved.step
        for group in saved.groups.values():
            assert torch.equal(group["w"], torch.full((50_000,), float(before))) and group["b"].item() == before
        assert saved.state == {"at": before}
    assert before > 25
    parent.communicate()
    save(tmp_path, before + 1)  # clears away what the kills have left
    assert sorted(os.listdir(tmp_path)) == ["reported", f"step-{before:06d}", f"step-{before + 1:06d}"]
