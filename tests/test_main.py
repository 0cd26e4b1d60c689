"""The command line itself: quick help, sentences instead of tracebacks, exit codes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from paras2s_cli import __version__
from paras2s_cli import main as cli
from paras2s_cli.errors import TooManyFailed, UsageError

ROOT = Path(__file__).parents[1]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "paras2s_cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Puts a function in the place of `paras2s judge`."""

    def put(function: Callable[[], None]) -> None:
        module = ModuleType("stand_in")
        module.judge = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "stand_in", module)
        monkeypatch.setitem(cli.VERBS, "judge", ("stand_in:judge", ""))

    monkeypatch.setattr(sys, "argv", ["paras2s", "judge"])
    monkeypatch.delenv("PARAS2S_DEBUG", raising=False)
    return put


def fails(error: BaseException) -> Callable[[], None]:
    def judge() -> None:
        raise error

    return judge


def test_help_imports_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys\nfrom paras2s_cli.main import main\ncode = main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'rich', 'pydantic', 'yaml', 'soundfile'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    began = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    with capsys.disabled():
        print(f"\n[paras2s --help: {time.perf_counter() - began:.2f} s]")
    assert run.returncode == 0, run.stderr
    assert all(name in run.stdout for name in cli.VERBS)


def test_recipes_needs_no_torch() -> None:
    program = (
        "import sys\nfrom paras2s_cli.main import main\ncode = main(['recipes'])\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\nsys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_version_and_unknown_words() -> None:
    assert command("--version").stdout == f"paras2s {__version__}\n"
    run = command("jugde")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "paras2s: no verb is called 'jugde': did you mean 'judge'?\n"
    assert command("recipes", "--colour").returncode == 2


@pytest.mark.parametrize(("error", "code"), [(UsageError("a.wav: no samples"), 2), (TooManyFailed("3 of 4"), 3)])
def test_a_users_error_is_one_sentence(verb, capsys, error, code) -> None:  # type: ignore[no-untyped-def]
    verb(fails(error))
    assert cli.main(["judge"]) == code
    assert capsys.readouterr() == ("", f"paras2s: {error}\n")


def test_debugging_shows_the_traceback(verb, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    verb(fails(UsageError("a.wav: no samples")))
    monkeypatch.setenv("PARAS2S_DEBUG", "1")
    assert cli.main(["judge"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and error.endswith("paras2s: a.wav: no samples\n")


def test_a_bug_is_a_traceback(verb) -> None:  # type: ignore[no-untyped-def]
    verb(fails(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["judge"])
    verb(fails(FileNotFoundError(errno.ENOENT, "gone", "x")))  # the verbs themselves say what was not found
    with pytest.raises(FileNotFoundError):
        cli.main(["judge"])


def test_an_interrupt_says_that_the_command_resumes(verb, capsys) -> None:  # type: ignore[no-untyped-def]
    verb(fails(KeyboardInterrupt()))
    assert cli.main(["judge"]) == 130
    assert capsys.readouterr().err == "paras2s: interrupted; the same command resumes where this one stopped\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP])
def test_disk_trouble_is_one_sentence_with_the_path(verb, capsys, code) -> None:  # type: ignore[no-untyped-def]
    verb(fails(OSError(code, os.strerror(code), "/runs/a/metrics.jsonl")))
    assert cli.main(["judge"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("paras2s: /runs/a/metrics.jsonl: ") and error.count("\n") == 1


def test_a_failed_write_names_the_file_though_the_system_does_not(verb, capsys) -> None:  # type: ignore[no-untyped-def]
    def judge() -> None:
        with Path("/dev/full").open("w", buffering=1) as file:
            file.write("row\n")

    verb(judge)
    assert cli.main(["judge"]) == 2
    assert capsys.readouterr().err.startswith("paras2s: /dev/full: the disk is full")


@pytest.mark.parametrize("word", ["--version", "--help", "recipes"])
def test_a_full_standard_output_is_a_sentence(word: str) -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run([sys.executable, "-m", "paras2s_cli", word], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1) and "the disk is full" in run.stderr


@pytest.mark.parametrize(("closed", "shown"), [(">&-", ""), ("2>&-", f"paras2s {__version__}\n")])
def test_a_closed_stream_is_no_trouble(closed: str, shown: str) -> None:
    line = f"{sys.executable} -m paras2s_cli --version {closed} && {sys.executable} -m paras2s_cli jugde 2>&-"
    run = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (2, shown, ""), "messages do not turn up among the results"


def test_the_systems_words_count_where_its_number_is_lost(verb, capsys) -> None:  # type: ignore[no-untyped-def]
    def judge() -> None:
        path = Path("/runs/model.safetensors")
        raise RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28) {path.suffix}")

    verb(judge)
    assert cli.main(["judge"]) == 2
    assert capsys.readouterr().err.startswith("paras2s: /runs/model.safetensors: the disk is full")


CHATTY = """
import sys, time
from types import ModuleType
from paras2s_cli import main as cli

def judge() -> None:
    time.sleep(0.3)  # until the reader has gone
    print("row")

module = ModuleType("stand_in")
module.judge = judge
sys.modules["stand_in"] = module
cli.VERBS["judge"] = ("stand_in:judge", "")
sys.exit(cli.main(["judge"]))
"""


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text(CHATTY)
    line = f"{sys.executable} {tmp_path / 'chatty.py'} | true; exit ${{PIPESTATUS[0]}}"
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "",
    }  # buffered: the flush at exit matters
    run = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (141, "")


def test_a_verb_that_is_not_installed_is_a_sentence(monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(cli.VERBS, "judge", ("paras2s_cli.verbs.nothing:judge", ""))
    assert cli.main(["judge"]) == 2
    assert "'judge' is missing from this installation" in capsys.readouterr().err


def test_a_missing_dependency_of_a_verb_is_not_mistaken_for_the_verb(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(cli.VERBS, "judge", ("no_such_package.inside:judge", ""))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["judge"])
