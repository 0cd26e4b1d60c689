"""Pairs as tokens: the model's own chat template, the rubric first, so that all prompts begin with the same tokens."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from paras2s_cli.data.cache import content_key
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.label_verdict import LABELS
from paras2s_cli.judge.prompt import FRAME, as_data, frame, heard_of, nonces_of, rubric
from paras2s_cli.judge.stages import Utterance
from paras2s_cli.recipe.judging import LocalLM

REPLY = "Weigh content and style, then reply with the score alone: one digit from 1 to 5, and nothing else."
_SLOT = "(the pair)"
_FIXED = {"date_string": "26 Jul 2024"}
"""Llama's templates tell the model the day, and with it scores would change; this is the day that they tell where they know none."""


def rubric_hash() -> str:
    """12 hex digits of the rubric and of what frames the data."""
    return content_key(rubric(REPLY), FRAME)[:12]


class Prompts:
    """Prompts of one tokenizer.

    shared  the tokens that all prompts begin with, but for data that changes how its tokenizer cuts the words before it
    labels  the tokens of 1 to 5 right behind a prompt
    probe   a prompt about nothing
    """

    def __init__(self, tokenizer: Any, settings: LocalLM) -> None:
        """Raises UsageError for a tokenizer without a chat template, or whose labels are not one token each."""
        self._tokenizer = tokenizer
        self._specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        before, self._after = _render(tokenizer, settings)
        # Tokenizers cut at special tokens: what is before the last one is the same tokens in every prompt and need not be read again.
        cut = max((before.rfind(special) + len(special) for special in self._specials if special in before), default=0)
        # Some tokenizers join the blank before a nonce with a letter that it begins with, but not with a digit.
        probes = [frame("{}", [digit * 16]) for digit in "0123456789abcdef"]
        head = self._tokens([before[:cut]])[0]
        whole = self._tokens([f"{before}{probes[0]}{self._after}"])[0]
        if head + self._tokens([f"{before[cut:]}{probes[0]}{self._after}"])[0] != whole:
            cut, head = 0, []
        self._head, self._tail = head, before[cut:]
        self.probe, *others = self._encode(probes)
        self.shared = self.probe[: min(common(self.probe, other) for other in others)]
        self.labels = self._labels(probes[0], settings.model)

    def encode(self, pairs: Sequence[tuple[Utterance, Utterance]], requirements: Sequence[str | None]) -> list[list[int]]:
        """The tokens of each pair's prompt; the score is the next one."""
        datas = [self._plain(as_data(heard_of(*pair, wanted))) for pair, wanted in zip(pairs, requirements, strict=True)]
        return self._encode([frame(data, nonces_of(data)) for data in datas])

    def _plain(self, data: str) -> str:
        """The same JSON without a special token's name, which the tokenizer would take for the token, and without lone surrogates."""
        for special in self._specials:
            units = special[0].encode("utf-16-be").hex()
            escaped = "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
            data = data.replace(special, escaped + special[1:])
        return data.encode("utf-8", "backslashreplace").decode("utf-8")

    def _encode(self, users: Sequence[str]) -> list[list[int]]:
        return [self._head + tokens for tokens in self._tokens([f"{self._tail}{user}{self._after}" for user in users])]

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False).input_ids
        return ids

    def _labels(self, probe: str, model: str) -> list[int]:
        prompt, *more = self._tokens([f"{self._tail}{probe}{self._after}{label}" for label in ("", *LABELS)])
        found = [tokens[-1] for tokens in more if tokens[:-1] == prompt]
        if len(set(found)) != len(LABELS):
            raise UsageError(f"{model}: its tokenizer does not write each of 1 to 5 as a token of its own; name another score.model")
        return found


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two prompts share from the start."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


def _render(tokenizer: Any, settings: LocalLM) -> tuple[str, str]:
    """What the chat template puts around the user's message; a template without a system message gets the rubric in the user's."""
    if tokenizer.chat_template is None:
        raise UsageError(f"{settings.model} has no chat template; name a model in score.model that was trained to follow instructions")
    text, said = rubric(REPLY), ""
    for messages in (
        [{"role": "system", "content": text}, {"role": "user", "content": _SLOT}],
        [{"role": "user", "content": f"{text}\n\n{_SLOT}"}],
    ):
        try:
            shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **(_FIXED | settings.template))
        except (TemplateError, TypeError) as error:
            said = f" ({error})"
            continue
        before, _, after = shown.partition(_SLOT)
        if text in before and shown.count(_SLOT) == 1:
            return before, after
    raise UsageError(
        f"{settings.model}: its chat template does not show a rubric and then the user's message{said}; name another score.model"
    )
