"""Watches GRPO with the full judge: how far the reward has drifted from it, and a refit when it is too far."""

from pathlib import Path

import numpy as np
import torch

from paras2s_cli.audio.write import write_wav
from paras2s_cli.data.worlds import World
from paras2s_cli.judge.ears import spell
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.recipe.aligning import Grpo
from paras2s_cli.train.distill import Judged, agreement, judge_answers
from paras2s_cli.train.grpo import Experience
from paras2s_cli.train.loop import resumed_from
from paras2s_cli.train.metrics import MetricsLog, read_metrics
from paras2s_cli.train.reward import Reward

_KEPT = 512
"""Judged answers that a refit learns from."""
_WINDOW = 128
"""The latest of them, that the correlation is measured on: those of one step answer too few queries to tell."""
_ENOUGH = 64
"""Fewer say nothing on whether a refit is due."""


class Monitor:
    """Judges a sample of a step's answers every so many steps, in full, and keeps one of them to be heard."""

    def __init__(
        self,
        folder: Path,
        settings: Grpo,
        seed: int,
        judge: Judge,
        world: World,
        reward: Reward,
        tokenizer: TextTokenizer,
    ) -> None:
        self.folder, self.settings, self.seed = folder, settings, seed
        self.judge, self.world, self.reward, self.tokenizer = judge, world, reward, tokenizer
        self.judged: list[Judged] = []
        done = resumed_from(folder)
        self.seen = MetricsLog(folder / "judged.jsonl", done)
        recorded = read_metrics(folder / "judged.jsonl")
        # What a killed run had judged is judged again, so that a refit after it learns from the same.
        queries = {q.id: q for q in world.queries("train")}
        for line in recorded:
            asked = [queries[name] for name in line["queries"]]
            codes = [np.array(c, dtype=np.int64) for c in line["codes"]]
            self._remember(judge_answers(judge, world, asked, codes))

    def after(self, step: int, metrics: dict, experience: Experience) -> None:
        """Adds to the metrics of every `judge_every`th step.

        judge_score, judge_gap (reward less judge) and text_heard (the share that says what it writes) of a sample of its answers;
        judge_pearson of the reward model as it is with the judge, over the answers judged of late.
        """
        if (step + 1) % self.settings.judge_every:
            return
        picked = self._sample(step, len(experience.codes))
        asked = [experience.queries[i // self.settings.group] for i in picked]
        rows = judge_answers(self.judge, self.world, asked, [experience.codes[i] for i in picked])
        scores = np.array([np.nan if r.score is None else r.score for r in rows])
        metrics["judge_score"] = float(np.nanmean(scores)) if (~np.isnan(scores)).any() else float("nan")
        metrics["judge_gap"] = float(np.nanmean(experience.rewards.numpy()[picked] - scores))
        written = [self.tokenizer.decode(experience.rollouts.answers.text[i].tolist()) for i in picked]
        metrics["text_heard"] = float(np.mean([spell(t) == spell(r.said.heard.text) for t, r in zip(written, rows, strict=True)]))
        self._remember(rows)
        self.seen.write(step + 1, queries=[q.id for q in asked], codes=[r.codes.tolist() for r in rows])
        if len(rows[0].codes):
            wave = self.world.decode([rows[0].codes])[0]
            (self.folder / "samples").mkdir(exist_ok=True)
            write_wav(self.folder / "samples" / f"step-{step + 1:06d}.{rows[0].query.id}.wav", wave)
        metrics["judge_pearson"] = agreement(self.reward.rewards, self.judged[-_WINDOW:])
        if len(self.judged) >= _ENOUGH and metrics["judge_pearson"] < self.settings.refit_below:
            metrics["refitted"] = self.refit(step)

    def _sample(self, step: int, count: int) -> list[int]:
        """Which of a step's answers are judged: as many of each query as of any other."""
        rng = np.random.default_rng([self.seed, 53, step])
        shuffled = rng.permuted(np.arange(count).reshape(-1, self.settings.group), axis=1)
        return sorted(shuffled.T.flatten()[: self.settings.judge_answers].tolist())

    def _remember(self, rows: list[Judged]) -> None:
        self.judged = [*self.judged, *rows][-_KEPT:]

    def refit(self, step: int) -> int:
        """Teaches the reward model the judged answers of late; returns the steps it took."""
        self.reward.module.train()
        self.reward.thaw()
        taught = [p for p in self.reward.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(taught, lr=2e-4, weight_decay=0.01)
        for turn in range(self.settings.refit_steps):
            rng = np.random.default_rng([self.seed, 43, step, turn])
            rows = [self.judged[i] for i in rng.choice(len(self.judged), min(48, len(self.judged)), replace=False)]
            self.reward.teach(rows, step * 1009 + turn)
            torch.nn.utils.clip_grad_norm_(taught, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        self.reward.module.eval().requires_grad_(False)
        return self.settings.refit_steps
