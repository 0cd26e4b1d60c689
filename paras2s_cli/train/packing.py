"""Optimizer and random-number state as tensors and JSON, bit exact, so that a resumed run is the unbroken
one.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from paras2s_cli.errors import UsageError
from paras2s_cli.train.stored import like

RandomSource = torch.Generator | np.random.Generator | random.Random


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of any torch optimizer: tensors under "<parameter index>.<name>", and the rest as JSON.

    Parameters are numbered in the order of the groups. A group's own tensors (a capturable lr) are
    "group<i>.<name>". The tensors are the optimizer's own, not copies. Raises TypeError for state that is
    neither tensor nor JSON scalar.
    """
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    shapes: list[list[int]] = []
    groups: list[dict[str, Any]] = []
    for number, group in enumerate(optimizer.param_groups):
        kept: dict[str, Any] = {}
        for name, value in group.items():
            if isinstance(value, torch.Tensor):
                tensors[f"group{number}.{name}"] = value.detach()
            elif name != "params":
                kept[name] = _scalar(f"group {number}: {name}", value)
        groups.append({"count": len(group["params"]), "options": kept})
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                key = f"{len(shapes)}.{name}"
                if isinstance(value, torch.Tensor):
                    tensors[key] = value.detach()
                else:
                    scalars[key] = _scalar(key, value)
            shapes.append(list(parameter.shape))
    return tensors, {"kind": type(optimizer).__name__, "groups": groups, "shapes": shapes, "scalars": scalars}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Gives `optimizer` the state that `pack_optimizer` made: copies, on the parameters' devices, dtypes
    untouched; of parameters that lie in parts, this rank's.

    Unlike `Optimizer.load_state_dict`, which casts the moments of a bf16 parameter to bf16. Raises UsageError
    if the state is of another optimizer or of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    counts = [len(group["params"]) for group in optimizer.param_groups]
    if (
        meta["kind"] != type(optimizer).__name__
        or meta["shapes"] != [list(parameter.shape) for parameter in parameters]
        or [group["count"] for group in meta["groups"]] != counts
    ):
        raise UsageError("the saved optimizer state is of another optimizer or model; start the run in a new folder")
    for group, saved in zip(optimizer.param_groups, meta["groups"], strict=True):
        for name, value in saved["options"].items():
            group[name] = tuple(value) if isinstance(value, list) else value
    states: list[dict[str, Any]] = [{} for _ in parameters]
    owner = [group for group in optimizer.param_groups for _ in group["params"]]
    for key in tensors:
        place, name = key.split(".", 1)
        if place.startswith("group"):
            optimizer.param_groups[int(place[5:])][name] = tensors[key].clone()
            continue
        index = int(place)
        # torch keeps the step counter on the CPU unless the step itself runs on the device.
        on_cpu = name == "step" and not (owner[index].get("capturable") or owner[index].get("fused"))
        tensor = like(tensors, key, parameters[index]).detach().clone()
        states[index][name] = tensor.to("cpu" if on_cpu else parameters[index].device)
    for key, value in meta["scalars"].items():
        place, name = key.split(".", 1)
        states[int(place)][name] = tuple(value) if isinstance(value, list) else value
    optimizer.state.clear()
    for parameter, state in zip(parameters, states, strict=True):
        if state:
            optimizer.state[parameter] = state


def pack_rng(**sources: RandomSource) -> dict[str, Any]:
    """The state, as JSON, of torch's, numpy's and Python's global sources and of the named `sources`."""
    packed: dict[str, Any] = {
        "torch": _encode(torch.get_rng_state()),
        "numpy": _plain(np.random.get_state(legacy=False)),
        "python": random.getstate(),
        "sources": {name: _pack_source(source) for name, source in sources.items()},
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        packed["cuda"] = [_encode(state) for state in torch.cuda.get_rng_state_all()]
    return packed


def unpack_rng(packed: Mapping[str, Any], **sources: RandomSource) -> None:
    """Puts every source back where `pack_rng` found it; UsageError if a named source was not saved.

    The state of CUDA devices is restored only where the same number of them is there.
    """
    torch.set_rng_state(_decode(packed["torch"]))
    np.random.set_state(_arrays(packed["numpy"]))
    random.setstate(_tuples(packed["python"]))
    cuda = packed.get("cuda", [])
    if cuda and torch.cuda.is_available() and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all([_decode(state) for state in cuda])
    for name, source in sources.items():
        if name not in packed["sources"]:
            raise UsageError(f"the checkpoint holds no random state {name!r}; start the run in a new folder")
        _unpack_source(source, packed["sources"][name])


def _pack_source(source: RandomSource) -> Any:
    if isinstance(source, torch.Generator):
        return _encode(source.get_state())
    if isinstance(source, np.random.Generator):
        return _plain(source.bit_generator.state)
    return source.getstate()


def _unpack_source(source: RandomSource, state: Any) -> None:
    if isinstance(source, torch.Generator):
        source.set_state(_decode(state))
    elif isinstance(source, np.random.Generator):
        source.bit_generator.state = _arrays(state)
    else:
        source.setstate(_tuples(state))


def _scalar(key: str, value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_scalar(key, item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"optimizer state {key} is a {type(value).__name__}, neither a tensor nor a JSON scalar")


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "values": value.tolist()}
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"dtype", "values"}:
        return np.array(value["values"], dtype=value["dtype"])
    return {key: _arrays(item) for key, item in value.items()} if isinstance(value, dict) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
