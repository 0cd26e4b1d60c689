"""Checkpoints: a folder of safetensors and JSON that is whole or absent. No pickle is written or read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from paras2s_cli.data.atomic import remove, temp_beside, writing
from paras2s_cli.data.cache import is_complete
from paras2s_cli.errors import UsageError
from paras2s_cli.train.ranks import ALONE, Ranks
from paras2s_cli.train.stored import Stored, file_of, own_part, stored_groups

_STEP = re.compile(r"step-(\d{6,})")
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: `groups` of named CPU tensors, each read when it is asked for, and the JSON `state`."""

    step: int
    groups: dict[str, Stored]
    state: dict[str, Any]


def save_checkpoint(
    root: Path,
    step: int,
    groups: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
    keep: int = 2,
    *,
    sync: bool = False,
    ranks: Ranks = ALONE,
) -> Path:
    """Writes `root/step-000120/` (see `write_checkpoint`), and returns the folder.

    Of the complete ones only the `keep` newest stay. A kill at any moment leaves the older ones whole.
    Raises UsageError if the disk does not take it.
    """
    if keep < 1:
        raise ValueError("keep must be at least 1")
    final = root / f"step-{step:06d}"
    write_checkpoint(final, step, groups, state, sync=sync, ranks=ranks)
    if ranks.first:
        _prune(root, final, keep)
    return final


def write_checkpoint(
    final: Path,
    step: int,
    groups: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
    *,
    sync: bool = False,
    ranks: Ranks = ALONE,
) -> None:
    """Writes one folder in the place of what is there: `<group>.safetensors` each, state.json, the marker last.

    Of a group that lies in parts every rank writes its own, `<group>-00001-of-00008.safetensors`; all call this, and the folder is
    there when it returns. Without `sync` a power cut may cost the last few steps, never more: a torn folder is told by the sizes in
    its marker. Tensors that share memory (tied weights) are each written out.
    """
    with ranks.publish(final, replace=True, sync=sync) as temp, writing(final):
        for name, tensors in groups.items():
            if not _GROUP.fullmatch(name):
                raise ValueError(f"{name!r} is no name for a group: it becomes a file name")
            try:
                save_file(_separate(own_part(tensors, ranks)), temp / file_of(name, ranks))
            except SafetensorError as error:
                raise _as_os_error(error) from error
        if ranks.first:
            (temp / "state.json").write_text(json.dumps({"step": step, "state": dict(state)}))


def latest_checkpoint(root: Path) -> Path | None:
    """The complete checkpoint with the highest step in `root`, or None; torn ones are passed over."""
    return next((folder for folder in _by_step(root) if is_complete(folder)), None)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads what `save_checkpoint` wrote; raises UsageError, naming the folder and the way out, if it is
    corrupt.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no checkpoint folder; check the path")
    if not is_complete(folder):
        raise UsageError(f"the checkpoint {folder} is incomplete; delete it, and the run resumes from the one before")
    try:
        saved = json.loads((folder / "state.json").read_bytes())
        step, state = int(saved["step"]), dict(saved["state"])
        groups = stored_groups(folder)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(f"the checkpoint {folder} is corrupt ({error}); delete it, and the run resumes from the one before") from error
    return Checkpoint(step, groups, state)


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors, no two in one storage; copied only where they are not so already."""
    seen: set[int] = set()
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        else:
            seen.add(storage.data_ptr())
        out[name] = tensor
    return out


def _as_os_error(error: SafetensorError) -> OSError:
    """safetensors wraps the system's error into text: `... Os { code: 28, ... }` or `(os error 28)`."""
    code = re.search(r"code: (\d+)|os error (\d+)", str(error))
    number = int(code[1] or code[2]) if code else 0
    return OSError(number, os.strerror(number) if number else str(error))


def _by_step(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    found = [(int(match[1]), folder) for folder in root.iterdir() if (match := _STEP.fullmatch(folder.name))]
    return [folder for _, folder in sorted(found, reverse=True)]


def _prune(root: Path, saved: Path, keep: int) -> None:
    kept = 0
    for folder in _by_step(root):
        if folder == saved or (is_complete(folder) and kept < keep):
            kept += 1
        else:
            # Renamed first, so that a kill while deleting leaves no half of a checkpoint under its name.
            aside = temp_beside(folder)
            with writing(folder):
                os.rename(folder, aside)
            remove(aside)
