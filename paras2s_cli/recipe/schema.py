"""Every recipe's fields, their defaults and what they mean."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from paras2s_cli.recipe.base import RecipeBase

EMOTIONS = ("happy", "surprised", "sad", "angry", "fearful", "disgusted")
"""ParaS2SBench's classes of emotion (arXiv 2511.08723)."""
ANSWERING = ("reassuring", "apologetic", "cheerful", "sympathetic", "excited", "playful", "serious", "calm", "flat")


class Train(RecipeBase):
    """How a stage is optimised: linear warm-up, cosine to a tenth."""

    steps: int = Field(ge=0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    batch: int = Field(64, ge=1)
    lr: float = Field(gt=0)
    warmup: int = Field(20, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    save_every: int = Field(1, ge=1)


class Recipe(RecipeBase):
    """What all recipes share."""

    world: Literal["pocket"] = "pocket"
    seed: int = Field(1, ge=0, lt=2**31)
    threads: int = Field(2, ge=1)


class LowRank(RecipeBase):
    """A low-rank adapter (LoRA). Needs the extra `lora`."""

    r: int = Field(16, ge=1)
    """Its rank."""
    alpha: float = Field(32.0, gt=0)
    """What it adds is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of what it is given, while it learns."""
    targets: list[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )
    """The products that have one, in all layers of what answers or grades."""


class Lora(LowRank):
    """A low-rank adapter is trained in the place of the weights."""

    merge: bool = True
    """The model is saved with the adapter in its weights; false saves the adapter alone, in peft's layout."""


class PolytoneRecipe(Recipe):
    """The judge's ears: a transcriber, and a tone describer trained on every sentence in every tone."""

    kind: Literal["polytone"] = "polytone"
    transcriber: Train
    describer: Train


class LocalModel(RecipeBase):
    """A model on this machine, through transformers."""

    model: str = Field(min_length=1)
    """A folder, from where the command runs, or a name on the hub; its weights are safetensors, and none of its code is run."""
    revision: str = ""
    """Of the hub: a commit, a branch or a tag. Of a folder: a word that tells its weights from others, which rows of scores name."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto is float32 on the CPU and the checkpoint's own on a GPU."""
    device: str = "auto"

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError(f"must be auto, cpu, cuda or a certain cuda:1, not {device}")
        return device


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


def _http(url: str) -> str:
    if not url.startswith(("http://", "https://")) or "@" in url:
        raise ValueError("write http://HOST/v1 or https://HOST/v1; the key stands in the variable that key_env names")
    return url.rstrip("/")


BaseUrl = Annotated[str, AfterValidator(_http)]
"""What /chat/completions and /audio/transcriptions are put after."""


class Limits(RecipeBase):
    """How much of a server that speaks OpenAI's protocol is asked, whatever it is asked for, and with which key."""

    key_env: Annotated[str, BeforeValidator(lambda name: "" if name is None else name)] = "OPENAI_API_KEY"
    """The environment variable that holds the key; empty for a server that asks for none."""
    concurrency: int = Field(64, ge=1)
    """The most requests at a time."""
    requests_a_minute: int = Field(0, ge=0)
    """0 is no limit."""
    timeout: float = Field(60.0, gt=0)
    """Seconds of one request."""
    deadline: float = Field(600.0, gt=0)
    """Seconds of a pair or an utterance: its requests and the pauses between them, and not the waiting for its turn."""
    retries: int = Field(6, ge=0)
    backoff: float = Field(1.0, gt=0)
    """Seconds before the first retry; each further one waits twice as long."""
    seed: int = Field(1, ge=0)
    """Of the backoff's jitter."""


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


class Server(Limits):
    """How a server is asked that speaks OpenAI's protocol (vLLM, SGLang, GPT)."""

    temperature: float | None = Field(0.0, ge=0)
    max_tokens: int = Field(400, ge=1)
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra: dict[str, Any] = Field({})
    """Further keys of the request, as they are."""
    tokens_a_minute: int = Field(0, ge=0)
    """0 is no limit."""
    price_in: float | None = Field(None, ge=0)
    price_out: float | None = Field(None, ge=0)
    """Of a million tokens, in any currency."""

    @model_validator(mode="after")
    def _both_prices(self) -> Self:
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out go together")
        if 0 < self.tokens_a_minute <= self.max_tokens:
            raise ValueError("tokens_a_minute has no room for one reply of max_tokens")
        return self


class Endpoint(Server):
    """One model of a server; as the judge's third stage, a chat endpoint."""

    backend: Literal["endpoint"] = "endpoint"
    base_url: BaseUrl
    model: str = Field(min_length=1)
    revision: str = ""
    """Which weights the server holds, where the model's name does not say it: answers of one are not taken for another's."""


class Servers(Server):
    """What `openai:MODEL` asks in a bench: the keys of an Endpoint, for all models and for each by its name."""

    base_url: BaseUrl | None = None
    """None: the environment variable OPENAI_BASE_URL."""
    temperature: float | None = Field(None, ge=0)
    """None: what the server takes if not told."""
    max_tokens: int = Field(2000, ge=1)
    voice: str = "alloy"
    prompt: str = "You are a voice assistant. Answer in one or two sentences, as one speaks."
    """The system message of a chat."""
    models: dict[str, dict[str, Any]] = Field({})
    """Where a model differs: its name -> keys of an Endpoint."""

    def endpoint(self, model: str, base_url: str) -> Endpoint:
        """One model's settings. base_url: for a model and a recipe that name none."""
        shared = {name: getattr(self, name) for name in Server.model_fields}
        return Endpoint.model_validate(shared | {"base_url": self.base_url or base_url, "model": model} | self.models.get(model, {}))

    @model_validator(mode="after")
    def _every_model(self) -> Self:
        for model in self.models:
            try:
                self.endpoint(model, "http://unknown")
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                raise ValueError(f"models: {model}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return self


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


class LocalLM(LocalModel):
    """The judge's third stage as a causal language model."""

    backend: Literal["local"]
    tokens: int = Field(16384, ge=1)
    """Of the pairs of one forward, beside the rubric's."""
    floor: float = Field(0.5, ge=0, le=1)
    """A pair whose five labels have less of the probability than this gets no score."""
    template: dict[str, Any] = Field({})
    """Further arguments of the chat template, as they are."""


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


class EndToEnd(LocalModel):
    """The whole judge as one audio language model, which hears the query and the answer and tells the digit."""

    backend: Literal["audio-lm"] = "audio-lm"
    adapter: str = ""
    """A folder with a LoRA adapter (PEFT), as the training of a reward model leaves one."""
    batch: int = Field(8, ge=1)
    """Pairs at a time."""
    floor: float = Field(0.5, ge=0, le=1)
    """A pair whose five labels have less of the probability than this gets no score."""


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


class Demonstrations(RecipeBase):
    """Which demonstrations, and how good. `tone_deaf` of them are answered in a random way; count 0 is every query, anew each epoch."""

    count: int = Field(ge=0)
    tone_deaf: float = Field(ge=0, le=1)
    transcriptions: float = Field(0.0, ge=0, le=1)
    readings: float = Field(0.0, ge=0, le=1)
    carriers: float = Field(0.0, ge=0, le=1)
    described: bool = False


class Shape(RecipeBase):
    """The size of a speech LM that is trained from nothing."""

    hidden_size: int = Field(ge=8)
    intermediate_size: int = Field(ge=8)
    shared_layers: int = Field(ge=1)
    text_layers: int = Field(ge=1)
    audio_layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    delay: int = Field(ge=0)


class BaseRecipe(Recipe):
    """A speech LM from nothing, that speaks but is deaf to tone: what a downloaded base model is to a large run."""

    kind: Literal["base"] = "base"
    model: Shape
    demonstrations: Demonstrations
    train: Train


class CheckpointBase(RecipeBase):
    """A base that is there already: a folder with a speech LM, Kimi-Audio's as it is published for one."""

    kind: Literal["checkpoint"] = "checkpoint"
    folder: str = Field(min_length=1)
    """As seen from where the command runs."""


class OmniBase(RecipeBase):
    """A base that is there already: Qwen2.5-Omni, run through transformers."""

    kind: Literal["qwen2.5-omni"] = "qwen2.5-omni"
    folder: str = Field(min_length=1)
    """Of the checkpoint, or its name on the Hugging Face hub."""
    part: Literal["talker", "thinker", "both"] = "talker"
    """What learns."""
    speaker: str | None = None
    """A voice of its spk_dict.pt; None is the first."""
    dtype: Literal["fp32", "file"] = "fp32"
    """Of the weights while they learn: in bf16, as they are published, steps at a small learning rate round away."""


class SftRecipe(Recipe):
    """Next-token training of the base on demonstrations."""

    kind: Literal["sft"] = "sft"
    base: BaseRecipe | CheckpointBase | OmniBase = Field(discriminator="kind")
    demonstrations: Demonstrations
    data: str | None = None
    """A manifest of demonstrations of one's own, for a base that hears recordings; None: `demonstrations`, of the world."""
    held_out: float = Field(0.05, gt=0, lt=1)
    """The share of `data` that is measured on and not learnt."""
    train: Train
    lora: Lora | None = None
    """None trains all weights."""
    checkpointing: bool = False
    """Layers are computed again in the backward instead of kept for it: much less memory, a third more time."""
    evaluate_every: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _hears_recordings(self) -> "SftRecipe":
        if self.data is not None and isinstance(self.base, BaseRecipe):
            raise ValueError("data is for a base that hears recordings (kind checkpoint or qwen2.5-omni); this one learns from its world")
        return self


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
