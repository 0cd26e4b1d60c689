"""Parts of tensors on disk: what each of several ranks saves, and how one or many read it again.

A tensor that lies in parts is a `DTensor`. It is known by its mesh: to import the class takes a second, which only several ranks need.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import torch
from safetensors import safe_open
from torch import Tensor, nn

from paras2s_cli.train.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_FILE = re.compile(r"(.+?)(?:-\d{5}-of-\d{5})?\.safetensors")


def in_parts(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor lies in parts on several ranks."""
    return hasattr(tensor, "device_mesh")


def own_part(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """What a rank has to save: its rows of tensors that lie in parts; the others are rank 0's to save."""
    parts = {name: tensor.to_local() for name, tensor in tensors.items() if in_parts(tensor)}
    return parts | ({name: tensor for name, tensor in tensors.items() if name not in parts} if ranks.first else {})


def file_of(group: str, ranks: Ranks) -> str:
    """The file of a rank's part of a group of tensors."""
    return f"{group}.safetensors" if ranks.size == 1 else f"{group}-{ranks.rank + 1:05d}-of-{ranks.size:05d}.safetensors"


def like(tensors: Mapping[str, Tensor], name: str, target: Tensor) -> Tensor:
    """A saved tensor as `target` lies: whole, or this rank's rows of it, however many ranks have saved it."""
    saved = tensors.shape(name) if isinstance(tensors, Stored) else tensors[name].shape
    if not in_parts(target) or saved != target.shape:
        return tensors[name]
    from torch.distributed.tensor import DTensor

    mesh, count = target.device_mesh, len(target)
    size = -(-count // mesh.size())
    start = min(mesh.get_local_rank() * size, count)
    stop = min(start + size, count)
    rows = tensors.rows(name, start, stop) if isinstance(tensors, Stored) else tensors[name][start:stop]
    return DTensor.from_local(rows.to(target.device), mesh, target.placements, run_check=False, shape=target.shape, stride=target.stride())


def load_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a module its saved state; where its weights lie in parts, this rank's."""
    targets = module.state_dict()
    module.load_state_dict({name: like(tensors, name, targets[name]) if name in targets else tensors[name] for name in tensors})


class Stored(Mapping[str, Tensor]):
    """A group of tensors on disk, which one file holds or the files of several ranks. Read when they are asked for; copies."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._parts: dict[str, list[safe_open]] = {}
        for file in files:
            opened = safe_open(file, framework="pt")
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                self._parts.setdefault(name, []).append(opened)

    def __getitem__(self, name: str) -> Tensor:
        parts = [opened.get_tensor(name) for opened in self._parts[name]]
        return torch.cat(parts) if len(parts) > 1 else parts[0].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's."""
        shapes = [opened.get_slice(name).get_shape() for opened in self._parts[name]]
        return tuple(shapes[0]) if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of the whole tensor; no more than these are read."""
        parts = [opened.get_slice(name) for opened in self._parts[name]]
        found, offset = [parts[0][:0]], 0
        for part in parts:
            count = part.get_shape()[0]
            if start < offset + count and offset < stop:
                found.append(part[max(start - offset, 0) : min(stop - offset, count)])
            offset += count
        return torch.cat(found)


def stored_groups(folder: Path) -> dict[str, Stored]:
    """All groups of a folder."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        match = _FILE.fullmatch(path.name)
        assert match is not None
        files.setdefault(match[1], []).append(path)
    return {group: Stored(parts) for group, parts in files.items()}
