"""GRPO: hand-computed advantages and losses, on-policy ratios of 1, and a bandit that it learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_lm import random_frames, tiny_model
from torch import Tensor

from paras2s_cli.data.worlds import Spoken
from paras2s_cli.models.prompt import Answers, spoken_queries
from paras2s_cli.models.speech_lm import Streams
from paras2s_cli.recipe.aligning import Grpo
from paras2s_cli.recipe.training import Train
from paras2s_cli.rollout.engine import Rollouts, rollout
from paras2s_cli.rollout.sampling import Sampling
from paras2s_cli.train.grpo import Experience, RewardFunction, group_advantages, grpo_stage, stream_logprobs, stream_loss
from paras2s_cli.train.loop import Stage, train
from paras2s_cli.train.metrics import read_metrics
from paras2s_cli.train.policy import NativePolicy
from paras2s_cli.train.scoring import Scores

NAN = float("nan")
LENGTHS = [22, 9, 41, 4, 30, 16, 12, 25]
SAMPLINGS = [Sampling(1.0), Sampling(0.8), Sampling(1.0, 10), Sampling(0.8, 10)]


def test_advantages_by_hand() -> None:
    found = group_advantages(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 1.0]]))
    wanted = [[-1.3416, -0.4472, 0.4472, 1.3416], [0.5774, 0.5774, 0.5774, -1.7321]]
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-3, rtol=0)


def test_an_epsilon_of_the_size_of_the_noise() -> None:
    """Deviations 2 and 0.01, with 0.5 added: the clear group keeps four fifths of its push, the noise a fiftieth."""
    found = group_advantages(torch.tensor([[1.0, 5.0, 1.0, 5.0], [3.01, 2.99, 3.01, 2.99]]), 0.5)
    torch.testing.assert_close(found, torch.tensor([[-0.8, 0.8, -0.8, 0.8], [0.0196, -0.0196, 0.0196, -0.0196]]), atol=1e-3, rtol=0)


def test_a_missing_reward_is_left_out() -> None:
    found = group_advantages(torch.tensor([[1.0, NAN, 3.0, NAN, 2.0], [-4.0, NAN, NAN, 0.0, NAN]]))
    root = math.sqrt(1.5)
    torch.testing.assert_close(found, torch.tensor([[-root, 0, root, 0, 0], [-1.0, 0, 0, 1, 0]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("group", [[3.7] * 4, [NAN] * 4, [2.0, NAN, NAN, NAN], [0.1 + 0.2, 0.3, 0.3, NAN]])
def test_groups_that_teach_nothing(group: list[float]) -> None:
    other = [1.0, 2.0, 3.0, 4.0]
    found = group_advantages(torch.tensor([group, other]))
    assert not found[0].any()
    assert torch.equal(found[1], group_advantages(torch.tensor([other]))[0])


def numbers(rows: int = 5, length: int = 15) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """new, old, reference, free, advantages: ratios from about 0.3 to 3; one row without free tokens."""
    generator = torch.Generator().manual_seed(4)
    new, old, reference = (-2 + 0.5 * torch.randn(rows, length, generator=generator, dtype=torch.float32) for _ in range(3))
    free = torch.rand(rows, length, generator=generator) < 0.6
    free[3] = False
    return new.requires_grad_(), old, reference, free, torch.tensor([1.3, -0.8, 0.0, 2.0, -1.7])


def test_the_loss_and_its_gradient_token_by_token() -> None:
    new, old, reference, free, advantages = numbers()
    clip, kl = 0.2, 0.3
    loss, watched = stream_loss(new, old, reference, free, advantages, clip, kl)
    total, distance_total, clipped_total, off_total = 0.0, 0.0, 0.0, 0.0
    gradient = torch.zeros_like(new)
    sides = set()
    values = new.detach()
    for b in range(5):
        n = int(free[b].sum())
        for t in range(15):
            if not free[b, t]:
                continue
            a, r, d = float(advantages[b]), math.exp(float(values[b, t] - old[b, t])), float(reference[b, t] - values[b, t])
            held = (a > 0 and r > 1 + clip) or (a < 0 and r < 1 - clip)
            sides |= {(a > 0, r > 1 + clip, r < 1 - clip)}
            bounded = min(max(r, 1 - clip), 1 + clip)
            total += (-min(a * r, a * bounded) + kl * (math.exp(d) - d - 1)) / n / 5
            gradient[b, t] = ((0.0 if held else -a * r) + kl * (1 - math.exp(d))) / n / 5
            distance_total += (math.exp(d) - d - 1) / n / 5
            clipped_total += (abs(r - 1) > clip) / n / 5
            off_total += abs(r - 1) / n / 5
    assert len(sides) == 6  # both signs of the advantage; below, within and above the clip
    assert float(loss.detach()) == pytest.approx(total, abs=1e-6)
    assert float(watched["kl"]) == pytest.approx(distance_total, abs=1e-6)
    assert float(watched["clipped"]) == pytest.approx(clipped_total, abs=1e-6)
    assert float(watched["off_policy"]) == pytest.approx(off_total, abs=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, new)[0], gradient, atol=1e-6, rtol=0)


def test_forced_positions_weigh_nothing() -> None:
    new, old, reference, free, advantages = numbers()
    loss, watched = stream_loss(new, old, reference, free, advantages, 0.2, 0.3)
    gradient = torch.autograd.grad(loss, new)[0]
    assert not gradient[~free].any() and gradient[:2][free[:2]].all()
    changed = [torch.where(free, x, torch.full_like(x, value)).detach() for x, value in ((new, -9.0), (old, -1.0), (reference, 0.0))]
    again, watched_again = stream_loss(*changed, free, advantages, 0.2, 0.3)
    assert float(again) == float(loss.detach()) and all(float(watched[k]) == float(watched_again[k]) for k in watched)


def sampled(sampling: Sampling, seed: int = 9) -> tuple[Rollouts, tuple]:
    model = tiny_model()
    prompts = spoken_queries(random_frames(LENGTHS), model.config, model.specials)
    rolled = rollout(model, prompts, group=8, sampling=sampling, seed=seed, row_ids=torch.arange(64), limit=20)
    return rolled, (model, prompts.repeat(8), rolled.answers, sampling)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_on_policy_the_ratio_is_1(sampling: Sampling) -> None:
    rolled, arguments = sampled(sampling)
    streams = stream_logprobs(NativePolicy(arguments[0]), *arguments[1:])
    answers = rolled.answers
    for found, given, free in zip(
        streams, (rolled.text_logprobs, rolled.audio_logprobs), (answers.text_free, answers.audio_free), strict=True
    ):
        assert not found.logprobs[~free].any() and not found.entropy[~free].any()
        torch.testing.assert_close(found.logprobs, given, atol=1e-5, rtol=0)
        assert ((found.logprobs.detach() - given).exp() - 1).abs()[free].mean() <= 1e-5
        assert found.logprobs.requires_grad and (found.entropy[free] > 0).all()


def test_another_model_still_gives_every_drawn_token_a_probability() -> None:
    """What is in the policy's top k need not be in the warm model's: its log-probability, and so the KL, stays finite."""
    rolled, (_, prompts, answers, sampling) = sampled(Sampling(1.0, 3))
    for found, free in zip(
        stream_logprobs(NativePolicy(tiny_model(seed=2)), prompts, answers, sampling), (answers.text_free, answers.audio_free), strict=True
    ):
        assert found.logprobs.isfinite().all() and (found.logprobs[free] < 0).all()
    assert (rolled.audio_logprobs >= -30).all()


def queries(count: int = 6) -> list[Spoken]:
    return [Spoken({"id": f"q{i}"}, Path("none"), table) for i, table in enumerate(random_frames([8 + 4 * i for i in range(count)]))]


def stage(
    folder: Path, reward: RewardFunction, after: Callable[[int, dict, Experience], None] | None = None, steps: int = 3, **settings: float
) -> Stage:
    policy, warm = tiny_model(delay=1), tiny_model(delay=1).requires_grad_(False)
    optimised = Train(steps=steps, lr=3e-3, warmup=2, weight_decay=0.0, precision="fp32", clip=1.0)
    grpo = Grpo(train=optimised, prompts=4, group=8, limit=14, **settings)  # type: ignore[arg-type]
    return grpo_stage(folder, grpo, 3, NativePolicy(policy), NativePolicy(warm), queries(), reward, after)


class Stale(NativePolicy):
    """It rolls out other weights than it learns, and some answers have chosen nothing in one of their streams."""

    pieces: list[int]

    def rollout(self, prompts: Streams, **how: Any) -> Rollouts:
        rolled = rollout(tiny_model(seed=2, delay=1), prompts, **how)
        rolled.answers.audio_free[:4] = False
        rolled.answers.text_free[-4:] = False
        return rolled

    def scores(self, prompts: Streams, answers: Answers, sampling: Sampling) -> tuple[Scores, Scores]:
        self.pieces.append(len(prompts.text))
        return super().scores(prompts, answers, sampling)


def stepped(folder: Path, at_once: int, pieces: list[int]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
    """Gradients, weights and metrics of a step on five groups of four answers, one of which has no reward. pieces: groups of each."""
    model = tiny_model(delay=1)
    optimised = Train(steps=1, lr=1e-4, warmup=0, precision="fp32", clip=100.0)
    settings = Grpo(train=optimised, prompts=5, group=4, limit=14, kl=0.3, text_weight=0.7, at_once=at_once)
    warm = NativePolicy(tiny_model(seed=3, delay=1))

    def reward(asked: Sequence[Spoken], codes: Sequence[np.ndarray], texts: Tensor, group: int) -> Tensor:
        return torch.tensor([NAN if i // 4 == 2 or i == 5 else float(i * i % 7) for i in range(len(codes))])

    policy = Stale(model)
    policy.pieces = []
    learner = grpo_stage(folder, settings, 3, policy, warm, queries(), reward)
    learner.step(0)
    assert policy.pieces == pieces
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    folder.mkdir()
    train(learner)
    (row,) = read_metrics(folder / "metrics.jsonl")
    return gradients, model.state_dict(), {name: value for name, value in row.items() if name != "seconds"}


def test_a_step_in_pieces_is_the_whole_step(tmp_path: Path) -> None:
    wanted = stepped(tmp_path / "whole", 0, [5])
    assert wanted[2]["unscored"] == 0.25 and len(wanted[0]) > 40
    assert all(wanted[2][f"{name}_{stream}"] > 0.01 for name in ("kl", "clipped", "off_policy", "entropy") for stream in ("text", "audio"))
    for at_once, pieces in ((1, [1] * 5), (11, [1, 2, 2]), (12, [2, 3])):  # whole groups, one at least
        found = stepped(tmp_path / str(at_once), at_once, pieces)
        assert found[0].keys() == wanted[0].keys()
        for tensors, others in zip(found[:2], wanted[:2], strict=True):
            for name, tensor in tensors.items():
                torch.testing.assert_close(tensor, others[name], atol=1e-6, rtol=1e-5)
        assert found[2] == pytest.approx(wanted[2], abs=1e-6)


def one_if_first_is(code: int) -> RewardFunction:
    def reward(asked: Sequence[Spoken], codes: Sequence[np.ndarray], texts: Tensor, group: int) -> Tensor:
        assert len(codes) == len(asked) * group
        return torch.tensor([float(len(c) > 0 and c[0] == code) for c in codes])

    return reward


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "audio_top_k": 10}])
def test_a_bandit_is_learnt(tmp_path: Path, settings: dict[str, float]) -> None:
    learner = stage(tmp_path, one_if_first_is(5), steps=40, kl=0.0, text_weight=0.0, **settings)
    train(learner)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert np.mean([r["reward"] for r in rows[:3]]) < 0.3
    assert np.mean([r["reward"] for r in rows[-5:]]) > 0.7
    assert max(r["off_policy_audio"] for r in rows) <= 1e-5 and max(r["off_policy_text"] for r in rows) <= 1e-5
    assert rows[0]["kl_audio"] < 1e-9 < rows[-1]["kl_audio"]


def test_the_kl_penalty_holds_the_policy_back(tmp_path: Path) -> None:
    ends = []
    for kl in (0.0, 20.0):
        (tmp_path / str(kl)).mkdir()
        train(stage(tmp_path / str(kl), one_if_first_is(5), steps=15, kl=kl))
        ends.append(read_metrics(tmp_path / str(kl) / "metrics.jsonl")[-1])
    assert ends[1]["kl_audio"] < 0.5 * ends[0]["kl_audio"] and ends[1]["reward"] < ends[0]["reward"]


def test_answers_that_are_cut_off_reach_the_reward_without_codes_and_missing_rewards_are_counted(tmp_path: Path) -> None:
    seen: list[Experience] = []
    given: list[list[np.ndarray]] = []

    def reward(asked: Sequence[Spoken], codes: Sequence[np.ndarray], texts: Tensor, group: int) -> Tensor:
        given.append(list(codes))
        return torch.tensor([NAN if i % 4 == 0 else float(i) for i in range(len(codes))])

    def after(step: int, metrics: dict, experience: Experience) -> None:
        seen.append(experience)
        metrics["extra"] = step

    learner = stage(tmp_path, reward, after)
    before = {name: tensor.clone() for name, tensor in learner.modules["policy"].state_dict().items()}
    train(learner)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    for row, experience, codes in zip(rows, seen, given, strict=True):
        ended = experience.rollouts.ended.tolist()
        assert not all(ended) and any(ended)
        assert [len(c) > 0 for c in codes] == [e and len(full) > 0 for e, full in zip(ended, experience.codes, strict=True)]
        assert len(set(q.id for q in experience.queries)) == 4
        assert row["unscored"] == 0.25 and row["unended"] == pytest.approx(1 - np.mean(ended)) and row["extra"] == row["step"] - 1
        assert row["reward"] == pytest.approx(np.mean([i for i in range(32) if i % 4]))
    assert any(not torch.equal(before[name], tensor) for name, tensor in learner.modules["policy"].state_dict().items())


def test_equal_rewards_and_no_penalty_leave_the_policy_alone(tmp_path: Path) -> None:
    learner = stage(tmp_path, lambda asked, codes, texts, group: torch.full((len(codes),), 3.0), kl=0.0)
    train(learner)
    fresh = tiny_model(delay=1).state_dict()
    assert all(torch.equal(fresh[name], tensor) for name, tensor in learner.modules["policy"].state_dict().items())


def test_broken_off_and_resumed_it_ends_the_same(tmp_path: Path) -> None:
    def stop(step: int, metrics: dict, experience: Experience) -> None:
        if step == 2:
            raise RuntimeError

    whole, parts = stage(tmp_path / "whole", one_if_first_is(5), steps=5), tmp_path / "parts"
    whole.folder.mkdir()
    parts.mkdir()
    train(whole)
    with pytest.raises(RuntimeError):
        train(stage(parts, one_if_first_is(5), stop, steps=5))
    resumed = stage(parts, one_if_first_is(5), steps=5)
    train(resumed)
    for name, tensor in whole.modules["policy"].state_dict().items():
        assert torch.equal(resumed.modules["policy"].state_dict()[name], tensor)
    a, b = ([{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(f / "metrics.jsonl")] for f in (whole.folder, parts))
    assert a == b
