"""`paras2s judge` with a server for its first stage: the tone's networks are a stand-in, both servers are real ones."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paras2s_cli.audio.write import write_wav
from paras2s_cli.judge import backends
from paras2s_cli.main import main

sys.path.insert(0, str(Path(__file__).parents[1] / "judge" / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / "support"))

from chat_server import ChatServer, score_of
from speech_server import SpeechServer
from stand_in_judge import MAKER, make_pairs, rows_of

COUNT = 6
"""Pairs: of queries with 200, 210 and 220 samples in turn, and answers with 300, 310, ..."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.MAKERS, "pocket", MAKER)
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    make_pairs(tmp_path / "data", COUNT)
    monkeypatch.chdir(tmp_path / "data")


@pytest.fixture
def scorer() -> Iterator[ChatServer]:
    with ChatServer() as running:
        yield running


def recipe(speech: SpeechServer, chat: ChatServer, *more: str, score: str = "") -> str:
    keys = {"model": "ears-1", "key_env": "''", "backoff": "0.002"} | dict(line.split(": ", 1) for line in more)
    lines = "".join(f"  {key}: {value}\n" for key, value in keys.items())
    text = f"kind: judge\nears: pocket/polytone\ntranscribe:\n  backend: endpoint\n  base_url: {speech.url}\n{lines}"
    Path("judge.yaml").write_text(f"{text}score:\n  base_url: {chat.url}\n  model: tiny\n  key_env: ''\n{score}")
    return "judge.yaml"


def heard_on_disk() -> list[str]:
    (base,) = Path("../cache/heard").glob("*/utterances.sqlite")
    connection = sqlite3.connect(base)
    texts = [json.loads(text)["heard"]["text"] for (text,) in connection.execute("SELECT utterance FROM heard")]
    connection.close()
    return sorted(texts)


def test_a_failed_utterance_is_a_null_and_is_heard_the_next_time(scorer: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    faults = {"210": ["500"] * 2, "320": ["wrong"] * 2}
    with SpeechServer(lambda frames: faults.get(frames, ())) as speech:
        options = ["--judge", recipe(speech, scorer, "retries: 1", "times: word", "price: 0.6")]
        assert main(["judge", "pairs.jsonl", "-o", "scores.jsonl", *options]) == 0
        err = capsys.readouterr().err
        assert "ears-1: up to 12 requests, about 0.0 minutes of sound, cost 0.00" in err
        rows = rows_of(Path("scores.jsonl"))
        assert [row["failure"] for row in rows] == [None, "server-error", "wrong-schema", None, "server-error", None]
        assert [row["content_in"] for row in rows] == ["heard 200", None, "heard 220"] * 2
        assert [row["content_out"] for row in rows] == ["heard 300", "heard 310", None, "heard 330", "heard 340", "heard 350"]
        assert [row["score"] for row in rows if row["score"]] == [score_of(row["content_in"]) for row in rows if row["score"]]
        assert rows[1]["reason"] == "not transcribed: HTTP 500: the server says no"
        assert rows[1]["tone_in"].startswith("happy")
        rate = 0.6 / (16000 * 60)  # of a sample; a query is paid for in the first of its two rows, what failed in none
        assert [row["cost"] for row in rows] == pytest.approx([rate * samples for samples in (200 + 300, 310, 220, 330, 340, 350)])
        assert rows[0]["times_in"] == [["heard", 0.0, 0.01], ["200", 0.01, 0.01]] and "times_in" not in rows[1]
        assert rows[0]["judge"]["listener"] == "transcriptions ears-1 any word | ears/1"
        assert len(speech.arrivals) == 3 + COUNT + 2, "each distinct utterance once, the failed ones twice"
        known = ["heard 200", "heard 220", *(f"heard {300 + 10 * i}" for i in range(COUNT) if i != 2)]
        assert heard_on_disk() == known
        speech.arrivals.clear()
        faults.clear()
        assert main(["judge", "pairs.jsonl", *options]) == 0
        rows = rows_of(capsys.readouterr().out)
        assert [row["failure"] for row in rows] == [None] * COUNT
        assert [row["cost"] for row in rows] == pytest.approx([0, rate * 210, rate * 320, 0, 0, 0]), "the rest was known"
        assert sorted(arrival.words for arrival in speech.arrivals) == ["210", "320"]
        assert heard_on_disk() == sorted([*known, "heard 210", "heard 320"])
        assert main(["judge", "pairs.jsonl", "--no-cache", *options]) == 0
        assert len(speech.arrivals) == 2 + 3 + COUNT


def test_a_pair_silence_and_a_sound_in_both_roles(scorer: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    write_wav("silence.wav", np.zeros(400))
    with SpeechServer(lambda frames: ["400"] * 2 if frames == "310" else []) as speech:
        name = recipe(speech, scorer)
        for query, answer, score, failure in (
            ("q0.wav", "silence.wav", 1, None),
            ("silence.wav", "q0.wav", None, "outside-world"),
            ("q0.wav", "q0.wav", score_of("heard 200"), None),
            ("q0.wav", "a1.wav", None, "rejected"),
        ):
            assert main(["judge", query, answer, "--judge", name, "--output", "json"]) == 0
            row = json.loads(capsys.readouterr().out)
            assert (row["score"], row["failure"]) == (score, failure)
        assert [arrival.words for arrival in speech.arrivals] == ["200", "310"], "silence is sent to nobody, and the same sound once"
        assert main(["judge", "q0.wav", "a1.wav", "--judge", name]) == 0
        out = capsys.readouterr().out
    assert ["said", '"heard', '200"', "-"] in [line.split() for line in out.splitlines()]
    assert "not transcribed: HTTP 400: the server says no [rejected]" in out


PRICES = "  price_in: 1.0\n  price_out: 1.0\n"


@pytest.mark.parametrize(
    ("words", "keys", "score", "said"),
    [
        (["--max-cost", "1"], (), PRICES, "price (of a minute of sound) in transcribe"),
        (["--max-cost", "0.01"], ("price: 100",), PRICES, "more than --max-cost 0.01"),
        ([], ("times: segment",), "", "transcribe.times: must be 'word' or 'none'"),
        ([], ("batch: 8",), "", "transcribe.batch: unknown key"),
        ([], ("key_env: NO_SUCH_KEY",), "", "NO_SUCH_KEY is not set"),
        ([], ("extra: {a: [1]}",), "", "transcribe.extra"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_sent(
    scorer: ChatServer, capsys: pytest.CaptureFixture[str], words: list[str], keys: tuple[str, ...], score: str, said: str
) -> None:
    with SpeechServer() as speech:
        assert main(["judge", "pairs.jsonl", "--judge", recipe(speech, scorer, *keys, score=score), *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and "Traceback" not in err and speech.arrivals == scorer.arrivals == []


def test_an_unknown_backend_and_a_dry_run(scorer: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    with SpeechServer() as speech:
        name = recipe(speech, scorer, "price: 60")
        assert main(["judge", "pairs.jsonl", "--judge", name, "--dry-run"]) == 0
        assert "# ears-1: up to 12 requests, about 0.0 minutes of sound, cost 0.20" in capsys.readouterr().out
        Path(name).write_text(Path(name).read_text().replace("backend: endpoint", "backend: ears", 1))
        assert main(["judge", "pairs.jsonl", "--judge", name]) == 2
    assert "transcribe: backend must be whisper or endpoint" in capsys.readouterr().err and speech.arrivals == []
