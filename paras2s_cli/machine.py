"""What this machine can run, and what it would take to run the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paras2s_cli.data.cache import cache_root

REQUIRED = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "soundfile",
    "soxr",
    "pydantic",
    "PyYAML",
)
# extra -> {distribution: what it is for}
EXTRAS = {
    "pocket": {
        "espeakng-loader": "renders the pocket world's speech",
        "pyworld-prebuilt": "gives rendered speech its tones",
        "pocketsphinx": "transcribes without a GPU",
    },
    "flash": {"flash-attn": "faster attention on NVIDIA GPUs"},
    "report": {"matplotlib": "figures in reports"},
    "lora": {"peft": "trains adapters in the place of all weights"},
    "track": {
        "trackio": "follow runs in a local page",
        "wandb": "follow runs online",
        "tensorboard": "follow runs in TensorBoard",
    },
}


@dataclass(frozen=True)
class Check:
    """One line of `paras2s doctor`: `status` is ok, absent (optional) or missing (required)."""

    name: str
    status: str
    detail: str
    way_out: str = ""

    def row(self) -> dict[str, str]:
        return asdict(self)


def examine() -> list[Check]:
    """All checks, in the order they are read: machine, packages, kernels, disk. Imports torch."""
    return [*_python(), *_required(), *_torch(), *_extras(), *_kernels(), *_library_models(), *_judge(), *_disk()]


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, without importing it; None when it is absent."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Iterator[Check]:
    version = platform.python_version()
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Check("python", "ok" if good else "missing", version, "" if good else "use Python 3.11, 3.12 or 3.13")
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler:
        yield Check("C compiler", "ok", compiler)
    else:
        yield Check("C compiler", "absent", "torch.compile and Triton need one", "apt install gcc")


def _required() -> Iterator[Check]:
    for name in REQUIRED:
        version = installed(name)
        if version is None:
            yield Check(name, "missing", "not installed", f"pip install {name}")
        elif name != "torch":
            yield Check(name, "ok", version)


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        if installed("torch") is not None:  # otherwise it has been said
            yield Check("torch", "missing", f"cannot be imported: {error}", "install it again")
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads on {cores} cores")
    flags = {flag: f"_is_{flag}_supported" for flag in ("avx512_bf16", "amx_tile")}
    fast = [flag for flag, probe in flags.items() if getattr(torch.cpu, probe, lambda: False)()]
    if fast:
        yield Check("bf16 on the CPU", "ok", ", ".join(fast))
    else:
        yield Check("bf16 on the CPU", "absent", "no avx512_bf16 or amx: float32 is used")
    triton = installed("triton")
    if triton:
        yield Check("triton", "ok", triton)
    else:
        yield Check("triton", "absent", "kernels fall back to plain torch", "it comes with paras2s on Linux")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            memory = f"{card.total_memory / 2**30:.0f} GiB, sm_{card.major}{card.minor}"
            yield Check(f"GPU {index}", "ok", f"{card.name}, {memory}")
    elif torch.version.cuda is None:
        yield Check("GPU", "absent", "this torch is built for the CPU", "install a CUDA build of torch to use a GPU")
    else:
        yield Check("GPU", "absent", f"torch for CUDA {torch.version.cuda} sees none")


def _extras() -> Iterator[Check]:
    for extra, packages in EXTRAS.items():
        for name, purpose in packages.items():
            version = installed(name)
            if version:
                yield Check(name, "ok", version)
            else:
                yield Check(name, "absent", purpose, f"pip install 'paras2s[{extra}]'")


def _kernels() -> Iterator[Check]:
    if importlib.util.find_spec("paras2s_kernels") is None:
        yield Check("kernels", "missing", "the package paras2s_kernels is not installed", "install paras2s again")
        return
    import paras2s_kernels

    backends: Any = getattr(paras2s_kernels, "backends", list)
    for row in backends():
        others = [name for name in row["available"] if name != row["chosen"]]
        choice = f"{row['chosen']} (also {', '.join(others)})" if others else row["chosen"]
        status = "missing" if row["chosen"] == "none" else "ok"  # none: one was forced that cannot run here
        yield Check(f"kernel {row['kernel']}", status, f"{choice}: {row['why']}" if row["why"] else choice)


def _library_models() -> Iterator[Check]:
    """Models that the decode engine does not drive."""
    if importlib.util.find_spec("transformers") is not None:
        how = "by transformers' forward, a step at a time: no CUDA graphs, no kernels of ours but those that draw and score tokens"
        yield Check("Qwen2.5-Omni", "ok", how)


def _judge() -> Iterator[Check]:
    from paras2s_cli.judge.auto import find_stages

    for found in find_stages():
        why = f" ({found.why})" if found.why else ""
        if found.section is None:
            yield Check(f"judge {found.stage}", "absent", f"pocket's own{why}", found.way_out)
        else:
            better = f"; better: {found.way_out}{why}" if found.way_out else ""
            yield Check(f"judge {found.stage}", "ok", found.label + better)


def _disk() -> Iterator[Check]:
    folder = cache_root()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    if os.access(existing, os.W_OK | os.X_OK) and existing.is_dir():
        yield Check("cache", "ok", f"{folder}, {size / 2**20:.0f} MiB")
    else:
        yield Check("cache", "missing", f"{folder} cannot be written", "set PARAS2S_CACHE to a folder of yours")
    here = Path.cwd()
    for name, place in (("free disk, cache", existing), ("free disk, here", here)):
        free = shutil.disk_usage(place).free / 2**30
        yield Check(name, "ok" if free >= 1 else "absent", f"{free:.1f} GiB", "" if free >= 1 else "free some space")
