"""The loop: a run that is killed and resumed is the unbroken run, bit by bit."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from killed_stage import STEPS, Net, make_stage
from tiny_lm import tiny_model

from paras2s_cli.recipe.training import Train
from paras2s_cli.train.loop import Stage, learning_rate, make_optimizers, precision, resumed_from, train
from paras2s_cli.train.metrics import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lines(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder / "metrics.jsonl")]


def weights(stage: Stage) -> dict[str, torch.Tensor]:
    return stage.modules["net"].state_dict()


def unbroken(folder: Path, optimizer: str, save_every: int = 1) -> tuple[dict[str, torch.Tensor], list[dict]]:
    stage = make_stage(folder, optimizer, save_every)
    train(stage)
    return weights(stage), lines(folder)


# (optimizer, save_every, moment, its number) -> steps that are saved when it dies. While saving: after so many files, of which a
# checkpoint has one for the weights and one for each optimizer.
DEATHS = {
    ("adamw", 1, "step", 5): 5, ("adamw", 1, "after", 4): 4, ("adamw", 1, "saving", 7): 3,
    ("muon", 1, "step", 5): 5, ("muon", 1, "after", 4): 4, ("muon", 1, "saving", 11): 3,
    ("adamw", 3, "step", 5): 3, ("adamw", 3, "saving", 3): 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple, Path]:
    """The folders of runs that were killed."""
    root = tmp_path_factory.mktemp("killed")
    folders = {death: root / "-".join(map(str, death)) for death in DEATHS}
    arguments = [str(x) for death, folder in folders.items() for x in (folder, *death)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, Path(__file__).parent / "killed_stage.py", *arguments], check=True, env=environment, timeout=120)
    return folders


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_killed_and_resumed_it_ends_the_same(tmp_path: Path, killed: dict[tuple, Path], death: tuple) -> None:
    """SIGKILL within a step, after it is applied and before it is saved, and with some of the checkpoint's files written."""
    optimizer, save_every, _, _ = death
    folder, steps = killed[death], DEATHS[death]
    wanted, losses = unbroken(tmp_path, optimizer, save_every)
    assert resumed_from(folder) == steps
    assert [row["step"] for row in lines(folder)] == list(range(1, len(lines(folder)) + 1))
    stage, said, watched = make_stage(folder, optimizer, save_every), [], []
    train(stage, lambda step, metrics: watched.append((step, metrics["of"])), said.append)
    assert watched == [(step, STEPS) for step in range(steps + 1, STEPS + 1)]
    assert lines(folder) == losses and [row["step"] for row in losses] == list(range(1, STEPS + 1))
    found = weights(stage)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert len(said) == 1 and f"after step {steps} of {STEPS}" in said[0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns(tmp_path: Path, optimizer: str) -> None:
    trained = Net()
    trained.load_state_dict(unbroken(tmp_path, optimizer)[0])
    with torch.no_grad():
        assert sum(trained.loss(n) for n in range(STEPS)) < sum(Net().loss(n) for n in range(STEPS)) - 0.5


def test_a_finished_run_is_not_touched(tmp_path: Path) -> None:
    wanted, losses = unbroken(tmp_path, "adamw")
    stage, said = make_stage(tmp_path, "adamw", 1, step=lambda number: pytest.fail("it went on")), []
    train(stage, say=said.append)
    assert all(torch.equal(weights(stage)[name], wanted[name]) for name in wanted)
    assert lines(tmp_path) == losses and not said


@pytest.mark.parametrize("save_every", [1, 2, 3, 100])
def test_save_every(tmp_path: Path, save_every: int) -> None:
    seen = []
    stage = make_stage(tmp_path, "adamw", save_every)
    train(stage, lambda step, metrics: seen.append(resumed_from(tmp_path)))
    assert seen == [step if step == STEPS else step // save_every * save_every for step in range(1, STEPS + 1)]


@pytest.mark.parametrize(("moment", "kept"), [("step", 5), ("after", 3), ("watch", 6)])
def test_ctrl_c_saves_what_is_whole(tmp_path: Path, moment: str, kept: int) -> None:
    """In the midst of step 6: its five forerunners are kept. Once its update has begun it is whole only when it is written down."""

    def interrupt(number: int) -> None:
        if number == 5:
            raise KeyboardInterrupt

    broken = make_stage(tmp_path / "broken", "adamw", 3, **({moment: interrupt} if moment != "watch" else {}))
    with pytest.raises(KeyboardInterrupt):
        train(broken, (lambda step, metrics: interrupt(step - 1)) if moment == "watch" else None)
    assert resumed_from(broken.folder) == kept
    wanted, losses = unbroken(tmp_path / "whole", "adamw", 3)
    resumed = make_stage(broken.folder, "adamw", 3)
    train(resumed)
    assert all(torch.equal(weights(resumed)[name], wanted[name]) for name in wanted) and lines(broken.folder) == losses


def test_the_learning_rate() -> None:
    settings = Train(steps=50, lr=2.0, warmup=5)
    for step in range(50):
        cosine = 0.2 + 1.8 * (1 + math.cos(math.pi * step / 50)) / 2
        assert learning_rate(step, settings) == pytest.approx(cosine * min(1.0, (step + 1) / 5))
    assert learning_rate(0, Train(steps=50, lr=2.0, warmup=0)) == pytest.approx(2.0)
    assert learning_rate(49, settings) == pytest.approx(0.2, rel=0.02)


def test_metrics_say_the_rate_and_the_norm_before_clipping(tmp_path: Path) -> None:
    norms: list[float] = []
    stage = make_stage(tmp_path, "adamw", 1)

    def step(number: int) -> dict:
        metrics = inner(number)
        gradients = [p.grad for p in stage.modules["net"].parameters() if p.grad is not None]
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in gradients)))
        return metrics

    inner, stage.step = stage.step, step
    train(stage)
    rows = lines(tmp_path)
    assert [row["grad_norm"] for row in rows] == pytest.approx(norms, rel=1e-5)
    assert [row["lr"] for row in rows] == pytest.approx([learning_rate(s, stage.settings) for s in range(STEPS)])
    assert [row["applied"] for row in rows] == list(range(STEPS))
    frozen = make_stage(tmp_path / "fresh", "adamw", 1).modules["net"].frozen  # type: ignore[union-attr]
    assert torch.equal(stage.modules["net"].frozen.weight, frozen.weight)  # type: ignore[union-attr]


def test_who_gets_which_optimizer() -> None:
    model = tiny_model()
    names = {id(p): n for n, p in model.named_parameters()}
    adam, muon = make_optimizers({"m": model}, Train(steps=1, optimizer="muon", lr=0.1, weight_decay=0.3))
    inner = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    blocks = [f"{b}.{p}_proj.weight" for b in ("self_attn", "mlp") for p in ("q", "k", "v", "o", "gate", "up", "down")]
    layers = ["model.layers.0", "model.layers.1", "model.layers.2", "model.mimo_layers.0"]
    assert inner == {f"{layer}.{b}" for layer in layers for b in blocks if f"{layer}.{b}" in names.values()} and len(inner) == 28
    decayed, rest = adam.param_groups
    assert decayed["weight_decay"] == 0.3 and rest["weight_decay"] == 0
    assert all(p.dim() > 1 for p in decayed["params"]) and all(p.dim() == 1 for p in rest["params"])
    assert len(inner) + len(decayed["params"]) + len(rest["params"]) == len(names)
    assert len(make_optimizers({"m": model}, Train(steps=1, lr=0.1))) == 1


def test_precision() -> None:
    a = torch.ones(2, 2)
    for chosen, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with precision(Train(steps=1, lr=1.0, precision=chosen)):  # type: ignore[arg-type]
            assert (a @ a).dtype == dtype
