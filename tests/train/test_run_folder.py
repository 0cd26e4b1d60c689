"""A run's folder belongs to one recipe and one process; on error nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paras2s_cli.errors import UsageError
from paras2s_cli.train.run_folder import open_run

RECIPE = "train:\n  lr: 0.001\n  steps: 10\nseed: 1\n"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def test_new_and_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x"
    run = open_run(folder, RECIPE, "h1", "sft")
    assert not run.resumed and run / "a" == folder / "a" and os.fspath(run) == str(run) == str(folder)
    assert (folder / "recipe.yaml").read_text() == RECIPE
    saved = json.loads((folder / "run.json").read_text())
    assert saved["kind"] == "sft" and saved["hash"] == "h1" and saved["version"]
    before = tree(folder)
    assert open_run(folder, RECIPE, "h1", "sft").resumed
    assert tree(folder) == before


def test_an_empty_folder_and_one_that_was_killed_while_opening(tmp_path: Path) -> None:
    assert not open_run(tmp_path, RECIPE, "h1", "sft").resumed
    (tmp_path / "run.json").unlink()
    (tmp_path / "recipe.yaml").write_text("tor")
    assert not open_run(tmp_path, RECIPE, "h1", "sft").resumed
    assert (tmp_path / "recipe.yaml").read_text() == RECIPE


def file(folder: Path) -> None:
    folder.write_text("x")


def other_recipe(folder: Path) -> None:
    open_run(folder, RECIPE.replace("0.001", "0.002").replace("seed: 1\n", "more: {a: 1}\n"), "h2", "sft")


def other_kind(folder: Path) -> None:
    open_run(folder, RECIPE, "h1", "align")


def other_files(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")


def damaged(folder: Path) -> None:
    open_run(folder, RECIPE, "h1", "sft")
    (folder / "run.json").write_text("{")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (file, "is a file, not a folder; choose another --out"),
        (
            other_recipe,
            "holds another recipe (changed: train.lr 0.002 -> 0.001, more.a 1 -> (absent),"
            " seed (absent) -> 1); choose another --out or delete it",
        ),
        (other_kind, "holds a run of align, not of sft; choose another --out or delete it"),
        (other_files, "is not empty and no run of paras2s (it holds thesis.tex); choose another --out"),
        (damaged, "run.json is damaged; choose another --out or delete"),
    ],
)
def test_refused_and_nothing_written(tmp_path: Path, prepare: Callable[[Path], None], words: str) -> None:
    folder = tmp_path / "x"
    prepare(folder)
    before = tree(tmp_path)
    with pytest.raises(UsageError) as refusal:
        open_run(folder, RECIPE, "h1", "sft")
    assert words in str(refusal.value) and str(folder) in str(refusal.value) and "\n" not in str(refusal.value)
    assert tree(tmp_path) == before


def test_many_changes_are_counted(tmp_path: Path) -> None:
    open_run(tmp_path, "".join(f"k{n}: 1\n" for n in range(9)), "h1", "sft")
    with pytest.raises(UsageError, match=r"k4 1 -> 2, and 4 more\)"):
        open_run(tmp_path, "".join(f"k{n}: 2\n" for n in range(9)), "h2", "sft")


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UsageError, match=r"may not be written to \(read-only\)"):
        open_run(tmp_path, RECIPE, "h1", "sft")
    assert tree(tmp_path) == {}


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UsageError, match="No space left on device; free some space"):
        open_run(tmp_path / "runs" / "x", RECIPE, "h1", "sft")
    assert tree(tmp_path) == {}


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="choose another"):
        open_run(tmp_path / "file" / "x", RECIPE, "h1", "sft")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from paras2s_cli.train.run_folder import open_run\n"
        "open_run(Path(sys.argv[1]), sys.argv[2], 'h1', 'sft'); print('open', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "x"), RECIPE],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(UsageError, match="another process is running in"):
        open_run(tmp_path / "x", RECIPE, "h1", "sft")
    process.kill()
    process.communicate()
    assert open_run(tmp_path / "x", RECIPE, "h1", "sft").resumed
