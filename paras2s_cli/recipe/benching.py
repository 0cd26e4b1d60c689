"""Which systems a bench measures, and how."""

from typing import Literal

from pydantic import Field

from paras2s_cli.recipe.base import Recipe, RecipeBase
from paras2s_cli.recipe.judging import JudgeRecipe
from paras2s_cli.recipe.servers import Servers


class Programs(RecipeBase):
    """How `cmd:` programs are run in a bench."""

    timeout: float = Field(120.0, gt=0)
    """Seconds of one answer."""
    concurrency: int = Field(1, ge=1)
    """The most at a time."""


class Cascade(RecipeBase):
    """A bench's cascade. A stage is `pocket`, `cmd:PROGRAM ...` or `openai:MODEL`."""

    asr: str = "pocket"
    """`cmd:` with {query}; what it prints was said. pocket: the judge's transcriber."""
    llm: str = "pocket"
    """`cmd:` with {text}; what it prints is the answer."""
    tts: str = "pocket"
    """`cmd:` with {text} and {answer}."""


class BenchRecipe(Recipe):
    """Which systems are measured on which queries, and how."""

    kind: Literal["bench"] = "bench"
    judge: JudgeRecipe | None = None
    """None: the run's judge, or the pocket judge where there is no run."""
    systems: list[str] = Field(default=["base", "sft", "aligned", "cascade", "topline"])
    queries: str | None = None
    """A manifest of queries; None: the world's."""
    split: Literal["validation", "test"] = "test"
    limit: int = Field(0, ge=0)
    sampled: list[str] = Field(default=["sft", "aligned"])
    draws: int = Field(2000, ge=100)
    players: int = Field(20, ge=0)
    cascade: Cascade = Cascade()
    topline: str = "pocket"
    """`pocket`, `cmd:` with {text}, {answer} and maybe {style}, or `openai:MODEL`: who reads the written answers."""
    programs: Programs = Programs.model_validate({})
    openai: Servers = Servers.model_validate({})
    answer_limit: int = Field(1500, ge=1)
    """Tokens of either stream of an answer of Qwen2.5-Omni: 30 s of its speech."""
