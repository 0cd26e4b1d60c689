"""Compiles a Triton kernel for a GPU that is not there, and reads what it takes from the machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# bytes of shared memory that one block may use
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True)
class Resources:
    """Of a thread: registers, bytes spilled, bytes of stack; of a block: bytes of shared memory."""

    registers: int
    spilled: int
    stack: int
    shared: int
    ttir: str = field(repr=False)


def compile_for(
    capability: int, kernel: Any, arguments: dict[str, str], constants: dict[str, Any], num_warps: int, num_stages: int = 3,
    multiples_of_16: Collection[str] = (),
) -> Resources:  # fmt: skip
    """`arguments` are {name: Triton type}. Pointers count as 16-byte aligned, as torch allocates them, and the integers
    that are named as multiples of 16, as most strides are: Triton looks at both at run time and compiles other code for them.
    """
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, parameter in enumerate(kernel.arg_names)
        if arguments.get(parameter, "").startswith("*") or parameter in multiples_of_16
    }
    source = ASTSource(
        fn=kernel,
        signature={name: arguments.get(name, "constexpr") for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps, "num_stages": num_stages})
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        listing = subprocess.run([CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}
    return Resources(usage["REG"], usage["LOCAL"], usage["STACK"], built.metadata.shared, built.asm["ttir"])


def check_fits(resources: Resources, capability: int) -> None:
    assert resources.spilled == 0 and resources.stack == 0, f"spills: {resources}"
    assert resources.shared <= SHARED_LIMIT[capability], f"{resources.shared} bytes of shared memory on sm_{capability}"
