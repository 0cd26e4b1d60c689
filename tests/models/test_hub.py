"""Checkpoints by a folder or by a name that the hub's cache has."""

from __future__ import annotations

from pathlib import Path

import pytest

from paras2s_cli.errors import UsageError
from paras2s_cli.models.folder import load_model
from paras2s_cli.models.hub import local_folder
from tests.checkpoints import write_kimi_audio

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with `acme/Talker-1.5`, as the hub's library lays it out; nothing else can be had."""
    home = tmp_path / "hub" / "models--acme--Talker-1.5"
    snapshot = home / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    write_kimi_audio(snapshot)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return snapshot


def test_a_name_in_the_cache_is_its_snapshot(cached: Path) -> None:
    assert local_folder("acme/Talker-1.5") == local_folder("acme/Talker-1.5", download=False) == cached
    load_model(local_folder("acme/Talker-1.5"))


def test_a_folder_of_that_name_comes_first(cached: Path) -> None:
    Path("acme/Talker-1.5").mkdir(parents=True)
    assert local_folder("acme/Talker-1.5") == Path("acme/Talker-1.5")


@pytest.mark.parametrize("name", ["acme/Other", "nowhere", "no/such/folder", "./acme/Talker-1.5", "/acme"])
def test_what_is_neither_is_said(cached: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is neither a folder nor a model that the hub gives"):
        local_folder(name)
    assert local_folder(name, download=False) == Path(name)
