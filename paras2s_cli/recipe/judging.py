"""Who judges: ears of a world, models, servers."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from paras2s_cli.recipe.base import Recipe, RecipeBase
from paras2s_cli.recipe.models import LocalModel
from paras2s_cli.recipe.servers import BaseUrl, Endpoint, Limits
from paras2s_cli.recipe.training import Train

EMOTIONS = ("happy", "surprised", "sad", "angry", "fearful", "disgusted")
"""ParaS2SBench's classes of emotion (arXiv 2511.08723)."""

ANSWERING = ("reassuring", "apologetic", "cheerful", "sympathetic", "excited", "playful", "serious", "calm", "flat")


class PolytoneRecipe(Recipe):
    """The judge's ears: a transcriber, and a tone describer trained on every sentence in every tone."""

    kind: Literal["polytone"] = "polytone"
    transcriber: Train
    describer: Train


class Whisper(LocalModel):
    """The judge's first stage as a model of the Whisper family."""

    backend: Literal["whisper"] = "whisper"
    language: str = ""
    """A code such as `en`; empty: found out by the model, every 30 s."""
    times: Literal["word", "segment", "none"] = "word"
    """What has its seconds noted. Of models that tell no words' times, segments have."""
    batch: int = Field(8, ge=1)
    """Pieces of at most 30 s at a time."""


class AudioLM(LocalModel):
    """The judge's second stage as an audio language model: Qwen2-Audio's family, or Qwen2.5-Omni's thinker."""

    backend: Literal["audio-lm"] = "audio-lm"
    adapter: str = ""
    """A folder with a LoRA adapter (PEFT), as PolyTone training leaves one."""
    query_tones: list[str] = Field(default=[*EMOTIONS, "sincere", "sarcastic", "neutral"], min_length=2)
    answer_tones: list[str] = Field(default=[*ANSWERING, "neutral"], min_length=2)
    """One or two words each: what may be answered to the question for the tone."""
    batch: int = Field(8, ge=1)
    """Utterances at a time."""

    @field_validator("query_tones", "answer_tones")
    @classmethod
    def _few_words(cls, tones: list[str]) -> list[str]:
        bad = [tone for tone in tones if not 1 <= len(tone.split()) <= 2 or tone != " ".join(tone.split())]
        if bad or len(set(tones)) < len(tones):
            raise ValueError(f"tones are one or two words each, with one space between, and all different: {bad or tones}")
        return tones


class Transcriptions(Limits):
    """The judge's first stage as a server of /audio/transcriptions (OpenAI's, vLLM, speaches)."""

    backend: Literal["endpoint"] = "endpoint"
    base_url: BaseUrl
    model: str = Field(min_length=1)
    revision: str = ""
    """Which weights the server holds, where the model's name does not say it."""
    language: str = ""
    """A code such as `en`; empty: found out by the model."""
    times: Literal["word", "none"] = "none"
    """word asks for verbose_json, which not every model can write."""
    extra: dict[str, str | int | float | bool] = Field({})
    """Further fields of the request, as they are."""
    price: float | None = Field(None, ge=0)
    """Of a minute of sound, in any currency."""


class LocalLM(LocalModel):
    """The judge's third stage as a causal language model."""

    backend: Literal["local"]
    tokens: int = Field(16384, ge=1)
    """Of the pairs of one forward, beside the rubric's."""
    floor: float = Field(0.5, ge=0, le=1)
    """A pair whose five labels have less of the probability than this gets no score."""
    template: dict[str, Any] = Field({})
    """Further arguments of the chat template, as they are."""
    remote_code: bool = False
    """Runs the code that lies with the weights, where transformers has none for them."""

    @model_validator(mode="after")
    def _is_pinned(self) -> Self:
        if self.remote_code and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError("remote_code needs a revision: the whole commit, 40 hexadecimal digits, whose code you trust")
        return self


class EndToEnd(LocalModel):
    """The whole judge as one audio language model, which hears the query and the answer and tells the digit."""

    backend: Literal["audio-lm"] = "audio-lm"
    adapter: str = ""
    """A folder with a LoRA adapter (PEFT), as the training of a reward model leaves one."""
    batch: int = Field(8, ge=1)
    """Pairs at a time."""
    floor: float = Field(0.5, ge=0, le=1)
    """A pair whose five labels have less of the probability than this gets no score."""


def _backend_or(usual: str) -> Callable[[Any], str]:
    """Reads a stage's backend; the `usual` one where none is named."""

    def backend_of(stage: Any) -> str:
        backend = stage.get("backend", usual) if isinstance(stage, dict) else getattr(stage, "backend", usual)
        return backend if isinstance(backend, str) else ""

    return backend_of


Transcribe = Annotated[
    Annotated[Whisper, Tag("whisper")] | Annotated[Transcriptions, Tag("endpoint")],
    Discriminator(_backend_or("whisper"), "unknown_backend", "backend must be whisper or endpoint"),
]

Score = Annotated[
    Annotated[Endpoint, Tag("endpoint")] | Annotated[LocalLM, Tag("local")],
    Discriminator(_backend_or("endpoint"), "unknown_backend", "backend must be endpoint or local"),
]


class JudgeRecipe(RecipeBase):
    """The judge: who hears (transcript and tone), and who scores.

    `ears` hear what no `transcribe` and no `tone` does; without `score`, the rubric of the ears' world scores. `e2e` does it all.
    """

    kind: Literal["judge"] = "judge"
    ears: PolytoneRecipe | None = None
    transcribe: Transcribe | None = None
    tone: AudioLM | None = None
    score: Score | None = None
    e2e: EndToEnd | None = None

    @property
    def endpoint(self) -> Endpoint | None:
        """The score stage, where it is an endpoint."""
        return self.score if isinstance(self.score, Endpoint) else None

    @property
    def transcriptions(self) -> Transcriptions | None:
        """The transcribe stage, where it is an endpoint."""
        return self.transcribe if isinstance(self.transcribe, Transcriptions) else None

    @model_validator(mode="after")
    def _whole(self) -> "JudgeRecipe":
        if self.e2e is not None:
            if any((self.ears, self.transcribe, self.tone, self.score)):
                raise ValueError("e2e hears and scores by itself: leave out ears, transcribe, tone and score")
            return self
        if self.ears is None and (self.transcribe is None or self.tone is None):
            raise ValueError("name both transcribe and tone, or ears (ears: pocket/polytone) for what is not named")
        if self.score is None and (self.transcribe is not None or self.ears is None):
            raise ValueError("name score: the rubric of a world knows only what that world's own ears hear")
        return self
