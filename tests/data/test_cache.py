"""Folders are complete or absent, whoever builds them and whoever dies."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paras2s_cli.data.atomic import temp_beside
from paras2s_cli.data.cache import cache_root, content_key, folder_lock, is_complete, publish_folder
from paras2s_cli.errors import UsageError


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("PARAS2S_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == Path("/home/someone/.cache/paras2s")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == Path("/home/someone/.cache/paras2s")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/paras2s")
    monkeypatch.setenv("PARAS2S_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own" and not cache_root().exists()


def test_content_key() -> None:
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1}) == "bbb6a937f88c823e"
    keys = [
        content_key("ab", "c"),
        content_key("a", "bc"),
        content_key("abc"),
        content_key(b"abc"),
        content_key(1),
    ]
    assert len({*keys, content_key("1"), content_key(1.0), content_key()}) == 8
    with pytest.raises(TypeError):
        content_key({1, 2})
    with pytest.raises(ValueError):
        content_key(float("nan"))


def publish(final: Path, text: str, **options: bool) -> None:
    with publish_folder(final, **options) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(text)


def test_publish(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "key"
    with publish_folder(final) as folder:
        (folder / "file").write_text("x")
        assert not final.exists() and folder.parent == final.parent
    assert is_complete(final) and os.listdir(final.parent) == ["key"]


def test_the_first_complete_one_wins_unless_replaced(tmp_path: Path) -> None:
    publish(tmp_path / "key", "first")
    publish(tmp_path / "key", "second")
    assert (tmp_path / "key/sub/file").read_text() == "first"
    publish(tmp_path / "key", "third", replace=True)
    assert (tmp_path / "key/sub/file").read_text() == "third" and os.listdir(tmp_path) == ["key"]


def test_incomplete_ones_are_replaced(tmp_path: Path) -> None:
    publish(tmp_path / "key", "first")
    (tmp_path / "key/sub/file").write_text("fir")
    assert not is_complete(tmp_path / "key")
    publish(tmp_path / "key", "second")
    assert is_complete(tmp_path / "key") and (tmp_path / "key/sub/file").read_text() == "second"
    (tmp_path / "key/COMPLETE").unlink()
    publish(tmp_path / "key", "third")
    assert (tmp_path / "key/sub/file").read_text() == "third" and os.listdir(tmp_path) == ["key"]
    (tmp_path / "key/COMPLETE").write_text("[]")
    assert not is_complete(tmp_path / "key") and not is_complete(tmp_path / "none")


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), publish_folder(tmp_path / "key") as folder:
        (folder / "file").write_text("x")
        raise ZeroDivisionError
    with pytest.raises(UsageError, match="free some space"), publish_folder(tmp_path / "key"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="a file stands"), publish_folder(tmp_path / "file" / "key"):
        pass


def run(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_what_the_dead_leave_is_swept_and_the_living_keep_theirs(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from paras2s_cli.data.cache import publish_folder\n"
        "with publish_folder(Path(sys.argv[1])) as f: print(f.name, flush=True); time.sleep(60)"
    )
    process = run(code, str(tmp_path / "other"))
    assert process.stdout is not None
    theirs = tmp_path / process.stdout.readline().strip()
    mine = temp_beside(tmp_path / "mine")
    mine.mkdir()
    publish(tmp_path / "key", "x")
    assert theirs.is_dir() and mine.is_dir()
    process.kill()
    process.wait()
    publish(tmp_path / "key2", "x")
    assert not theirs.exists() and mine.is_dir()


def test_two_processes_build_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from paras2s_cli.data.cache import *\n"
        "key = Path(sys.argv[1])\n"
        "with folder_lock(key):\n"
        "    if not is_complete(key):\n"
        "        with publish_folder(key) as f: (f / 'x').write_text('x'); time.sleep(0.3); print('built')\n"
    )
    outputs = [process.communicate()[0] for process in [run(code, str(tmp_path / "key")) for _ in range(3)]]
    assert sorted(outputs) == ["", "", "built\n"]


def test_a_killed_holder_frees_the_lock_even_if_it_forked(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from paras2s_cli.data.cache import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if child: print(child, flush=True)\n"
        "    time.sleep(60)"
    )
    process = run(code, str(tmp_path / "key"))
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        waited: list[bool] = []
        with folder_lock(tmp_path / "key", on_wait=lambda: waited.append(True)):
            assert not waited
    finally:
        os.kill(child, 9)
