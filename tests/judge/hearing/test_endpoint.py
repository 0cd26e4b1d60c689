"""A server as the first stage: real HTTP with faults on demand; every utterance ends transcribed or failed, and none is asked twice."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from paras2s_cli.endpoint.cost import Purse
from paras2s_cli.endpoint.transcription import server_of
from paras2s_cli.errors import Paras2sError, UsageError
from paras2s_cli.judge.hearing.endpoint import EndpointTranscriber
from paras2s_cli.judge.stages import Heard, Span
from paras2s_cli.recipe.judging import Transcriptions
from paras2s_cli.recipe.servers import Limits

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "support"))

from speech_server import SpeechServer

QUICK = {"model": "tiny", "key_env": "", "backoff": 0.002, "retries": 3}
FOREVER = {
    "429": ("rate-limited", 4),
    "500": ("server-error", 4),
    "truncated": ("truncated-json", 4),
    "html": ("html", 4),
    "nothing": ("empty", 4),
    "wrong": ("wrong-schema", 4),
    "bad-words": ("wrong-schema", 4),
    "drop": ("unreachable", 4),
    "400": ("rejected", 1),
}
"""Fault -> the failure it ends in, and the requests it takes."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def transcriber(server: SpeechServer, purse: Purse | None = None, *, keep: bool = True, **keys: object) -> EndpointTranscriber:
    settings = Transcriptions.model_validate(QUICK | {"base_url": server.url} | keys)
    return EndpointTranscriber(settings, purse or Purse(), print, keep=keep)


def sounds(count: int) -> list[np.ndarray]:
    """Of 400, 410, ... samples."""
    return [(0.3 * np.sin(np.arange(400 + 10 * i) / 9)).astype(np.float32) for i in range(count)]


def test_every_utterance_ends_transcribed_or_failed_and_only_the_failed_are_asked_again() -> None:
    kinds = [(fault, times) for fault in FOREVER for times in (9, 1)] + [("empty", 9), ("ok", 9)]
    waves = sounds(len(kinds))
    plans = {str(len(wave)): [kind] * times for wave, (kind, times) in zip(waves, kinds, strict=True)}
    with SpeechServer(plans.__getitem__, retry_after="0.01") as server:
        heard = transcriber(server).transcribe([*waves[::-1], *waves])  # each is there twice
        assert heard[: len(waves)][::-1] == heard[len(waves) :]
        for (kind, times), frames, found in zip(kinds, plans, heard[len(waves) :], strict=True):
            failure, requests = FOREVER.get(kind, (None, 1))
            if failure and (times > 1 or requests == 1):
                assert (found.failure, found.text) == (failure, "") and found.reason.startswith("not transcribed: "), (kind, found)
                assert len(server.given(frames)) == requests, kind
            elif kind == "empty":
                assert found == Heard("", False, False, "noise"), "no words are no failure"
            else:
                assert found == Heard(f"heard {frames}", False)
                assert len(server.given(frames)) == 1 + (times == 1), kind
        failed = {frames for frames, found in zip(plans, heard[len(waves) :], strict=True) if found.failure}
        server.arrivals.clear()
        assert transcriber(server).transcribe(waves) == heard[len(waves) :]
        assert {arrival.words for arrival in server.arrivals} == failed
        server.arrivals.clear()
        transcriber(server, keep=False, retries=0).transcribe(waves)
        assert sorted(arrival.words for arrival in server.arrivals) == sorted(plans), "without the cache all are"


def test_the_request_is_what_the_recipe_says_and_words_have_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = sounds(1)[0]
    with SpeechServer() as server:
        with pytest.raises(UsageError, match="MY_KEY is not set"):
            transcriber(server, key_env="MY_KEY")
        monkeypatch.setenv("MY_KEY", "sesame-open")
        timed = transcriber(server, key_env="MY_KEY", times="word", language="en", extra={"temperature": 0.5, "vad_filter": True})
        spans = (Span("heard", 0.0, 0.01), Span("400", 0.01, 0.025))
        assert timed.transcribe([wave]) == timed.transcribe([wave]) == [Heard("heard 400", False, spans=spans)]
        asked = [transcriber(server), transcriber(server, revision="b")]
        assert [each.transcribe([wave])[0].spans for each in asked] == [(), ()]
    body = dict(server.arrivals[0].body)
    samples, rate = soundfile.read(io.BytesIO(body.pop("file")))
    assert rate == 16000 and np.abs(samples - wave).max() <= 0.5 / 32768 + 1e-9
    assert body == {
        "path": "/v1/audio/transcriptions",
        "model": "tiny",
        "response_format": "verbose_json",
        "timestamp_granularities[]": "word",
        "language": "en",
        "temperature": "0.5",
        "vad_filter": "true",
    }
    assert server.arrivals[0].headers["authorization"] == "Bearer sesame-open"
    assert server.arrivals[1].body["response_format"] == "json" and not {"language", "timestamp_granularities[]"} & set(
        server.arrivals[1].body
    )
    assert len(server.arrivals) == 3, "other weights are asked anew"
    others = [transcriber(server, **keys) for keys in ({"language": "de"}, {"model": "big"}, {"extra": {"prompt": "x"}})]  # type: ignore[arg-type]
    assert len({each.name for each in [timed, *asked, *others]}) == 6, "what another listener heard is not taken for its own"


def test_the_limits_are_the_recipe_s() -> None:
    limits = {"concurrency": 3, "requests_a_minute": 7, "timeout": 1.5, "deadline": 9.0, "retries": 2, "backoff": 0.5, "seed": 4}
    settings = Transcriptions.model_validate(QUICK | {"base_url": "http://there/v1"} | limits | {"key_env": "K"})
    assert server_of(settings).model_dump(include=set(Limits.model_fields)) == limits | {"key_env": "K"}
    with SpeechServer(latency=0.005, most=2, retry_after="0.01") as server:
        heard = transcriber(server, concurrency=3, retries=9).transcribe(sounds(20))
    assert [each.text for each in heard] == [f"heard {400 + 10 * i}" for i in range(20)]
    assert server.peak == 3
    assert sorted(a.words for a in server.arrivals if a.given == "ok") == [str(400 + 10 * i) for i in range(20)]


def test_the_cost_limit_by_the_minute_is_never_passed_and_what_was_paid_for_is_kept() -> None:
    waves = [np.resize(wave, 16000 + 16 * i) for i, wave in enumerate(sounds(20))]
    price, seconds = 6.0, [len(wave) / 16000 for wave in waves]
    with SpeechServer(latency=0.002) as server:
        purse = Purse(1.0)
        with pytest.raises(Paras2sError, match="--max-cost"):
            transcriber(server, purse, price=price).transcribe(waves)
        billed = sum(int(arrival.words) / 16000 for arrival in server.arrivals) * price / 60
        assert 0.8 < billed <= purse.spent <= 1.0, "a recording is reckoned by the 40 ms that it has begun"
        done = len(server.arrivals)
        rest = Purse(2.0)
        assert all(heard.text for heard in transcriber(server, rest, price=price).transcribe(waves))
    assert len(server.arrivals) == len(waves) > done, "nothing is paid for twice"
    assert purse.spent + rest.spent == pytest.approx(sum(seconds) * price / 60, rel=0.04)
