"""`paras2s bench` of systems that are not our own: programs and servers are real, the networks of the ears and the world are stand-ins."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paras2s_cli.data import worlds
from paras2s_cli.judge import backends
from paras2s_cli.main import main
from tests.commands import ROOT
from tests.test_readme import OUTSIDE

sys.path.insert(0, str(Path(__file__).parents[1] / "judge" / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / "support"))

from chat_server import ChatServer, heard_in, score_of
from speech_server import SpeechServer, wav
from stand_in_judge import MAKER
from stand_in_world import World

SMALL = ["draws=100", "players=2"]
COPY = "import shutil, sys\nshutil.copy(*sys.argv[1:])\n"
PYTHON = f"{sys.executable} -IS"
SCRIPTS = {
    "copy.py": COPY,
    "not_q0.py": COPY.replace("shutil.copy", "'q0' in sys.argv[1] or shutil.copy"),
    "asr.py": "import os, sys\nprint('words of', os.path.basename(sys.argv[1]))\n",
    "llm.py": "import sys\nprint('answer to', sys.argv[1]) if 'sad' not in sys.argv[1] else sys.exit('too sad')\n",
    "tts.py": (
        "import sys, wave\nout = wave.open(sys.argv[2], 'wb')\nout.setparams((1, 2, 16000, 0, 'NONE', ''))\n"
        "out.writeframes(b'\\x09\\x01' * (1000 + 10 * len(sys.argv[1] + ''.join(sys.argv[3:]))))\n"
    ),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(backends.MAKERS, "pocket", MAKER)
    monkeypatch.setitem(worlds.MAKERS, "pocket", "stand_in_world:load")
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name, text in SCRIPTS.items():
        Path(name).write_text(text)
    return tmp_path / "work"


@pytest.fixture
def server() -> Iterator[SpeechServer]:
    with SpeechServer() as running:
        yield running


def rows(out: str = "runs/bench") -> dict[str, list[dict[str, Any]]]:
    """Rows by system."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in Path(out, "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["system"], []).append(row)
    return found


def program(name: str, places: str) -> str:
    return f"cmd:{PYTHON} {name} {places}"


def answers(path: str, *left_out: str) -> str:
    """A manifest of answers to the world's queries."""
    lines = []
    for i, query in enumerate(World(Path("world")).queries("test")):
        Path(f"a{i}.wav").write_bytes(wav(2000 + 10 * i))
        if query.id not in left_out:
            lines.append(json.dumps({"query": query.id, "system": "mine", "audio": f"a{i}.wav", "text": f"{2000 + 10 * i} samples"}))
    Path(path).write_text("\n".join(lines) + "\n")
    return path


def test_systems_of_every_kind_side_by_side(server: SpeechServer, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = answers("answers.jsonl", "age-0-child")
    server.plan = lambda frames: ["8000"] if frames == "1020" else []
    words = ["topline", "cascade", f"mine={program('copy.py', '{query} {answer}')}", "gpt=openai:tiny", f"files:{manifest}"]
    assert main(["bench", *words, *SMALL, f"openai.base_url={server.url}", "openai.key_env="]) == 0
    out, err = capsys.readouterr()
    found = rows()
    assert list(found) == ["topline", "cascade", "mine", "gpt", f"files:{manifest}"] and {len(r) for r in found.values()} == {8}
    ids = [row["query"] for row in found["topline"]]
    assert all([row["query"] for row in r] == ids and len(set(ids)) == 8 for r in found.values()), "each once, in the suite's order"
    assert [row["heard_text"] for row in found["mine"]] == [f"{1000 + 10 * i} samples" for i in range(8)]
    assert [row["written_text"] for row in found["gpt"]] == [f"said {1000 + 10 * i}" for i in range(8)]
    assert [row["heard_text"] for row in found["gpt"]] == [f"{1000 + 10 * i} samples" for i in range(8)], "at whatever rate it came"
    assert {row["truth"] for name in ("mine", "gpt") for row in found[name]} == {None}, "the world knows nothing of these"
    assert [{row["truth"] for row in found[name]} for name in ("topline", "cascade")] == [{5.0}, {2.0}]
    missing = [row for row in found[f"files:{manifest}"] if row["score"] is None]
    assert [(row["query"], row["failure"]) for row in missing] == [("age-0-child", "no-answer")]
    assert missing[0]["reason"] == f"{manifest} has no answer to it" and missing[0]["written_text"] is None
    assert "scored 7 of 8" in out and f"files:{manifest}: 1 without an answer: 1 no-answer" in err
    assert "gpt: up to 8 requests" in err and "mine - cascade" in out
    assert [row["text"] for row in found["topline"][::2]] == ["emotion 0", "emotion 1", "age 0", "age 1"], "the words, for a reader"
    assert "\u201cage 1\u201d" in Path("runs/bench/report.html").read_text()
    assert all(Path(row["answer_audio"]).exists() for r in found.values() for row in r if row["score"])


def test_an_answer_that_the_judge_does_not_know_is_null_and_not_garbled(capsys: pytest.CaptureFixture[str]) -> None:
    Path("alien.wav").write_bytes(wav(3000))
    assert main(["bench", "mine=cmd:sh -c 'cp alien.wav \"$2\"' sh {query} {answer}", *SMALL, "limit=1"]) == 3
    assert "mine (2 of 2); more than --max-fail 0.5 allows" in capsys.readouterr().err
    assert main(["bench", "mine=cmd:sh -c 'cp alien.wav \"$2\"' sh {query} {answer}", *SMALL, "limit=1", "--max-fail", "1"]) == 0
    assert {(row["score"], row["failure"]) for row in rows()["mine"]} == {(None, "outside-world")}


def test_a_bench_that_goes_on_asks_what_is_missing(server: SpeechServer) -> None:
    words = ["bench", "openai:tiny", *SMALL, f"openai.base_url={server.url}", "openai.key_env=", "openai.backoff=0.001", "openai.retries=0"]
    server.plan = lambda frames: ["500"] if frames in ("1000", "1030") else []
    assert main(words) == 0
    first = rows()["openai:tiny"]
    assert [row["failure"] for row in first] == ["server-error", None, None, "server-error", *[None] * 4]
    server.arrivals.clear()
    server.plan = lambda frames: []
    assert main(words) == 0
    assert sorted(a.words for a in server.arrivals) == ["1000", "1030"]
    assert all(row["score"] for row in rows()["openai:tiny"])


def test_a_cascade_and_a_topline_of_programs() -> None:
    stages = [
        f"cascade.asr={program('asr.py', '{query}')}",
        f"cascade.llm={program('llm.py', '{text}')}",
        f"cascade.tts={program('tts.py', '{text} {answer}')}",
        f"topline={program('tts.py', '{text} {answer} {style}')}",
    ]
    assert main(["bench", "cascade", "topline", *SMALL, *stages]) == 0
    found = rows()
    for row in found["cascade"]:
        if "sad" in row["query"]:
            assert (row["score"], row["failure"], row["reason"]) == (None, "exit-code", "exit code 1: too sad")
        else:
            written = f"answer to words of {row['query']}.wav"
            assert (row["written_text"], row["heard_text"]) == (written, f"{1000 + 10 * len(written)} samples")
    for row in found["topline"]:
        assert row["written_text"] == f"best for {row['style']}"
        assert row["heard_text"] == f"{1000 + 10 * len(row['written_text'] + 'warm')} samples", "the style was told"


def test_a_cascade_of_servers_and_of_the_worlds_own_stages(server: SpeechServer) -> None:
    url = [f"openai.base_url={server.url}", "openai.key_env="]
    assert main(["bench", "cascade", *SMALL, *url, "cascade.asr=openai:w", "cascade.llm=openai:g", "cascade.tts=openai:t"]) == 0
    texts = [f"answer to heard {1000 + 10 * i}" for i in range(8)]
    assert [row["written_text"] for row in rows()["cascade"]] == texts
    assert [row["heard_text"] for row in rows()["cascade"]] == [f"{16 * len(text)} samples" for text in texts]
    assert main(["bench", "cascade", *SMALL, *url, "cascade.asr=openai:w"]) == 0
    assert {(row["written_text"], row["truth"]) for row in rows()["cascade"]} == {
        (f"blind to heard {1000 + 10 * i}", 2.0) for i in range(8)
    }
    assert main(["bench", "cascade", *SMALL, *url, "cascade.tts=openai:t"]) == 0
    assert [row["written_text"] for row in rows()["cascade"]] == [f"blind to {1000 + 10 * i} samples" for i in range(8)]
    assert len(server.arrivals) == 8 * 4, "what was asked for one cascade serves the next"


def queries(**more: Any) -> str:
    """A manifest of queries."""
    lines = []
    for i in range(4):
        Path(f"q{i}.wav").write_bytes(wav(500 + 10 * i))
        row = {"id": f"mine/{i}", "audio": f"q{i}.wav", "dimension": "accent", "style": f"s{i % 2}", "contrast": f"mine/{i ^ 1}"}
        lines.append(row | {"answer_text": f"reply {i}", "answer_style": "warm"} | more)
    Path("queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return "queries=queries.jsonl"


def test_a_bench_on_queries_of_ones_own() -> None:
    tts = program("tts.py", "{text} {answer} {style}")
    assert main(["bench", program("copy.py", "{query} {answer}"), "topline", *SMALL, queries(), f"topline={tts}", "-o", "out"]) == 0
    mine, topline = rows("out").values()
    assert [(row["query"], row["dimension"], row["style"], row["heard_text"]) for row in mine] == [
        (f"mine/{i}", "accent", f"s{i % 2}", f"{500 + 10 * i} samples") for i in range(4)
    ]
    assert [row["heard_text"] for row in topline] == [f"{1000 + 10 * len(f'reply {i}warm')} samples" for i in range(4)]
    assert "accent" in Path("out/report.html").read_text()


def judge_recipe(server: ChatServer, name: str = "judge.yaml") -> None:
    Path(name).write_text(
        f"kind: judge\nears: pocket/polytone\nscore:\n  base_url: {server.url}\n  model: g\n  key_env:\n"
        "  price_in: 1000\n  price_out: 1000\n"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cmd:./gone {query} {answer}"], "cmd: there is no program './gone'"),
        (["cmd:cp {query}"], "needs {query} and {answer}"),
        (["gpt=openai:tiny"], "openai.base_url=http://HOST/v1"),
        (["openai:", "openai.base_url=http://127.0.0.1:1/v1"], "model: String should have at least 1 character"),
        (["openai:tiny", "openai.base_url=http://127.0.0.1:1/v1", "openai.key_env=NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["openai:tiny", "openai.base_url=here"], "openai.base_url: write http://HOST/v1"),
        (["cascade", "openai.models={tiny: {voise: x}}"], "openai: models: tiny: voise: Extra inputs"),
        (["files:gone.jsonl"], "gone.jsonl does not exist"),
        (["files:other.jsonl"], "answers none of the 8 queries"),
        (["files:twice.jsonl"], "answers the query 'x' twice"),
        (["sampled=[nobody]", "systems=[topline]"], "no system is called 'nobody'"),
        (["nobody"], "no system is called 'nobody'"),
        (["cmd:cp {query} {answer}", "cmd:cp {query} {answer}"], "two systems are called"),
        (["cascade=cmd:cp {query} {answer}"], "cascade: no recipe is called"),
        (["base=cmd:cp {query} {answer}"], "'base' is the name of a system of our own"),
        (["cascade", "cascade.llm=cmd:echo {text}"], "cascade.tts: pocket speaks only what"),
        (["cascade", "cascade.asr=whisper"], "cascade.asr: 'whisper' is none of pocket, cmd:PROGRAM and openai:MODEL"),
        (["cascade", "queries=queries.jsonl"], "cascade.llm: pocket answers only the world's queries"),
        (["topline", "queries=queries.jsonl"], "topline: pocket answers only the world's queries"),
        (["sft"], "paras2s align"),
        (["systems=[]"], "systems: the list is empty"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence_and_nothing_is_written(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other.jsonl").write_text('{"query": "x", "system": "s", "audio": "copy.py"}\n')
    Path("twice.jsonl").write_text('{"query": "x", "system": "s", "audio": "copy.py"}\n' * 2)
    queries()
    before = sorted(Path().iterdir())
    assert main(["bench", *words, *SMALL]) == 2
    out, err = capsys.readouterr()
    assert says in err and "Traceback" not in err and out == ""
    assert [path for path in sorted(Path().iterdir()) if path.name != "runs"] == before
    assert not [path for path in Path("runs").rglob("*") if path.is_file()]


def test_files_of_others_are_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("thesis").mkdir()
    Path("thesis/report.html").write_text("mine")
    for out, says in (
        ("thesis", "it holds report.html"),
        ("thesis/report.html", "is a file"),
        ("thesis/report.html/x", "thesis/report.html"),
    ):
        assert main(["bench", "topline", *SMALL, "-o", out]) == 2
        printed, err = capsys.readouterr()
        assert says in err and err.count("\n") == 1 and printed == ""
    assert [(path.name, path.read_text()) for path in Path("thesis").iterdir()] == [("report.html", "mine")]
    Path("new").mkdir()
    assert main(["bench", "topline", *SMALL, "-o", "new"]) == main(["bench", "cascade", *SMALL, "-o", "new"]) == 0


def test_what_another_recipe_measured_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "topline", *SMALL, "-o", "new"]) == 0
    first = {name: Path("new", name).read_bytes() for name in ("rows.jsonl", "summary.json", "report.html", "recipe.yaml")}
    (system,) = json.loads(first["summary.json"])["systems"]
    rows = [json.loads(line) for line in first["rows.jsonl"].splitlines()]
    assert system["system"] == "topline" and system["score"]["all"]["scored"] == len(rows)
    assert system["score"]["all"]["interval"]["mean"] == pytest.approx(sum(row["score"] for row in rows) / len(rows))
    assert main(["bench", "topline", *SMALL, "-o", "new"]) == 0
    assert "another recipe" not in capsys.readouterr().err and not list(Path("new").glob("report-*"))
    assert main(["bench", "cascade", *SMALL, "-o", "new"]) == 0
    (kept,) = Path("new").glob("report-*.html")
    assert f"{kept} is what another recipe measured here before" in capsys.readouterr().err
    mark = kept.stem.removeprefix("report")
    assert {name: Path("new", name).with_stem(f"{Path(name).stem}{mark}").read_bytes() for name in first} == first
    assert b"cascade" in Path("new/rows.jsonl").read_bytes() and b"topline" not in Path("new/rows.jsonl").read_bytes()


def test_what_a_bench_may_cost(server: SpeechServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = [f"openai.base_url={server.url}", "openai.key_env="]
    prices = ["openai.price_in=1.0", "openai.price_out=1.0"]
    assert main(["bench", "openai:tiny", *SMALL, *url, "--max-cost", "1"]) == 2
    assert "needs prices" in capsys.readouterr().err
    assert main(["bench", "openai:tiny", *SMALL, *url, *prices, "--max-cost", "0.000001"]) == 2
    assert "more than --max-cost" in capsys.readouterr().err and server.arrivals == []
    judge_recipe(server)
    assert main(["bench", "openai:tiny", *SMALL, *url, *prices, "judge=judge.yaml", "--max-cost", "1"]) == 2
    err = capsys.readouterr().err
    assert "the judge: up to 8 requests" in err and "more than --max-cost 1" in err and server.arrivals == []
    assert main(["bench", "openai:tiny", *SMALL, *url, *prices, "--max-cost", "1"]) == 0


def test_a_judge_that_is_a_server_scores_queries_of_ones_own() -> None:
    with ChatServer(lambda words: ["refusal"] if words == "510 samples" else []) as server:
        judge_recipe(server)
        words = ["bench", f"mine={program('not_q0.py', '{query} {answer}')}", *SMALL, queries(requirement="Be kind."), "judge=judge.yaml"]
        assert main(words) == 0
    mine = rows()["mine"]
    wanted = [score_of(f"{500 + 10 * i} samples") for i in range(4)]
    wanted[:2] = [None, None]  # type: ignore[list-item]
    assert [row["score"] for row in mine] == wanted, "each beside its own query, though one has no answer"
    assert [row["failure"] for row in mine] == ["no-answer", "refusal", None, None]
    assert {heard_in(arrival.body).get("requirement") for arrival in server.arrivals} == {"Be kind."}


def test_the_judge_spends_from_the_same_purse(server: SpeechServer, capsys: pytest.CaptureFixture[str]) -> None:
    judge_recipe(server)
    recipe = Path("judge.yaml").read_text().replace("price_in: 1000", "price_in: 0\n  max_tokens: 4000")
    Path("judge.yaml").write_text(recipe)
    assert main(["bench", "topline", *SMALL, "limit=1", "judge=judge.yaml", "--max-cost", "1"]) == 1
    err = capsys.readouterr().err
    assert "cost 0.16" in err and "stopped before --max-cost 1 could be passed" in err and server.arrivals == []


def test_a_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "openai:tiny", "--dry-run"]) == 0
    assert "- openai:tiny" in capsys.readouterr().out and not Path("runs").exists()


README = (ROOT / "README.md").read_text()
LINES = [line.strip() for line in README.splitlines() if line.startswith("    paras2s bench ") and OUTSIDE.search(line)]


def test_every_line_of_the_readme_about_other_systems_runs(server: SpeechServer) -> None:
    kinds = ("cmd:", "openai:", "files:", "cascade.tts=", "topline=", "queries=")
    assert all(any(kind in line for line in LINES) for kind in kinds)
    for name, script in (("my_s2s", "copy.py"), ("my_tts", "tts.py")):
        Path(name).write_text(f"#!{sys.executable}\n{SCRIPTS[script]}")
        Path(name).chmod(0o755)
    answers("answers.jsonl")
    queries()
    with ChatServer() as chat:
        judge_recipe(chat, "my_judge.yaml")
        for line in LINES:
            words = shlex.split(line.replace("http://127.0.0.1:8000/v1", server.url))[1:]
            assert main([*words, *SMALL]) == 0, line
