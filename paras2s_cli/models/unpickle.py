"""A pickle of tensors to safetensors: run as a process of its own, for a pickle is a program. `python -m ... FILE OUT [KEY]`."""

import json
import pickle
import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


class Refused(Exception):
    """Why a file is not converted, without its name."""


def load(path: str) -> Any:
    """What a pickle holds, as long as that is tensors, numbers, strings, lists and mappings. Raises Refused."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)|[Cc]lass(?:es)?[^\w]+([\w.]+\.[\w.]+)", str(error))
        what = f"asks for {asked[1] or asked[2]}, which is no tensor" if asked else "is no pickle of tensors"
        raise Refused(f"{what}; save its state_dict where it was made") from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError, IndexError) as error:
        raise Refused(f"cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__}); it is damaged") from error


def tensors_in(found: Any, key: str = "") -> dict[str, Tensor]:
    """The flat mapping of names to plain tensors that a file holds, or holds under a key. Raises Refused for anything else."""
    if key and not (isinstance(found, Mapping) and key in found):
        raise Refused(f"has no {key!r}" + (f": it has {_some(found)}" if isinstance(found, Mapping) else ""))
    found = found[key] if key else found
    if not isinstance(found, Mapping) or not found:
        raise Refused("holds no mapping of names to tensors; save its state_dict where it was made")
    sharing: dict[int, str] = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Refused(f"holds {type(value).__name__} under {name!r}: if the tensors are inside one of {_some(found)}, say --key")
        if type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "quantized" if value.is_quantized else "without values" if value.is_meta else str(value.layout)
            raise Refused(f"holds {name} as a {type(value).__name__}, {kind}, which safetensors do not have; save it as a plain tensor")
        storage = value.untyped_storage().data_ptr()
        if value.numel() and sharing.setdefault(storage, name) != name:
            raise Refused(f"has one memory for {sharing[storage]} and {name}, which safetensors do not have; leave one out or clone it")
    return {name: value.detach().contiguous() for name, value in found.items()}


def _some(found: Mapping[Any, Any]) -> str:
    names = [str(name) for name in found]
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def main(path: str, out: str, key: str = "") -> int:
    """Writes `out` and says what is in it as JSON, or a sentence on stderr and exit code 2."""
    try:
        tensors = tensors_in(load(path), key)
        save_file(tensors, out, metadata={"format": "pt"})
    except (Refused, SafetensorError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps({"tensors": len(tensors), "bytes": sum(t.nbytes for t in tensors.values())}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
