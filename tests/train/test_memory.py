"""What a plan reckons, against counts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.shapes import KIMI_AUDIO as KIMI
from paras2s_cli.models.omni import QwenOmni
from paras2s_cli.recipe.aligning import AlignRecipe
from paras2s_cli.recipe.load import load_recipe
from paras2s_cli.recipe.training import Lora
from paras2s_cli.train.memory import GIB, memory_of, memory_of_omni, size_of, size_of_omni
from paras2s_cli.train.plan import plan_of
from tests.checkpoints import KIMI_AUDIO, write_kimi_audio
from tests.qwen2_5_omni import write_qwen2_5_omni


def test_kimi_audio_has_its_9_77_billion_parameters() -> None:
    d, f, kv = 3584, 18944, 4 * 128
    layer = 2 * d * d + 2 * d * kv + d + 2 * kv + 3 * d * f + 2 * d
    adaptor = 5120 * d + d + d * d + d + 2 * d
    assert size_of(KIMI, None).parameters == 3 * 168448 * d + 34 * layer + 2 * d + adaptor
    assert size_of(KIMI, None).parameters == pytest.approx(9.77e9, rel=1e-3)


def test_an_adapter_counts_its_two_factors() -> None:
    size = size_of(KIMI, Lora(r=16, targets=["q_proj", "down_proj"]))
    assert size.trained == 34 * 16 * (3584 + 3584 + 18944 + 3584)
    assert size.parameters - size.trained == size_of(KIMI, None).parameters


def test_several_processes_share_and_each_has_a_copy_that_rolls_out() -> None:
    size = size_of(KIMI, None)
    n = size.parameters
    found = memory_of(KIMI, size, ranks=8, tokens=1000, checkpointing=True, rollouts=True)
    wanted = {"weights": n * 4 / 8, "gradients": n * 4 / 8, "optimizer": n * 8 / 8, "rollouts": n * 2, "reference": n * 2 / 8}
    wanted["backward"] = 1000 * 2 * (34 * 3584 + 8 * 3584 + 4 * 18944)
    assert found == pytest.approx({name: value / GIB for name, value in wanted.items()})
    alone = memory_of(KIMI, size_of(KIMI, Lora(r=16)), ranks=1, tokens=1000, checkpointing=False, rollouts=True)
    assert alone.keys() == {"weights", "gradients", "optimizer", "backward"}  # the reference is the same weights, and so is what rolls out
    assert alone["backward"] > 8 * found["backward"]


def test_qwen_omni_is_counted_as_it_is_trained(tmp_path: Path) -> None:
    folder = write_qwen2_5_omni(tmp_path / "omni")
    size, omni = size_of_omni(folder), QwenOmni.load(folder)
    assert size.parameters == sum(weight.numel() for weight in omni.model.parameters())
    for part in ("thinker", "talker"):
        omni.learn(part)  # type: ignore[arg-type]
        assert size.learning[part] == sum(weight.numel() for weight in omni.model.parameters() if weight.requires_grad)  # type: ignore[index]
    n, talker = size.parameters, size.learning["talker"]
    layers, hidden, inner = size.layers["talker"]
    found = memory_of_omni(size, {"talker": 700}, whole=True, checkpointing=False, reference=True)
    wanted = {"weights": 4 * n, "gradients": 4 * talker, "optimizer": 8 * talker, "reference": 4 * n}
    wanted["backward"] = 700 * 4 * layers * (8 * hidden + 4 * inner)
    assert found == pytest.approx({name: value / GIB for name, value in wanted.items()})


def test_a_plan_tells_parameters_tokens_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_kimi_audio(tmp_path / KIMI_AUDIO)
    monkeypatch.setenv("WORLD_SIZE", "4")
    some = ["sft.at_once=3", "grpo.at_once=20"]  # a process's 16 demonstrations by twos and threes, its 8 groups by two
    recipe = load_recipe("kimi-audio-7b", [f"sft.base.folder={folder}", "grpo.limit=100", *some], AlignRecipe)
    told = plan_of(recipe, tmp_path / "run")
    assert "# of each of 4 processes" in told and "GiB (weights" in told
    group, pair = 125 + 8 * 100, 375 + 6
    assert f"{64 * pair} tokens a step, {3 * pair} at once" in told and f"{32 * group} tokens a step, {2 * group} at once" in told
    omni = write_qwen2_5_omni(tmp_path / "omni")
    some = ["sft.at_once=0", "grpo.at_once=16"]
    recipe = load_recipe("qwen2.5-omni-7b", [f"sft.base.folder={omni}", "sft.base.part=both", "grpo.limit=100", *some], AlignRecipe)
    told = plan_of(recipe, tmp_path / "run")
    answer = 250 + 80 + 250 + 100
    assert f"{64 * 330} tokens a step, {64 * 330} at once" in told and f"{256 * answer} tokens a step, {16 * answer} at once" in told
    away = load_recipe("kimi-audio-7b", ["sft.base.folder=nowhere"], AlignRecipe)
    assert "nowhere is not here" in plan_of(away, tmp_path / "run")
