"""Which implementation of a kernel runs, and why.

`triton` runs on CUDA tensors, `reference` (plain torch) everywhere else. `PARAS2S_KERNELS=triton|reference`
forces one for the whole process; `force(...)` forces one in a block and wins over the variable. Triton on CPU
tensors works only in its interpreter (`TRITON_INTERPRET=1`): how the kernels are tested without a GPU.

A kernel of LIBRARIES goes to one of its libraries where that is there and can take the call. The name of a library
forces that one for its kernels; the others choose as if nobody had asked.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch

ENV = "PARAS2S_KERNELS"
BACKENDS = ("triton", "reference")
KERNELS = ("token_logprob", "sample_logprob", "linear_logprob", "grpo_loss", "shared_prefix_attention", "varlen_attention")
LIBRARIES = {"varlen_attention": ("flash-attn", "torch-flash")}  # in order of preference; see varlen_libraries.py
_FOLDER = {"triton": "gpu", "reference": "reference"}

# A plain global and not a context variable: autograd runs the backward of CUDA tensors in threads of its own.
_forced: list[str] = []


def _known(name: str, source: str) -> str:
    known = (*BACKENDS, *sorted({library for libraries in LIBRARIES.values() for library in libraries}))
    if name not in known:
        raise ValueError(f"{source}: unknown backend {name!r}; choose one of {', '.join(known)}")
    return name


@contextmanager
def force(backend: str) -> Iterator[None]:
    """Every kernel called inside the block runs on `backend`, one of BACKENDS or a library (else ValueError)."""
    _forced.append(_known(backend, "backend"))
    try:
        yield
    finally:
        _forced.pop()


def forced() -> tuple[str, str] | None:
    """(backend, who asked for it), or None when nobody did."""
    if _forced:
        return _forced[-1], "force()"
    if name := os.environ.get(ENV):
        return _known(name, ENV), f"{ENV}={name}"
    return None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton_missing(device: torch.device) -> str | None:
    """Why Triton cannot take tensors of `device`, or None when it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if _interpreting():
        return None
    if device.type != "cuda":
        return f"triton needs CUDA tensors (these are on {device.type})"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


def _choose(device: torch.device) -> tuple[str, str]:
    asked = forced()
    missing = _triton_missing(device)
    if asked is not None and asked[0] in BACKENDS:
        backend, source = asked
        if backend == "triton" and missing:
            raise ValueError(f"{source}: {missing}; force 'reference' or force nothing")
        return backend, f"forced by {source}"
    if device.type == "cuda" and missing is None:
        return "triton", "CUDA tensors"
    return "reference", missing or "CPU tensors: the interpreter runs only when forced"


def choose(device: torch.device) -> str:
    """The backend for tensors on `device`; ValueError when the forced one cannot run there."""
    if device.type == "cpu" and not _forced and ENV not in os.environ:
        return "reference"  # the hot path of small CPU tensors: no look-up of packages
    return _choose(device)[0]


def implementation(kernel: str, device: torch.device) -> ModuleType:
    """The module with `forward`, and `backward` if it is a kernel too, of `kernel` for tensors on `device`."""
    return importlib.import_module(f"paras2s_kernels.{_FOLDER[choose(device)]}.{kernel}")


def run(kernel: str, direction: str, device: torch.device, *arguments: Any) -> Any:
    """`forward` or `backward` of `kernel` for tensors on `device`. Triton launches on the current GPU, wherever the tensors are."""
    function = getattr(implementation(kernel, device), direction)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return function(*arguments)


def backends() -> list[dict[str, object]]:
    """For `paras2s doctor`, one row a kernel: kernel, chosen, available (names), why. Never raises."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = ["reference"] if _triton_missing(device) else ["triton", "reference"]
    try:
        chosen, why = _choose(device)
    except ValueError as error:
        chosen, why = "none", str(error)
    rows: list[dict[str, object]] = [{"kernel": kernel, "chosen": chosen, "available": available, "why": why} for kernel in KERNELS]
    for row in rows:
        if row["kernel"] in LIBRARIES:
            row |= _with_libraries(str(row["kernel"]), device, chosen, available, why)
    return rows


def _with_libraries(kernel: str, device: torch.device, chosen: str, available: list[str], why: str) -> dict[str, object]:
    """What `backends` says of a kernel that libraries can run too, given what it is without them."""
    from paras2s_kernels import varlen_libraries

    try:
        asked = forced()
    except ValueError:
        return {}
    missing = {library: varlen_libraries.missing(library, device) for library in LIBRARIES[kernel]}
    there = [library for library in missing if missing[library] is None]
    if asked is not None and asked[0] in missing:
        reason = missing[asked[0]]
        if reason is not None:
            chosen, why = "none", f"{asked[1]}: {reason}"
        else:
            chosen, why = asked[0], f"forced by {asked[1]}"
    elif asked is None and there:
        why = f"{there[0]} is there; {chosen} for what it cannot take, and for graphs"
        chosen = there[0]
    elif asked is None:
        why = "; ".join(dict.fromkeys([why, *(str(reason) for reason in missing.values())]))
    return {"chosen": chosen, "available": [*there, *available], "why": why}
