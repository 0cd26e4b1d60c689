"""The reward model, GRPO, and all stages in one."""

from typing import Literal

from pydantic import Field, model_validator

from paras2s_cli.recipe.base import Recipe, RecipeBase
from paras2s_cli.recipe.benching import BenchRecipe
from paras2s_cli.recipe.judging import JudgeRecipe, PolytoneRecipe
from paras2s_cli.recipe.models import LocalModel
from paras2s_cli.recipe.speaking import SftRecipe
from paras2s_cli.recipe.training import Lora, LowRank, Train


class RewardLM(LocalModel):
    """A reward model that hears both sides: an audio language model with a low-rank adapter on its text layers."""

    adapter: str = ""
    """A folder with an adapter that is merged first, such as PolyTone training leaves; what is learnt here goes on top of both."""
    lora: LowRank = LowRank.model_validate({})
    batch: int = Field(8, ge=1)
    """Pairs at a time; a step's are added up."""


class DistillRecipe(Recipe):
    """The reward model: what it is taught on, and how closely it must agree with the judge."""

    kind: Literal["distill"] = "distill"
    audio_lm: RewardLM | None = None
    """None: a small one that reads the audio codes, by the speech LM's own layers."""
    answers: int = Field(ge=8)
    temperature: float = Field(1.0, gt=0)
    train: Train
    digits: Train | None = None
    """Of the small one, which is trained in two stages."""
    held_out: int = Field(216, ge=2)
    floor: float = Field(0.8, ge=-1, le=1)
    """-1 switches it off."""

    @model_validator(mode="after")
    def _one_kind(self) -> "DistillRecipe":
        if self.audio_lm is None and self.digits is None:
            raise ValueError("name digits, or audio_lm for a reward model that hears")
        if self.audio_lm is not None and self.digits is not None:
            raise ValueError("digits is of the reward model that reads codes: write digits=null beside audio_lm")
        return self


class Grpo(RecipeBase):
    """Group-relative policy optimisation."""

    train: Train
    lora: Lora | None = None
    """None trains all weights. With an adapter the reference of the KL is the same weights without it."""
    checkpointing: bool = False
    """As in SFT."""
    at_once: int = Field(0, ge=0)
    """As in SFT, of answers: as many whole groups as fit, one at least."""
    prompts: int = Field(8, ge=1)
    group: int = Field(8, ge=2)
    temperature: float = Field(1.0, gt=0)
    audio_top_k: int = Field(0, ge=0)
    kl: float = Field(0.1, ge=0)
    clip: float = Field(0.2, gt=0)
    advantage_epsilon: float = Field(1e-4, gt=0)
    text_weight: float = Field(1.0, ge=0)
    agreement: float = Field(1.0, ge=0, le=1)
    limit: int = Field(56, ge=8)
    judge_every: int = Field(5, ge=1)
    judge_answers: int = Field(16, ge=1)
    refit_below: float = Field(0.75, ge=-1, le=1)
    refit_steps: int = Field(20, ge=0)

    @model_validator(mode="after")
    def _no_dropout(self) -> "Grpo":
        if self.lora is not None and self.lora.dropout:
            raise ValueError("lora.dropout must be 0 in GRPO: what was sampled is scored by the same network")
        return self


class AlignRecipe(Recipe):
    """The whole of ParaS2SAlign: judge, SFT, reward model, GRPO, bench."""

    kind: Literal["align"] = "align"
    judge: PolytoneRecipe
    queries: str | None = None
    """A manifest of unlabelled queries for GRPO, of a model with a voice of its own; None: the world's."""
    judged_by: JudgeRecipe | None = None
    """The reward of a model with a voice of its own, whose every answer is judged as sound; None: `judge` and the world's rubric."""
    sft: SftRecipe
    reward: DistillRecipe
    grpo: Grpo
    bench: BenchRecipe

    @model_validator(mode="after")
    def _words_are_told(self) -> "AlignRecipe":
        if self.reward.audio_lm is not None and self.grpo.agreement:
            raise ValueError("grpo.agreement must be 0 beside reward.audio_lm, which grades what it hears and does not tell its words")
        return self
