"""The first stage by a server of /audio/transcriptions: every distinct utterance that is not known yet is sent once."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paras2s_cli.audio.write import wav_bytes
from paras2s_cli.data.cache import content_key
from paras2s_cli.endpoint.client import Call, Client, Outcome
from paras2s_cli.endpoint.cost import Purse
from paras2s_cli.endpoint.reply import Fault, Usage
from paras2s_cli.endpoint.transcription import PATH, Transcription, count_sound, read_transcription, response_format, server_of
from paras2s_cli.judge.endpoint.response_cache import ReplyCache
from paras2s_cli.judge.stages import RATE, Heard, Span
from paras2s_cli.recipe.judging import Transcriptions


@dataclass(frozen=True, slots=True)
class Written:
    """What was heard, and the part of the response that it was read from."""

    heard: Heard
    text: str
    usage: Usage | None = None


class EndpointTranscriber:
    """A server as the first stage of the judge."""

    def __init__(self, settings: Transcriptions, purse: Purse, say: Callable[[str], None], *, keep: bool = True) -> None:
        """keep: transcriptions are kept in the cache and taken from it. Raises UsageError if the key's variable is not set."""
        self._client = Client(server_of(settings), read_written, PATH, purse)
        self._cache = ReplyCache(say, "transcriptions", read_kept) if keep else None
        language = {"language": settings.language} if settings.language else {}
        self._body = {"model": settings.model} | response_format(settings.times) | language | settings.extra
        self._about = {"model": settings.model, "revision": settings.revision}
        self._price = settings.price or 0.0
        model = f"{settings.model}@{settings.revision}" if settings.revision else settings.model
        extra = f" {content_key(settings.extra)[:8]}" if settings.extra else ""
        self.name = f"transcriptions {model} {settings.language or 'any'} {settings.times}{extra}"

    def transcribe(self, waves: Sequence[np.ndarray]) -> list[Heard]:
        """See `judge.stages.Transcriber`. No words are a voice that says none; an utterance that failed has its failure.

        Raises:
            Paras2sError: the server refuses all, or the cost limit is reached. What was transcribed by then is kept.
        """
        calls = [self._call(wave) for wave in waves]
        known = self._cache.fetch(call.key for call in calls) if self._cache else {}
        missing = {call.key: call for call in calls if call.key not in known}
        minutes = {call.key: len(wave) / RATE / 60 for call, wave in zip(calls, waves, strict=True)}
        outcomes = zip(missing, self._client.send(list(missing.values()), self._keep), strict=True)
        heard = {key: written.heard for key, written in known.items()}
        heard |= {key: _heard(outcome, self._price * minutes[key]) for key, outcome in outcomes}
        return [heard[call.key] for call in calls]

    def _call(self, wave: np.ndarray) -> Call:
        sound = wav_bytes(wave, RATE)
        return Call(content_key(self._about, self._body, sound), self._body, count_sound(len(wave) / RATE), {"file": ("speech.wav", sound)})

    def _keep(self, call: Call, written: Written) -> None:
        if self._cache is not None:
            self._cache.store(call.key, written, self._about)


def read_written(status: int, headers: Mapping[str, str], body: bytes) -> Written | Fault:
    """An HTTP response. `headers` has lower-case names."""
    found = read_transcription(status, headers, body)
    return found if isinstance(found, Fault) else _written(found)


def read_kept(text: str, usage: Usage | None) -> Written | Fault:
    """The text of a `Written`, from the cache."""
    return read_written(200, {}, text.encode())


def _written(found: Transcription) -> Written:
    words = [{"word": word, "start": begin, "end": end} for word, begin, end in found.words]
    heard = Heard(found.text, False, spans=tuple(Span(*word) for word in found.words)) if found.text else Heard("", False, False, "noise")
    return Written(heard, json.dumps({"text": found.text, "words": words}))


def _heard(outcome: Outcome[Written], cost: float) -> Heard:
    result = outcome.result
    if isinstance(result, Written):
        return replace(result.heard, cost=cost)
    return Heard("", False, failure=result.failure, reason=f"not transcribed: {result.reason}")
