"""Servers that speak OpenAI's protocol, and how much is asked of them."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from paras2s_cli.recipe.base import RecipeBase


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
