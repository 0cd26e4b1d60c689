"""`openai:` systems: a model of a server that speaks OpenAI's protocol, as a whole system or as one part of a cascade."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Protocol

from paras2s_cli.audio.read import read_audio
from paras2s_cli.audio.write import wav_bytes
from paras2s_cli.bench.stage import Ask, Reply, Settle
from paras2s_cli.endpoint.client import Call, Client, Read, count_tokens
from paras2s_cli.endpoint.cost import Estimate, Purse, price
from paras2s_cli.endpoint.reply import Fault, Message, Usage, read_body, read_choice, read_fault, read_json, read_text, short
from paras2s_cli.endpoint.transcription import PATH, count_sound, read_transcription, response_format
from paras2s_cli.recipe.servers import Endpoint, Servers

TOKENS_OF_A_REPLY = 200
TOKENS_OF_A_TEXT = 40
_AT_ONCE = 256
"""Requests that are made ready at a time: each holds its recording."""


class Part(Protocol):
    """One thing that servers do: where it is asked for, how, and what comes back."""

    path: str

    def body(self, ask: Ask, servers: Servers) -> dict[str, Any]:
        """The keys of the request that are its own."""
        ...

    def files(self, ask: Ask) -> dict[str, tuple[str, bytes]]:
        """Uploads."""
        ...

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Fault:
        """See `Read`."""
        ...


class Served:
    """A model of a server as a stage."""

    def __init__(self, part: Part, servers: Servers, endpoint: Endpoint, purse: Purse) -> None:
        """Raises UsageError if the key's variable is not set."""
        self.part, self.servers, self.endpoint = part, servers, endpoint
        read: Read[Reply] = part.read
        self.client = Client(endpoint, read, part.path, purse)
        self.settings: dict[str, Any] = {"model": endpoint.model}
        if part.path == "chat/completions":
            self.settings[endpoint.max_tokens_key] = endpoint.max_tokens
        if endpoint.temperature is not None and part.path != "audio/speech":
            self.settings["temperature"] = endpoint.temperature
        self.settings |= endpoint.extra
        self.about: tuple[Any, ...] = ("openai", type(part).__name__, endpoint.revision, self.settings, part.body(Ask(), servers))

    def estimate(self, count: int, seconds: float) -> Estimate | None:
        """See `Stage`. A text is reckoned as a short sentence."""
        hears = isinstance(self.part, SpokenAnswer | Transcript)
        tokens_in = count_sound(seconds) if hears else count * TOKENS_OF_A_TEXT
        each = count_tokens([self.servers.prompt])
        usage = Usage(count * each + tokens_in, count * min(TOKENS_OF_A_REPLY, self.endpoint.max_tokens))
        return Estimate(count, usage.tokens_in, usage.tokens_out, price(self.endpoint, usage))

    def reply(self, asks: Mapping[str, Ask], settle: Settle) -> None:
        """See `Stage`.

        Raises:
            Paras2sError: the server refuses all, or the cost limit is reached. What was answered by then has been settled.
        """
        keys = list(asks)
        for start in range(0, len(keys), _AT_ONCE):
            calls = [self._call(key, asks[key]) for key in keys[start : start + _AT_ONCE]]
            outcomes = self.client.send(calls, lambda call, reply: settle(call.key, reply))
            for call, outcome in zip(calls, outcomes, strict=True):
                if isinstance(outcome.result, Fault):
                    settle(call.key, outcome.result)

    def _call(self, key: str, ask: Ask) -> Call:
        seconds = len(read_audio(ask.query)) / 16000 if ask.query else 0.0
        tokens = count_tokens([self.servers.prompt, ask.text or "", ask.style or ""]) + count_sound(seconds)
        body = self.part.body(ask, self.servers) | self.settings
        return Call(key, body, tokens, self.part.files(ask))


class SpokenAnswer:
    """A recording in, a spoken answer and its words out."""

    path = "chat/completions"

    def body(self, ask: Ask, servers: Servers) -> dict[str, Any]:
        sound = base64.b64encode(_wav(ask)).decode("ascii")
        content = [{"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}]
        voice = {"voice": servers.voice, "format": "wav"}
        return {"modalities": ["text", "audio"], "audio": voice, "messages": _messages(servers, content)}

    def files(self, ask: Ask) -> dict[str, tuple[str, bytes]]:
        return {}

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Fault:
        message = _message(status, headers, body)
        if isinstance(message, Fault):
            return message
        audio = message.fields.get("audio")
        data = audio.get("data") if isinstance(audio, dict) else None
        if not isinstance(data, str) or not data:
            said = message.fields.get("content")
            return Fault("no-answer", f"the message holds no audio: {short(str(said))}", "once", usage=message.usage)
        try:
            sound = base64.b64decode(data, validate=True)
        except binascii.Error:
            return Fault("no-answer", f"the message's audio is no base64: {short(data[:40])}", "once", usage=message.usage)
        words = (audio or {}).get("transcript") or message.fields.get("content")
        return Reply(words if isinstance(words, str) else None, sound, message.usage)


class WrittenAnswer:
    """A text in, a written answer out."""

    path = "chat/completions"

    def body(self, ask: Ask, servers: Servers) -> dict[str, Any]:
        return {"messages": _messages(servers, ask.text or "")}

    def files(self, ask: Ask) -> dict[str, tuple[str, bytes]]:
        return {}

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Fault:
        message = _message(status, headers, body)
        if isinstance(message, Fault):
            return message
        text = read_text(message)
        return text if isinstance(text, Fault) else Reply(text.strip(), usage=message.usage)


class Transcript:
    """A recording in, its words out."""

    path = PATH

    def body(self, ask: Ask, servers: Servers) -> dict[str, Any]:
        return response_format("none")

    def files(self, ask: Ask) -> dict[str, tuple[str, bytes]]:
        return {"file": ("query.wav", _wav(ask))}

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Fault:
        found = read_transcription(status, headers, body)
        if isinstance(found, Fault):
            return found
        return Reply(found.text) if found.text else Fault("empty", "the transcription is empty")


class Speech:
    """A text in, the same text spoken out; its style goes as the instructions."""

    path = "audio/speech"

    def body(self, ask: Ask, servers: Servers) -> dict[str, Any]:
        style = {"instructions": f"Speak in this tone: {ask.style}."} if ask.style else {}
        return {"input": ask.text or "", "voice": servers.voice, "response_format": "wav"} | style

    def files(self, ask: Ask) -> dict[str, tuple[str, bytes]]:
        return {}

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Fault:
        sound = read_fault(status, headers, body) or read_body(headers, body)
        return sound if isinstance(sound, Fault) else Reply(audio=sound)


def _message(status: int, headers: Mapping[str, str], body: bytes) -> Message | Fault:
    reply = read_json(status, headers, body)
    return reply if isinstance(reply, Fault) else read_choice(reply)


def _messages(servers: Servers, content: Any) -> list[dict[str, Any]]:
    told = [{"role": "system", "content": servers.prompt}] if servers.prompt else []
    return [*told, {"role": "user", "content": content}]


def _wav(ask: Ask) -> bytes:
    """The recording's file where it is WAV, else a WAV of it."""
    if ask.query is None:
        return b""
    sound = ask.query.read_bytes()
    return sound if sound[:4] == b"RIFF" else wav_bytes(read_audio(ask.query))
