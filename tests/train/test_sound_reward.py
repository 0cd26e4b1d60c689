"""The reward model that hears: what it is taught and what not, what changes, and that it is resumed and taught again as others are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch

from paras2s_cli.audio.write import write_wav
from paras2s_cli.data.worlds import Spoken
from paras2s_cli.errors import Paras2sError, UsageError
from paras2s_cli.judge.hearing import pair_lm
from paras2s_cli.judge.hearing.audio_lm import Question
from paras2s_cli.judge.hearing.pair_lm import PairLM
from paras2s_cli.judge.stages import Heard, Toned, Utterance
from paras2s_cli.recipe.aligning import AlignRecipe, DistillRecipe, Grpo, RewardLM
from paras2s_cli.recipe.load import load_recipe
from paras2s_cli.recipe.training import Train
from paras2s_cli.train.distill import Judged, agreement
from paras2s_cli.train.loop import train
from paras2s_cli.train.metrics import read_metrics
from paras2s_cli.train.monitor import Monitor
from paras2s_cli.train.sound_reward import SoundReward, digit_of, hearing_stage
from tests.qwen2_5_omni import write_qwen2_5_omni

NOBODY = Utterance(Heard("", True), Toned({}, {}, {}), "")


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint's tokens are bytes: the question's would be most of the work."""
    monkeypatch.setattr(pair_lm, "PAIR", Question("How good?", pair_lm.PAIR.answers))


def loud_or_quiet(codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A sound as loud as the first code says."""
    return [(0.5 if row[0] else 0.003) * np.random.default_rng(row).standard_normal(160 * len(row)).astype(np.float32) for row in codes]


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen2_5_omni(tmp_path_factory.mktemp("omni") / "omni")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Judged]:
    """Loud answers are a 5, quiet ones a 1."""
    folder, rng, found = tmp_path_factory.mktemp("queries"), np.random.default_rng(0), []
    for i in range(24):
        path = folder / f"{i % 4}.wav"
        write_wav(path, (0.1 * rng.standard_normal(2400 + 800 * (i % 4))).astype(np.float32))
        query = Spoken({"id": str(i % 4)}, path, np.zeros((1, 1), np.float32))
        codes = np.array([i % 2, *rng.integers(0, 20, 20 + rng.integers(20))])
        found.append(Judged(query, codes, NOBODY, NOBODY, 5.0 if i % 2 else 1.0))
    return found


def made(omni: Path, settings: Train, dropout: float = 0.0, batch: int = 8) -> SoundReward:
    lora = {"r": 4, "alpha": 8, "dropout": dropout}
    model = PairLM(RewardLM.model_validate({"model": str(omni), "device": "cpu", "lora": lora, "batch": batch}), "reward.audio_lm", 1)
    return SoundReward(model, loud_or_quiet, settings)


def settings(steps: int, precision: Literal["bf16", "fp32"] = "fp32") -> Train:
    return Train(steps=steps, batch=8, lr=2e-2, warmup=3, weight_decay=0.0, precision=precision)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def test_it_learns_to_tell_loud_from_quiet_by_its_adapter_alone(omni: Path, rows: list[Judged], tmp_path: Path) -> None:
    reward = made(omni, settings(30, "bf16"))
    before = {name: weight.clone() for name, weight in reward.module.named_parameters()}
    stage = hearing_stage(tmp_path, settings(30), 1, reward, rows[:16])
    train(stage)
    found = losses(tmp_path)
    assert np.mean(found[-5:]) < 0.3 * found[0]
    changed = {name for name, weight in reward.module.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert agreement(reward.rewards, rows[16:]) > 0.9
    kept = sum(path.stat().st_size for path in (tmp_path / "checkpoints").glob("*30/adapter.safetensors"))
    assert 0 < kept < 0.2 * sum(weight.nbytes for weight in before.values())
    # What is saved is the whole of what was learnt.
    (tmp_path / "model").mkdir()
    reward.save(tmp_path / "model")
    again = made(omni, settings(30))
    again.load(tmp_path / "model")
    asked, codes = [r.query for r in rows], [r.codes for r in rows]
    assert torch.equal(again.rewards(asked, codes), reward.rewards(asked, codes))
    assert not torch.equal(made(omni, settings(30)).rewards(asked, codes), reward.rewards(asked, codes))


def test_broken_off_and_resumed_it_ends_the_same_with_dropout(omni: Path, rows: list[Judged], tmp_path: Path) -> None:
    def stop(step: int, metrics: dict) -> None:
        if step == 2:
            raise RuntimeError

    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    ends = []
    for folder, watch in (("whole", None), ("parts", stop), ("parts", None)):
        reward = made(omni, settings(4), dropout=0.3)
        reward.module.train()
        stage = hearing_stage(tmp_path / folder, settings(4), 1, reward, rows)
        if watch is None:
            train(stage)
            ends.append(reward.module.state_dict())
        else:
            with pytest.raises(RuntimeError):
                train(stage, watch)
        torch.rand(7)  # a new process starts with other random numbers
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def gradients(reward: SoundReward, rows: Sequence[Judged]) -> tuple[float, torch.Tensor]:
    loss = reward.teach(rows, 3)
    found = torch.cat([weight.grad.flatten() for weight in reward.module.parameters() if weight.grad is not None])
    reward.module.zero_grad()
    return loss, found


def test_what_is_taught_is_the_cross_entropy_of_scored_pairs(omni: Path, rows: list[Judged]) -> None:
    reward, some = made(omni, settings(1)), [replace(r, score=score) for r, score in zip(rows, (1.0, 2.4, 2.5, 5.0, 3.0), strict=False)]
    loss, gradient = gradients(reward, some)
    asked, said = reward._hear([r.query for r in some], [r.codes for r in some])
    with torch.no_grad():
        likely = torch.cat([reward.model.logits([q], [a]) for q, a in zip(asked, said, strict=True)]).double().log_softmax(-1)
    assert loss == pytest.approx(-float(likely[range(5), [0, 1, 2, 4, 2]].mean()), abs=1e-4)
    unscored = [replace(rows[6], score=None), replace(rows[7], codes=rows[7].codes[:0])]
    again, same = gradients(reward, [unscored[0], *some, unscored[1]])
    assert again == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(same, gradient, atol=1e-5, rtol=1e-4)
    in_parts, parts = gradients(made(omni, settings(1), batch=2), some)
    assert in_parts == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(parts, gradient, atol=1e-5, rtol=1e-4)
    assert reward.teach(unscored, 3) == 0.0
    with pytest.raises(Paras2sError, match="scored none"):
        hearing_stage(Path(), settings(1), 1, reward, unscored)


def test_the_nearest_digit() -> None:
    assert [digit_of(score) for score in (1.0, 1.49, 1.5, 2.5, 3.5, 4.5, 4.4, 5.0, 0.2, 5.7)] == [1, 1, 2, 3, 4, 5, 4, 5, 1, 5]


def test_a_group_is_its_query_with_each_of_its_answers(omni: Path, rows: list[Judged], monkeypatch: pytest.MonkeyPatch) -> None:
    reward, spoken = made(omni, settings(1)), []

    def speak(codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        spoken.append(len(codes))
        return loud_or_quiet(codes)

    monkeypatch.setattr(reward, "_speak", speak)
    asked, codes = [rows[0].query, rows[3].query], [rows[0].codes, rows[1].codes, rows[2].codes[:0], rows[0].codes]
    grouped = reward.rewards(asked, codes, torch.zeros(4, 2), 2)
    one_by_one = [float(reward.rewards([asked[i // 2]], [row])) for i, row in enumerate(codes)]
    np.testing.assert_allclose(grouped, one_by_one, atol=2e-5)
    assert grouped[2] == 1 and grouped[0] != grouped[3] and spoken[0] == 2


def test_it_is_taught_again_when_it_has_drifted(omni: Path, rows: list[Judged], tmp_path: Path) -> None:
    reward = made(omni, settings(1))
    reward.module.eval().requires_grad_(False)
    grpo = Grpo(train=settings(9), refit_steps=3)
    world = SimpleNamespace(queries=lambda split: [])
    monitor = Monitor(tmp_path, grpo, 1, None, world, reward, None)  # type: ignore[arg-type]
    monitor.judged = list(rows)
    before, frozen = reward.module.state_dict(), {n: w.clone() for n, w in reward.module.named_parameters() if "lora_" not in n}
    before = {name: tensor.clone() for name, tensor in before.items()}
    with torch.no_grad():
        untaught = reward.rewards([r.query for r in rows], [r.codes for r in rows])
    assert monitor.refit(4) == 3
    assert any(not torch.equal(before[name], tensor) for name, tensor in reward.module.state_dict().items())
    assert all(torch.equal(weight, frozen[name]) for name, weight in reward.module.named_parameters() if name in frozen)
    assert not any(weight.requires_grad for weight in reward.module.parameters())
    taught = reward.rewards([r.query for r in rows], [r.codes for r in rows])
    assert agreement(reward.rewards, rows) > 0 and not torch.equal(taught, untaught)


def test_recipes_name_one_kind_of_reward_model() -> None:
    hears = ["reward.audio_lm.model=some/model", "reward.digits=null", "grpo.agreement=0"]
    recipe = load_recipe("pocket", [*hears, "reward.audio_lm.lora.r=8"], AlignRecipe).reward
    assert recipe.audio_lm is not None and (recipe.audio_lm.lora.r, recipe.audio_lm.batch) == (8, 8)
    assert load_recipe("pocket", [], DistillRecipe).audio_lm is None
    for overrides, said in (
        (hears[:1] + hears[2:], "digits=null"),
        (hears[1:], "name digits, or audio_lm"),
        (hears[:2], r"grpo\.agreement must be 0"),
        ([*hears, "reward.audio_lm.lora.merge=false"], "merge"),
    ):
        with pytest.raises(UsageError, match=said):
            load_recipe("pocket", overrides, AlignRecipe)
