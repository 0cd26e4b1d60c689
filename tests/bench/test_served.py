"""Servers as systems: real HTTP with faults on demand; every query ends answered or null with its reason, and is answered once."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import soundfile
from speech_server import SpeechServer, wav

from paras2s_cli.audio.read import read_audio
from paras2s_cli.bench.kept import Kept, Said
from paras2s_cli.bench.served import Part, Served, Speech, SpokenAnswer, Transcript, WrittenAnswer
from paras2s_cli.bench.stage import Ask
from paras2s_cli.endpoint.cost import Purse
from paras2s_cli.endpoint.reply import Fault
from paras2s_cli.errors import Paras2sError, UsageError
from paras2s_cli.recipe.servers import Servers

QUICK = {"key_env": "", "backoff": 0.005, "retries": 3, "timeout": 60.0}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def queries(count: int) -> list[Ask]:
    """Recordings of 400, 410, ... frames."""
    paths = [Path(f"q{400 + 10 * i}.wav").absolute() for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(wav(400 + 10 * i))
    return [Ask(query=path) for path in paths]


def served(server: SpeechServer, part: Part | None = None, purse: Purse | None = None, **settings: object) -> Served:
    servers = Servers.model_validate(QUICK | settings)
    return Served(part or SpokenAnswer(), servers, servers.endpoint("tiny", server.url), purse or Purse())


def ask(stage: Served, asks: list[Ask]) -> list[Said | Fault]:
    counted: list[int] = []
    replies = Kept(Path("replies")).ask(stage, asks, lambda done, of: counted.append(done))
    assert counted == sorted(set(counted)), "each is counted once"
    return replies


FOREVER = {
    "429": ("rate-limited", 4),
    "500": ("server-error", 4),
    "truncated": ("truncated-json", 4),
    "cut": ("truncated-json", 2),
    "html": ("html", 4),
    "nothing": ("empty", 4),
    "400": ("rejected", 1),
    "drop": ("unreachable", 4),
    "no-audio": ("no-answer", 2),
    "bad-base64": ("no-answer", 2),
    "noise": ("unreadable-audio", 1),
    "no-frames": ("unreadable-audio", 1),
}
"""Fault -> the failure it ends in, and the requests it takes."""
FINE = ("ok", "44100", "8000")
ONCE = [fault for fault, (_, requests) in FOREVER.items() if requests > 1]


def test_every_query_is_answered_or_null_with_its_reason_and_a_resumed_run_asks_what_is_missing() -> None:
    kinds = [(fault, 9) for fault in FOREVER] + [(fault, 1) for fault in ONCE] + [(kind, 9) for kind in FINE]
    asks = queries(len(kinds))
    plans = {str(400 + 10 * i): [kind] * times for i, (kind, times) in enumerate(kinds)}
    with SpeechServer(plans.__getitem__, retry_after="0.01") as server:
        replies = ask(served(server), asks)
        for (kind, times), (frames, _), reply in zip(kinds, plans.items(), replies, strict=True):
            given = server.given(frames)
            if kind in FOREVER and times > 1:
                assert isinstance(reply, Fault) and reply.failure == FOREVER[kind][0] and reply.reason, (kind, reply)
                assert len(given) == FOREVER[kind][1], (kind, given)
            else:
                assert isinstance(reply, Said) and reply.audio and reply.text == f"said {frames}", (kind, reply)
                # 8 kHz holds half as many samples, and 44.1 kHz some that soxr rounds.
                assert abs(len(read_audio(reply.audio)) - int(frames)) <= 1, "whatever rate it came in"
                assert len(given) == (2 if kind in FOREVER else 1), (kind, given)
        server.arrivals.clear()
        again = ask(served(server), asks)
    assert {a.words for a in server.arrivals} == {f for f, (kind, times) in zip(plans, kinds, strict=True) if kind in FOREVER and times > 1}
    assert [r for r in again if isinstance(r, Said)] == [r for r in replies if isinstance(r, Said)]
    assert not list(Path("replies").glob(".*.tmp")) and len(list(Path("replies").glob("*.wav"))) == len(ONCE) + len(FINE)


def test_a_server_that_hangs_costs_its_time_and_no_more() -> None:
    with SpeechServer({"400": ["hang"] * 9, "410": []}.__getitem__) as server:
        never, well = ask(served(server, timeout=0.4, retries=1), queries(2))
    assert isinstance(never, Fault) and (never.failure, len(server.given("400"))) == ("deadline", 2) and isinstance(well, Said)


def test_the_request_is_what_the_recipe_says_and_the_key_is_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with SpeechServer() as server:
        with pytest.raises(UsageError, match="MY_KEY is not set"):
            served(server, key_env="MY_KEY")
        monkeypatch.setenv("MY_KEY", "sesame-open")
        models = {"tiny": {"temperature": 0.5, "extra": {"top_k": 1, "modalities": ["audio"]}}}
        (said,) = ask(served(server, key_env="MY_KEY", voice="ash", prompt="Be kind.", models=models, max_tokens=77), queries(1))
    (arrival,) = server.arrivals
    body = {name: value for name, value in arrival.body.items() if name not in ("messages", "path")}
    assert body == {
        "model": "tiny",
        "max_tokens": 77,
        "temperature": 0.5,
        "top_k": 1,
        "modalities": ["audio"],
        "audio": {"voice": "ash", "format": "wav"},
    }
    assert arrival.body["messages"][0] == {"role": "system", "content": "Be kind."}
    assert arrival.headers["authorization"] == "Bearer sesame-open" and isinstance(said, Said)
    assert not [path for path in Path().rglob("*") if path.is_file() and b"sesame" in path.read_bytes()]


def test_another_voice_or_model_or_weights_is_asked_anew_and_another_port_is_not() -> None:
    asks = queries(1)
    with SpeechServer() as server, SpeechServer() as other:
        for settings in ({}, {"voice": "ash"}, {"models": {"tiny": {"revision": "b"}}}, {"prompt": ""}):
            ask(served(server, **settings), asks)  # type: ignore[arg-type]
        ask(served(other), asks)
    assert len(server.arrivals) == 4 and other.arrivals == []


def test_parts_of_a_cascade_speak_their_protocols() -> None:
    with SpeechServer() as server:
        assert ask(served(server, Transcript()), queries(2)) == [Said("heard 400", None), Said("heard 410", None)]
        assert ask(served(server, WrittenAnswer()), [Ask(text="Hello")]) == [Said("answer to Hello", None)]
        (said,) = ask(served(server, Speech()), [Ask(text="Hello", style="warm")])
    assert isinstance(said, Said) and said.audio and len(read_audio(said.audio)) == 16 * 5
    heard, _, written, spoken = (arrival.body for arrival in server.arrivals)
    assert (heard["path"], heard["model"], heard["response_format"]) == ("/v1/audio/transcriptions", "tiny", "json")
    assert heard["file"] in (wav(400), wav(410)), "byte for byte"
    assert (written["path"], written["messages"][-1]) == ("/v1/chat/completions", {"role": "user", "content": "Hello"})
    assert (spoken["path"], spoken["input"], spoken["response_format"]) == ("/v1/audio/speech", "Hello", "wav")
    assert spoken["instructions"] == "Speak in this tone: warm."


def test_faults_of_the_parts() -> None:
    with SpeechServer(lambda words: ["empty", "noise"][words == "x" :][:1] * 9) as server:
        (heard,) = ask(served(server, Transcript()), queries(1))
        (spoken,) = ask(served(server, Speech()), [Ask(text="x")])
    assert isinstance(heard, Fault) and (heard.failure, heard.reason) == ("empty", "the transcription is empty")
    assert isinstance(spoken, Fault) and spoken.failure == "unreadable-audio"


def test_a_recording_that_is_no_wav_is_sent_as_wav() -> None:
    soundfile.write("q.flac", [0.5] * 400, 16000)
    with SpeechServer() as server:
        (said,) = ask(served(server), [Ask(query=Path("q.flac"))])
    assert isinstance(said, Said) and said.text == "said 400"
    sound = server.arrivals[0].body["messages"][-1]["content"][0]["input_audio"]["data"]
    assert base64.b64decode(sound)[:4] == b"RIFF"


def test_the_cost_limit_is_never_passed_and_what_was_answered_is_kept() -> None:
    prices = {"price_in": 1.0, "price_out": 1.0, "max_tokens": 40}
    asks = queries(60)
    with SpeechServer(latency=0.002) as server:
        purse = Purse(0.0015)
        with pytest.raises(Paras2sError, match="--max-cost"):
            ask(served(server, purse=purse, **prices), asks)
        spent = sum(arrival.billed for arrival in server.arrivals) / 1e6
        assert 0.0012 < spent <= 0.0015 and purse.spent == pytest.approx(spent)
        done = len(server.arrivals)
        assert len(Path("replies/replies.jsonl").read_text().splitlines()) == done
        assert all(isinstance(reply, Said) for reply in ask(served(server, purse=Purse(1.0), **prices), asks))
    assert len(server.arrivals) == 60, "and nothing is asked twice"


def test_two_models_spend_from_one_purse() -> None:
    purse = Purse(0.0002)
    with SpeechServer() as server:
        ask(served(server, purse=purse, price_in=1.0, price_out=1.0, max_tokens=40), queries(2))
        with pytest.raises(Paras2sError, match="--max-cost"):
            ask(served(server, purse=purse, price_in=1.0, price_out=1.0, max_tokens=40, voice="ash"), queries(9))
    assert 40 * len(server.arrivals) <= 200


def test_a_wrong_key_ends_the_bench() -> None:
    with SpeechServer(lambda words: ["401"] * 9) as server, pytest.raises(Paras2sError, match="cannot be used: HTTP 401"):
        ask(served(server), queries(20))
    assert len(server.arrivals) <= 8


def test_rows_of_kept_replies_are_whole() -> None:
    with SpeechServer() as server:
        ask(served(server), queries(3))
    rows = [json.loads(line) for line in Path("replies/replies.jsonl").read_text().splitlines()]
    assert sorted(row["text"] for row in rows) == ["said 400", "said 410", "said 420"]
    assert all((Path("replies") / row["audio"]).exists() for row in rows)
