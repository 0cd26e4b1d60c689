"""`paras2s recipes`: list, show, copy, check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from paras2s_cli.main import main
from paras2s_cli.recipe import catalog, check
from paras2s_cli.recipe.base import RecipeBase

TEXT = "# Count things.\nkind: count\nsteps: 3  # how many\n"


class Count(RecipeBase):
    kind: Literal["count"] = "count"
    steps: int


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "installed"
    (folder / "toy").mkdir(parents=True)
    (folder / "toy" / "count.yaml").write_text(TEXT)
    monkeypatch.setattr(catalog, "recipes_root", lambda: folder)
    monkeypatch.setattr(check, "RECIPES", (Count,))
    monkeypatch.chdir(tmp_path)
    return folder


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.split() == ["toy/count", "count", "Count", "things."]
    assert main(["recipes", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["summary"] == "Count things."


def test_the_list_ends_with_a_whole_sentence(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "toy" / "count.yaml").write_text("# Count v. 2 things. This goes on\n# in the next line.\nkind: count\nsteps: 3\n")
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.endswith("Count v. 2 things.\n")
    (root / "toy" / "count.yaml").write_text("# Count things that\n# are there.\nkind: count\nsteps: 3\n")
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.endswith("Count things that\n")


def test_show_keeps_the_comments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "toy/count"]) == 0
    assert capsys.readouterr().out == TEXT


def test_a_family_lists_its_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "toy"]) == 0
    assert capsys.readouterr().out.startswith("toy/count")
    assert main(["recipes", "tpy"]) == 2
    assert "did you mean toy" in capsys.readouterr().err


def test_copy_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "toy/count", "--copy", "mine.yaml"]) == 0
    assert (tmp_path / "mine.yaml").read_text() == TEXT
    (tmp_path / "mine.yaml").write_text("changed")
    assert main(["recipes", "toy/count", "--copy", "mine.yaml"]) == 2
    assert (tmp_path / "mine.yaml").read_text() == "changed"
    assert main(["recipes", "toy/count", "--copy", "gone/mine.yaml"]) == 2
    assert main(["recipes", "toy/count", "--copy", "mine"]) == 2
    assert main(["recipes", "--copy", "other.yaml"]) == 2
    assert not (tmp_path / "other.yaml").exists()
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--check", "toy/count"]) == 0
    assert "sound count recipe" in capsys.readouterr().out
    (tmp_path / "bad.yaml").write_text("kind: count\nstep: 3\n")
    assert main(["recipes", "--check", "bad.yaml"]) == 2
    error = capsys.readouterr().err
    assert "bad.yaml has 2 errors" in error
    assert "bad.yaml:2: step: unknown key (did you mean steps?)" in error
    (tmp_path / "bad.yaml").write_text("kind: cuont\n")
    assert main(["recipes", "--check", "bad.yaml"]) == 2
    assert "bad.yaml: kind: must be one of count" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("a: [\n")
    assert main(["recipes", "--check", "bad.yaml"]) == 2
    assert "bad.yaml has 1 error" in capsys.readouterr().err
