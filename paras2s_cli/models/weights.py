"""A model's tensors on disk: safetensors, in one file or in shards with an index. Read one at a time, written back as they lay."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paras2s_cli.errors import UsageError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED_INDEX = "pytorch_model.bin.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass
class Layout:
    """How a checkpoint lies in its files.

    files: the file of each tensor. headers: each file's own metadata. index: as it was read, None where one file holds all.
    spare: tensors that no parameter is made of, kept for the next save.
    """

    files: dict[str, str]
    headers: dict[str, dict[str, str] | None]
    index: dict[str, Any] | None = None
    spare: dict[str, Tensor] = field(default_factory=dict)


def _never(name: str) -> bool:
    return False


def read_weights(
    folder: Path,
    model: nn.Module,
    device: torch.device | str,
    is_spare: Callable[[str], bool] = _never,
    is_foreign: Callable[[str], bool] = _never,
) -> Layout:
    """Gives a model on the meta device its parameters, under the names of its state dict and with the dtypes of the files.

    All headers are read before any tensor. Tensors come one by one, so that the host holds no more than one file beside the model.

    Args:
        is_spare: tells names that are set aside. is_foreign: tells names that are none of this model's and are left alone; such files
            cannot be written back.

    Raises:
        UsageError: there are no safetensors, a file is missing or damaged, or tensors are missing, unexpected, or of another shape or kind
            (all of them are named).
    """
    layout, shapes, faults = _survey(folder, _read_index(folder), is_foreign)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    used = {name for name in shapes if not is_spare(name)}
    missing = (wanted.keys() | {name for name in layout.files if is_spare(name)}) - shapes.keys()
    faults += [f"missing {name}" + (f" in {layout.files[name]}" if name in layout.files else "") for name in missing]
    faults += [f"unexpected {name}" for name in used - wanted.keys()]
    faults += [f"{name} is {list(shapes[name])}, not {list(wanted[name])}" for name in used & wanted.keys() if shapes[name] != wanted[name]]
    if faults:
        place = folder / (WHOLE if layout.index is None else INDEX)
        raise UsageError(f"{place} does not fit the config beside it: {'; '.join(sorted(faults))}")
    for file in layout.headers:
        with _opened(folder / file) as stored:
            for name in (name for name in shapes if layout.files[name] == file):
                # a copy: what the library returns is the file itself, mapped into memory
                tensor = stored.get_tensor(name).to(device if name in used else "cpu", copy=True)
                if name in used:
                    path, _, leaf = name.rpartition(".")
                    setattr(model.get_submodule(path), leaf, nn.Parameter(tensor))
                else:
                    layout.spare[name] = tensor
    return layout


def write_weights(folder: Path, tensors: Mapping[str, Tensor], layout: Layout | None) -> None:
    """Writes tensors into an existing folder, into the files that they were read from; without a layout into one."""
    if layout is None:
        layout = Layout(dict.fromkeys(tensors, WHOLE), {WHOLE: {"format": "pt"}})
    everything = {**tensors, **layout.spare}
    for file, header in layout.headers.items():
        part = {name: everything[name].detach().cpu().contiguous() for name, place in layout.files.items() if place == file}
        save_file(part, folder / file, metadata=header)
    if layout.index is not None:
        (folder / INDEX).write_text(json.dumps(layout.index, indent=2) + "\n", encoding="utf-8")


def refuse_pickles(folder: Path, kinds: Sequence[str] = _PICKLES) -> None:
    """Raises UsageError where a folder without the weights that are wanted holds pickles, and says how they are converted."""
    pickles = sorted(file for file in folder.glob("*") if file.suffix in kinds)
    if pickles:
        source = folder / PICKLED_INDEX
        raise UsageError(
            f"{pickles[0]} is a pickle, which is never read here: if you trust it, `paras2s convert "
            f"{source if source.exists() else pickles[0]}` makes safetensors of it"
        )


def _read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a folder of shards, or None where one file holds all."""
    path = folder / INDEX
    if (folder / WHOLE).exists() or not path.exists():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        files = index["weight_map"]
        if not all(isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors") for file in files.values()):
            raise ValueError("weight_map names files that are no safetensors of this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not the index of safetensors shards ({error})") from error
    return dict(index)


def _survey(
    folder: Path, index: dict[str, Any] | None, is_foreign: Callable[[str], bool]
) -> tuple[Layout, dict[str, tuple[int, ...]], list[str]]:
    """The layout, the shape of every tensor that is not foreign, and what is wrong with them as long as no model is asked."""
    files = {} if index is None else {name: file for name, file in index["weight_map"].items() if not is_foreign(name)}
    layout, shapes, faults = Layout(files, {}, index), {}, []
    for file in dict.fromkeys(files.values()) if index is not None else (WHOLE,):
        with _opened(folder / file) as stored:
            layout.headers[file] = stored.metadata()
            for name in stored.keys():  # noqa: SIM118 (it is no mapping)
                if is_foreign(name):
                    continue
                part = stored.get_slice(name)
                if files.setdefault(name, file) != file or (index is not None and name not in index["weight_map"]):
                    faults.append(f"unexpected {name} in {file}")
                    continue
                shapes[name] = tuple(part.get_shape())
                if part.get_dtype() not in _FLOATS:
                    faults.append(f"{name} is of {part.get_dtype()}, not of floating-point numbers")
    return layout, shapes, faults


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    """One file of safetensors. A header tells the size of its file: one that is cut short is found at once."""
    if not path.exists():
        if path.name == WHOLE:
            refuse_pickles(path.parent)
        what = "cannot be read (there is no such file)" if path.name == WHOLE else f"this shard is missing, which {INDEX} names"
        raise UsageError(f"{path}: {what}; download the checkpoint again")
    try:
        with safe_open(path, framework="pt") as stored:
            yield stored
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); it is damaged or cut short: download it again") from error
