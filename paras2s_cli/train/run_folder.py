"""A run's folder: it belongs to one recipe, and to one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import yaml

from paras2s_cli.data.atomic import remove, sweep_temps, write_text, writing
from paras2s_cli.errors import UsageError

_RECIPE, _RUN, _LOCK = "recipe.yaml", "run.json", ".lock"
_SHOWN = 5
_locks: dict[Path, IO[bytes]] = {}  # held until the process ends; opening a run twice in one process is fine


@dataclass(frozen=True)
class RunFolder:
    """An open run: `folder / "metrics.jsonl"` works. `resumed`: the folder held this recipe already."""

    path: Path
    kind: str
    resumed: bool

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return str(self.path)


def open_run(folder: Path, recipe_text: str, recipe_hash: str, kind: str) -> RunFolder:
    """Opens `folder` for a run of `kind` (sft, align, ...): made with recipe.yaml and run.json, or resumed.

    Raises UsageError, having written nothing, if it holds another recipe or kind (and says what changed),
    other files, cannot be written, or another process is at work in it.
    """
    folder = Path(folder)
    _check_folder(folder)
    saved = _saved_run(folder)
    if saved is not None:
        _check_same(folder, saved, recipe_text, recipe_hash, kind)
        with writing(folder):
            _lock(folder)
        sweep_temps(folder)
        return RunFolder(folder, kind, resumed=True)
    made = _missing_folders(folder)
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _lock(folder)
            sweep_temps(folder)
            write_text(folder / _RECIPE, recipe_text)
            # The marker of an opened run comes last: without it the next attempt begins anew.
            run = {"kind": kind, "hash": recipe_hash, "version": _version()}
            write_text(folder / _RUN, json.dumps(run, indent=2) + "\n")
    except BaseException:
        _undo(folder, made)
        raise
    return RunFolder(folder, kind, resumed=False)


def _check_folder(folder: Path) -> None:
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file, not a folder; choose another --out")
        if not folder.exists():
            return
        names = set(os.listdir(folder))
    except OSError as error:
        raise UsageError(f"{folder} cannot be opened ({error.strerror}); choose another --out") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} may not be written to (read-only); choose another --out")
    others = sorted(name for name in names if name not in (_RECIPE, _LOCK) and not name.startswith(".paras2s-"))
    if _RUN not in names and others:
        raise UsageError(f"{folder} is not empty and no run of paras2s (it holds {others[0]}); choose another --out")


def _saved_run(folder: Path) -> dict[str, Any] | None:
    try:
        run = json.loads((folder / _RUN).read_bytes())
        return {"kind": str(run["kind"]), "hash": str(run["hash"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder / _RUN} is damaged; choose another --out or delete {folder}") from None


def _check_same(folder: Path, saved: dict[str, Any], recipe_text: str, recipe_hash: str, kind: str) -> None:
    if saved["kind"] != kind:
        raise UsageError(f"{folder} holds a run of {saved['kind']}, not of {kind}; choose another --out or delete it")
    if saved["hash"] != recipe_hash:
        changed = ""
        with contextlib.suppress(OSError, yaml.YAMLError, UnicodeDecodeError):
            changed = _changes((folder / _RECIPE).read_text(encoding="utf-8"), recipe_text)
        raise UsageError(f"{folder} holds another recipe{changed}; choose another --out or delete it")


def _changes(old_text: str, new_text: str) -> str:
    old, new = _flat(yaml.safe_load(old_text)), _flat(yaml.safe_load(new_text))
    keys = [key for key in {**old, **new} if old.get(key, _NONE) != new.get(key, _NONE)]
    if not keys:
        return ""
    said = [f"{key} {_show(old.get(key, _NONE))} -> {_show(new.get(key, _NONE))}" for key in keys[:_SHOWN]]
    more = [f"and {len(keys) - _SHOWN} more"] if len(keys) > _SHOWN else []
    return f" (changed: {', '.join(said + more)})"


_NONE = object()


def _show(value: Any) -> str:
    return "(absent)" if value is _NONE else str(value)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"train.lr": 0.001, ...} of nested mappings."""
    if not isinstance(tree, dict):
        return {prefix: tree} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _lock(folder: Path) -> None:
    path = (folder / _LOCK).resolve()
    if path in _locks and path.exists():
        return
    file = open(path, "ab")  # noqa: SIM115 (held until the process ends)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(f"another process is running in {folder}; wait for it or choose another --out") from None
    _locks[path] = file


def _missing_folders(folder: Path) -> list[Path]:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    return missing


def _undo(folder: Path, made: list[Path]) -> None:
    if lock := _locks.pop((folder / _LOCK).resolve(), None):
        lock.close()
        for name in (_RUN, _RECIPE, _LOCK):
            remove(folder / name)
    for empty in made:
        with contextlib.suppress(OSError):
            empty.rmdir()


def _version() -> str:
    try:
        return version("paras2s")
    except PackageNotFoundError:
        return "unknown"
