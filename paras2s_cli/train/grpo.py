"""Group-relative policy optimisation on both token streams (GRPO: Shao et al. 2024, arXiv 2402.03300; ParaS2S, arXiv 2511.08723)."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paras2s_cli.data.worlds import Spoken
from paras2s_cli.models.lora import Adapter
from paras2s_cli.models.prompt import Answers
from paras2s_cli.recipe.aligning import Grpo
from paras2s_cli.rollout.engine import Rollouts
from paras2s_cli.rollout.sampling import Sampling
from paras2s_cli.train.at_once import pieces
from paras2s_cli.train.loop import Stage, precision
from paras2s_cli.train.policy import Policy
from paras2s_cli.train.ranks import ALONE, Ranks
from paras2s_cli.train.scoring import Scores
from paras2s_kernels import grpo_loss

RewardFunction = Callable[[Sequence[Spoken], Sequence[np.ndarray], Tensor, int], Tensor]
"""(queries, codes of all answers, text ids of all answers [Q * group, L], group) -> rewards [Q * group], NaN where there is none."""


@dataclass(frozen=True)
class Experience:
    """What a step rolled out on all ranks, for those who look at it afterwards."""

    queries: list[Spoken]
    rollouts: Rollouts
    codes: list[np.ndarray]
    rewards: Tensor


def group_advantages(rewards: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Rewards less their group's mean, over its deviation.

    Args:
        rewards: [P, G]; NaN where an answer has none. Those are left out of mean and deviation and get advantage 0, as does every
            answer of a group in which fewer than two rewards are left or all are equal.
        epsilon: added to the deviation. Where it is as large as the reward's own noise, groups that differ by noise alone push less.
    """
    there = ~rewards.isnan()
    count = there.sum(1, keepdim=True).clamp(min=1)
    mean = rewards.nan_to_num().sum(1, keepdim=True) / count
    centred = (rewards - mean).nan_to_num() * there
    deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return torch.where(deviation > 1e-4, centred / (deviation + epsilon), torch.zeros(()))


@dataclass(frozen=True)
class StreamLogprobs:
    """Log-probabilities and entropies [B, L] of one stream's tokens, 0 where they were forced."""

    logprobs: Tensor
    entropy: Tensor


def stream_logprobs(model: Policy, prompts: Any, answers: Answers, sampling: Sampling) -> tuple[StreamLogprobs, StreamLogprobs]:
    """Both streams' log-probabilities, under the distribution that was sampled from, with gradient: text, audio. Prompts may be fewer
    than answers."""
    text, audio = model.scores(prompts, answers, sampling)
    return _scatter(text, answers.text_free), _scatter(audio, answers.audio_free)


def _scatter(scores: Scores, free: Tensor) -> StreamLogprobs:
    logprobs, entropy = scores
    zeros = torch.zeros(free.shape, dtype=logprobs.dtype, device=logprobs.device)
    return StreamLogprobs(zeros.masked_scatter(free, logprobs), zeros.masked_scatter(free, entropy))


def stream_loss(
    new: Tensor, old: Tensor, reference: Tensor, free: Tensor, advantages: Tensor, clip: float, kl: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped policy loss and k3 KL penalty of one stream, and the means that go into the log (see `paras2s_kernels.grpo_loss`).

    Args:
        new, old, reference: [B, L] log-probabilities. free: [B, L] bool. advantages: [B].
    """
    loss, stats = grpo_loss(new, old, reference, free, advantages, clip, clip, kl)
    return loss, dict(zip(("kl", "clipped", "off_policy"), stats, strict=True))


def groups_at_once(settings: Grpo) -> int:
    """Groups whose gradients are computed at a time, 0 for all."""
    return settings.at_once and max(1, settings.at_once // settings.group)


def grpo_stage(
    folder: Path,
    settings: Grpo,
    seed: int,
    policy: Policy,
    warm: Policy,
    queries: Sequence[Spoken],
    reward: RewardFunction,
    after: Callable[[int, dict, Experience], None] | None = None,
    adapter: Adapter | None = None,
    ranks: Ranks = ALONE,
) -> Stage:
    """The stage that aligns `policy`.

    Args:
        warm: the model before alignment; it does not change.
        queries: unlabelled prompts. reward: called once a step, with this rank's share of its prompts.
        after: sees each step's experience once it is applied, and may add to its metrics.
        adapter: of the policy; it alone is trained, and off while `warm` scores, which may then be the policy itself.
        ranks: among whom both models' weights lie in parts. Each has whole groups; answers are numbered over all ranks.
    """
    count = settings.prompts * settings.group
    latest: list[Experience] = []

    def step(number: int) -> dict:
        rng = np.random.default_rng([seed, 41, number])
        asked = [queries[i] for i in rng.choice(len(queries), settings.prompts, replace=settings.prompts > len(queries))]
        # Heard as another speaker might say it: a few hundred recordings are soon known by heart.
        mine = ranks.share(settings.prompts)
        prompts = policy.prompt(asked, torch.Generator().manual_seed(seed * 1_000_003 + number), mine)
        rows = torch.arange(count).view(-1, settings.group)[list(mine)].flatten()
        sampling = Sampling(settings.temperature, settings.audio_top_k)
        policy.module.eval()
        rolled = policy.rollout(
            prompts,
            group=settings.group,
            sampling=sampling,
            seed=seed * 1_000_003 + number,
            row_ids=rows,
            limit=settings.limit,
        )
        answers, everyone = rolled.answers, policy.gather(rolled, rows, count, ranks)
        spoken = policy.codes(everyone.answers)
        # an answer that was cut off is no answer: it gets the reward of silence
        codes = [spoken[i] if everyone.ended[i] else spoken[i][:0] for i in rows.tolist()]
        rewards = reward([asked[i] for i in mine], codes, answers.text, settings.group)
        advantages = group_advantages(rewards.view(-1, settings.group), settings.advantage_epsilon).flatten()
        advantages = advantages.to(answers.text.device)
        sums: dict[str, float] = defaultdict(float)
        for some in pieces(settings.prompts, groups_at_once(settings), ranks):
            these = slice(some.start * settings.group, some.stop * settings.group)
            heard, said, pull = prompts.select(some), answers.select(these), advantages[these]
            with torch.no_grad(), precision(settings.train), adapter.off() if adapter else nullcontext():
                ref_text, ref_audio = stream_logprobs(warm, heard, said, sampling)
            with precision(settings.train):
                text, audio = stream_logprobs(policy, heard, said, sampling)
            text_loss, text_watch = stream_loss(
                text.logprobs, rolled.text_logprobs[these], ref_text.logprobs, said.text_free, pull, settings.clip, settings.kl
            )
            audio_loss, audio_watch = stream_loss(
                audio.logprobs, rolled.audio_logprobs[these], ref_audio.logprobs, said.audio_free, pull, settings.clip, settings.kl
            )
            # losses are means over a piece's answers, and the gradient of weights in parts is the mean over ranks
            part = len(pull) / count
            ((settings.text_weight * text_loss + audio_loss) * (part * ranks.size)).backward()
            for stream, watch in (("text", text_watch), ("audio", audio_watch)):
                for name, value in watch.items():
                    sums[f"{name}_{stream}"] += float(value) * part
            sums["entropy_text"] += float(text.entropy.detach().sum())
            sums["entropy_audio"] += float(audio.entropy.detach().sum())
        rewards = ranks.join(rewards, rows, count)
        latest[:] = [Experience(asked, everyone, spoken, rewards)]
        total = dict(zip(sums, ranks.total(*sums.values()), strict=True))
        return {
            **_watch(rewards.view(settings.prompts, settings.group), everyone, spoken),
            **total,
            "entropy_text": total["entropy_text"] / int(everyone.answers.text_free.sum()),
            "entropy_audio": total["entropy_audio"] / int(everyone.answers.audio_free.sum()),
        }

    def applied(number: int, metrics: dict) -> None:
        if after:
            after(number, metrics, latest[0])

    return Stage(folder, {"policy": adapter or policy.module}, settings.train, step, applied, ranks)


def _watch(rewards: Tensor, rolled: Rollouts, codes: Sequence[np.ndarray]) -> dict:
    repeats = [float(np.mean(c[1:] == c[:-1])) if len(c) > 1 else 0.0 for c in codes]
    return {
        "reward": float(rewards.nanmean()),
        "reward_deviation": float(
            torch.stack([r[~r.isnan()].std(correction=0) if (~r.isnan()).any() else torch.zeros(()) for r in rewards]).mean()
        ),
        "unscored": float(rewards.isnan().float().mean()),
        "codes": float(np.mean([len(c) for c in codes])),
        "silent": float(np.mean([len(c) == 0 for c in codes])),
        "repeated": float(np.mean(repeats)),
        "unended": float((~rolled.ended).float().mean()),
    }
