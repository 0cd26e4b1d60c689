"""Programs as systems: real ones, that answer, fail, hang and are changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import soundfile

from paras2s_cli.audio.read import read_audio
from paras2s_cli.bench.kept import Kept, Said
from paras2s_cli.bench.program import Program
from paras2s_cli.bench.stage import Ask
from paras2s_cli.endpoint.reply import Fault
from paras2s_cli.errors import UsageError
from paras2s_cli.recipe.benching import Programs
from tests.commands import environment

S2S = """\
import os, shutil, sys, wave
query, answer, log = sys.argv[1:]
with open(log, "a") as file:
    file.write(query + "\\n")
how = os.path.basename(query).removesuffix(".wav")
if how.startswith("well"):
    shutil.copy(query, answer)
    if how == "well said":
        print("all is well", file=sys.stderr)
elif how == "exit":
    print("loading\\nno such model\\n", file=sys.stderr)
    sys.exit(3)
elif how == "killed":
    os.kill(os.getpid(), 9)
elif how in ("empty", "garbage", "half"):
    data = {"empty": b"", "garbage": b"this is no sound", "half": open(query, "rb").read()[:-100]}[how]
    open(answer, "wb").write(data)
"""
SLOW = """\
import os, sys, time
open(sys.argv[2] + ".pid", "w").write(str(os.getpid()))
if os.fork() == 0:
    open(sys.argv[2] + ".child", "w").write(str(os.getpid()))
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "s2s.py").write_text(S2S)
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def query(name: str, frames: int = 400) -> Ask:
    path = Path.cwd() / f"{name}.wav"
    soundfile.write(path, [zlib.crc32(name.encode()) % 1000 / 2000] * frames, 16000)
    return Ask(query=path)


def program(
    template: str, settings: Programs | None = None, needs: tuple[str, ...] = ("query", "answer"), may: tuple[str, ...] = ()
) -> Program:
    return Program("cmd", template, needs, settings or Programs.model_validate({}), Path("replies"), may)


def s2s(**settings: object) -> Program:
    return program(f"{sys.executable} -IS s2s.py {{query}} {{answer}} asked.log", Programs.model_validate(settings))


def ask(stage: Program, asks: list[Ask]) -> list[Said | Fault]:
    return Kept(Path("replies")).ask(stage, asks, lambda done, of: None)


FAULTS = {
    "exit": ("exit-code", "exit code 3: no such model"),
    "killed": ("exit-code", "ended by signal 9 (Killed)"),
    "nothing": ("no-answer", "the program left no answer"),
    "empty": ("no-answer", "the program left no answer"),
    "garbage": ("unreadable-audio", "the answer is not audio that can be read"),
    "half": ("unreadable-audio", "the answer is truncated"),
}


def test_every_query_is_answered_or_null_with_its_reason_and_a_resumed_run_asks_what_is_missing() -> None:
    names = ["well one", *FAULTS, "well said", "well $(two)"]
    asks = [query(name) for name in names]
    for turn, wanted in enumerate((names, list(FAULTS))):
        Path("asked.log").unlink(missing_ok=True)
        replies = ask(s2s(concurrency=3), asks)
        assert sorted(Path(line).stem for line in Path("asked.log").read_text().splitlines()) == sorted(wanted), turn
        for name, asked, reply in zip(names, asks, replies, strict=True):
            if name in FAULTS:
                assert isinstance(reply, Fault) and reply.failure == FAULTS[name][0] and reply.reason.startswith(FAULTS[name][1]), reply
            else:
                assert isinstance(reply, Said) and reply.audio and reply.audio.read_bytes() == asked.query.read_bytes(), name  # type: ignore[union-attr]
    said = {p.read_text() for p in Path("replies").glob("*.log")}
    assert said == {"all is well\n", "loading\nno such model\n\n"}
    assert not list(Path("replies").glob(".*.tmp")), "nothing half-made is left"


def test_equal_queries_are_asked_once_and_a_changed_program_is_asked_again() -> None:
    same = [query("well a"), query("well b")]
    shutil.copy("well a.wav", "well b.wav")
    first = ask(s2s(), same)
    assert first[0] == first[1], "by their content, not by their names"
    assert Path("asked.log").read_text().count("\n") == 1
    Path("s2s.py").write_text(S2S + "# another\n")
    ask(s2s(), same)
    assert Path("asked.log").read_text().count("\n") == 2


def test_an_answer_that_was_deleted_is_asked_for_again() -> None:
    said = ask(s2s(), [query("well")])[0]
    assert isinstance(said, Said) and said.audio
    said.audio.unlink()
    with open("replies/replies.jsonl", "a") as file:
        file.write('{"key": "torn')
    assert ask(s2s(), [query("well")]) == [said] and said.audio.exists()


def test_no_more_run_at_a_time_than_the_recipe_allows() -> None:
    Path("peak.py").write_text(
        "import os, sys, shutil, time\nopen(f'on/{os.getpid()}', 'w')\nend = time.monotonic() + 20\n"
        "while len(os.listdir('on')) < 2 and not os.path.exists('met') and time.monotonic() < end:\n    time.sleep(0.01)\n"
        "open('met', 'w')\nend = time.monotonic() + 0.1\n"
        "while len(os.listdir('on')) < 3 and time.monotonic() < end:\n    time.sleep(0.01)\n"
        "open('peak', 'a').write(f'{len(os.listdir(\"on\"))}\\n')\n"
        "os.unlink(f'on/{os.getpid()}')\nshutil.copy(sys.argv[1], sys.argv[2])\n"
    )
    Path("on").mkdir()
    stage = program(f"{sys.executable} -IS peak.py {{query}} {{answer}}", Programs(timeout=60, concurrency=2))
    assert all(isinstance(each, Said) for each in ask(stage, [query(f"q{'x' * i}") for i in range(6)]))
    assert max(map(int, Path("peak").read_text().split())) == 2


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(name: str) -> list[int]:
    """The program and its child, once both have said who they are."""
    for end in (".pid", ".child"):
        wait_for(lambda end=end: Path(name + end).exists() and Path(name + end).read_text())  # type: ignore[misc]
    return [int(Path(name + end).read_text()) for end in (".pid", ".child")]


def wait_for(what: object) -> None:
    deadline = time.monotonic() + 20
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_after_the_timeout_the_program_and_its_children_are_ended() -> None:
    stage = program(f"{sys.executable} -IS slow.py {{query}} name {{answer}}", Programs(timeout=0.5, concurrency=1))
    (reply,) = ask(stage, [query("q")])
    assert isinstance(reply, Fault) and (reply.failure, reply.reason) == ("deadline", "no answer within 0.5 s")
    for pid in pids("name"):
        wait_for(lambda pid=pid: not alive(pid))  # type: ignore[misc]


def heed_interrupts() -> None:
    """A shell's background jobs, and so their children, are started with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_the_programs_and_keeps_what_was_answered() -> None:
    asks = [query("well one"), query("stuck")]
    Path("either.py").write_text(S2S + f"if how == 'stuck':\n    sys.argv[2] = 'name'\n    exec({SLOW!r})\n")
    code = (
        "from tests.bench.test_program import *\n"
        f"stage = program('{sys.executable} -IS either.py {{query}} {{answer}} asked.log')\n"
        f"ask(stage, [Ask(query=Path(name)) for name in {[str(a.query) for a in asks]}])\n"
    )
    pipes = {"stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(), preexec_fn=heed_interrupts, **pipes)  # type: ignore[call-overload]
    found = pids("name")
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]
    for pid in found:
        wait_for(lambda pid=pid: not alive(pid))  # type: ignore[misc]
    assert len([json.loads(line) for line in Path("replies/replies.jsonl").read_text().splitlines()]) == 1
    assert len(list(Path("replies").glob("*.wav"))) == 1 and not list(Path("replies").glob(".*.tmp"))


def test_a_text_is_one_word_whatever_it_holds() -> None:
    Path("say.py").write_text("import sys\nprint(len(sys.argv), sys.argv[1], sys.argv[2])\n")
    text = 'it\'s\0; $(rm -r x) {answer} {text} "q"'
    stage = program(f"{sys.executable} -IS say.py {{text}} '<{{text}}>'", needs=("text",))
    assert ask(stage, [Ask(text=text)]) == [Said("3 {0} <{0}>".format(text.replace("\0", " ")), None)]
    stage = program("true {text}", needs=("text",))
    assert ask(stage, [Ask(text=text)]) == [Fault("empty", "the program printed nothing")]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("./gone {query} {answer}", "there is no program './gone'"),
        ("./s2s.py {query} {answer}", "chmod +x"),
        ("python3 {query}", "needs {query} and {answer}"),
        ("python3 answer", "needs {query} and {answer}"),
        ("", "needs {query} and {answer}"),
        ("python3 '{query} {answer}", "close the quotes"),
        ("python3 {query} {answer} {style}", "there is no {style} here, only {query}, {answer}"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_sentence(template: str, says: str) -> None:
    with pytest.raises(UsageError) as raised:
        program(template)
    assert says in str(raised.value) and "\n" not in str(raised.value)
    assert not Path("replies").exists()


def test_a_script_without_an_interpreter_is_a_usage_error() -> None:
    Path("bare").write_text("copy it\n")
    os.chmod("bare", 0o755)
    with pytest.raises(UsageError, match="needs #!"):
        ask(program("./bare {query} {answer}"), [query("q")])


def test_a_real_program_that_changes_the_pitch(folder: Path) -> None:
    (folder / "shift").write_text(
        f"#!{sys.executable}\nimport sys, soundfile\nwave, rate = soundfile.read(sys.argv[1])\n"
        "soundfile.write(sys.argv[2], wave[::2], 22050, format='FLAC')\n"
    )
    os.chmod("shift", 0o755)
    (reply,) = ask(program("./shift {query} {answer}"), [query("q", 3200)])
    assert isinstance(reply, Said) and reply.audio
    assert len(read_audio(reply.audio)) == round(1600 * 16000 / 22050), "any rate and container, told by its content"
