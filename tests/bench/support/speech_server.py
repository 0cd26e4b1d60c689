"""A server of speech over real HTTP: OpenAI's chat with sound in and out, transcriptions and speech, with faults on demand.

A request is known by the frames of its recording, or by its text. Its answer is as long as its recording, and as its text in milliseconds.
"""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import numpy as np
import soundfile
from chat_server import Arrival, ChatServer, completion

MORE = ("no-audio", "bad-base64", "noise", "no-frames", "44100", "8000")
RATE = 16000


def wav(frames: int, rate: int = RATE) -> bytes:
    """A tone that lasts `frames` at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(np.arange(frames * rate // RATE) / 9), rate, format="WAV")
    return file.getvalue()


class SpeechServer(ChatServer):
    """A context manager; `url` is the base_url."""

    def _parse(self, path: str, headers: dict[str, str], raw: bytes) -> dict[str, Any]:
        if headers["content-type"] == "application/json":
            return {"path": path} | json.loads(raw)
        assert headers["content-type"].startswith("multipart/form-data; boundary=") and path == "/v1/audio/transcriptions"
        parts = raw.split(b"--" + headers["content-type"].partition("boundary=")[2].encode())
        named = {re.search(rb'name="([^"]+)"', p)[1].decode(): p.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for p in parts[1:-1]}  # type: ignore[index]
        return {"path": path} | {name: value if name == "file" else value.decode() for name, value in named.items()}

    def _words(self, body: dict[str, Any]) -> str:
        if body["path"] == "/v1/audio/speech":
            return body["input"]
        if body["path"] == "/v1/audio/transcriptions":
            return str(soundfile.info(io.BytesIO(body["file"])).frames)
        content = body["messages"][-1]["content"]
        if isinstance(content, str):
            return content
        assert content[0]["type"] == "input_audio" and content[0]["input_audio"]["format"] == "wav"
        return str(soundfile.info(io.BytesIO(base64.b64decode(content[0]["input_audio"]["data"]))).frames)

    def _response(self, given: str, arrival: Arrival) -> tuple[int, dict[str, str], bytes]:
        kind = {"content-type": "application/json"}
        words, path = arrival.words, arrival.body["path"]
        if given in ("429", "broke", "400", "401", "500", "503", "html", "nothing"):
            return super()._response(given, arrival)
        if path == "/v1/audio/speech":
            return 200, {"content-type": "audio/wav"}, b"noise" if given == "noise" else wav(16 * len(words))
        if path == "/v1/audio/transcriptions":
            data = json.dumps(self._written(given, words, arrival.body["response_format"])).encode()
        elif isinstance(arrival.body["messages"][-1]["content"], str):
            data = json.dumps(completion(arrival.body, {"content": f"answer to {words}"})).encode()
        else:
            data = json.dumps(self._spoken(given, words)).encode()
            arrival.billed = 40
        return 200, kind, data[: len(data) // 2] if given == "truncated" else data

    def _written(self, given: str, words: str, form: str) -> dict[str, Any]:
        """The first word lasts 10 ms, the second to the recording's end."""
        if given == "wrong":
            return {"transcript": f"heard {words}"}
        reply: dict[str, Any] = {"text": "" if given == "empty" else f" heard {words}\n"}
        if form == "verbose_json":
            times = [("heard", 0.0, 0.01), (words, 0.01, int(words) / RATE)]
            reply["words"] = [{"word": word, "start": begin, "end": end} for word, begin, end in times if given != "empty"]
        return reply | ({"words": ["heard"]} if given == "bad-words" else {})

    def _spoken(self, given: str, words: str) -> dict[str, Any]:
        sound = wav(int(words), int(given) if given in MORE and given.isdigit() else RATE)
        sound = {"noise": b"no sound at all", "no-frames": wav(0)}.get(given, sound)
        data = "%%%" if given == "bad-base64" else base64.b64encode(sound).decode()
        message: dict[str, Any] = {"role": "assistant", "content": None, "audio": {"data": data, "transcript": f"said {words}"}}
        if given == "no-audio":
            message = {"role": "assistant", "content": "words alone"}
        usage = {"prompt_tokens": 10, "completion_tokens": 30}
        finish = "length" if given == "cut" else "stop"
        return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}
