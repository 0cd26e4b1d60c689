"""Converts a pickle of tensors, once, in a process of its own: nothing else here reads pickles."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import paras2s_cli
from paras2s_cli.data.atomic import remove, temp_beside, write_text, writing
from paras2s_cli.errors import UsageError
from paras2s_cli.models.weights import INDEX


def convert_shards(path: Path) -> dict[str, Any]:
    """Converts all shards of an index, and the index, beside them, as `convert_pickle` does one file. What is there already is kept.

    Raises:
        UsageError: the index is damaged; or see `convert_pickle`.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        names = {
            shard: shard.replace("pytorch_model", "model").removesuffix(".bin") + ".safetensors" for shard in index["weight_map"].values()
        }
        if any(Path(shard).name != shard for shard in names):
            raise ValueError("weight_map names files of other folders")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not the index of a checkpoint ({error})") from error
    found = {"tensors": 0, "bytes": 0}
    for shard, name in names.items():
        if not (path.parent / name).exists():
            made = convert_pickle(path.parent / shard, path.parent / name)
            found = {what: found[what] + made[what] for what in found}
    index["weight_map"] = {tensor: names[shard] for tensor, shard in index["weight_map"].items()}
    write_text(path.with_name(INDEX), json.dumps(index, indent=2) + "\n")
    return found


def convert_pickle(path: Path, out: Path, key: str = "") -> dict[str, Any]:
    """Writes the tensors of a .bin or .pt file as safetensors, whole or not at all; `tensors`, how many, and `bytes`.

    Only tensors are unpickled (torch.load with weights_only), and not in this process.

    Args:
        key: of the mapping that holds the tensors, where the file holds a mapping of mappings.

    Raises:
        UsageError: the file is missing, holds anything but a flat mapping of names to plain tensors that have their own memory, or
            `out` exists or cannot be written.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    if out.exists():
        raise UsageError(f"{out} exists and is not overwritten: choose another name")
    temporary = temp_beside(out)
    with writing(out):
        temporary.touch()
    places = [str(Path(paras2s_cli.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-P", "-m", "paras2s_cli.models.unpickle", str(path.resolve()), str(temporary.resolve()), key]
    try:
        child = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": os.pathsep.join(places)}, capture_output=True, text=True, check=False
        )
        if child.returncode == 2:
            raise UsageError(f"{path} {child.stderr.strip().splitlines()[-1]}")
        if child.returncode:
            raise UsageError(f"{path} cannot be converted: the process that read it ended with {child.returncode}\n{child.stderr.strip()}")
        with writing(out):
            os.replace(temporary, out)
    finally:
        remove(temporary)
    return dict(json.loads(child.stdout))
