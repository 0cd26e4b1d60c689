"""Compiles a kernel of varlen_attention as it would be launched, and looks at its offsets."""

from __future__ import annotations

import re
from typing import Any

from ahead_of_time import Resources, compile_for

from paras2s_kernels.gpu import varlen_attention as kernel
from paras2s_kernels.gpu import varlen_attention_backward as gradients
from paras2s_kernels.gpu.varlen_tiles import Tile

_FP32 = ("lse", "delta", "grad_lse", "part_k", "part_v")
_TYPES = {name: "*fp32" for name in _FP32} | {"cu": "*i32", "scale": "fp32"}
_TYPES |= {name: "i32" for name in ("tokens", "sequences", "prefix", "heads")}
BYTES = {"fp32": 4, "bf16": 2}
TABLES = {
    kernel.forward_kernel: kernel.FORWARD,
    gradients.grad_queries_kernel: gradients.GRAD_QUERIES,
    gradients.grad_keys_kernel: gradients.GRAD_KEYS,
    gradients.grad_prefix_kernel: gradients.GRAD_KEYS,
}


def build(function: Any, capability: int, dtype: str, dim: int, tile: Tile) -> Resources:
    names = function.arg_names
    strides = [name for name in names if name.endswith(("_token", "_head"))]
    types = _TYPES | dict.fromkeys(strides, "i32")
    arguments = {name: types.get(name, f"*{dtype}") for name in names if not name.isupper()}
    constants = {"HAS_PREFIX": True, "HAS_LSE": True, "REP": 7, "DIM": dim, "BLOCK_M": tile.queries, "BLOCK_N": tile.keys}
    constants["BLOCK_D"] = max(16, 1 << (dim - 1).bit_length())
    constants = {name: value for name, value in constants.items() if name in names}
    return compile_for(capability, function, arguments, constants, tile.warps, tile.stages, strides)


def check_offsets(resources: Resources) -> None:
    """What leads to a tile has 64 bits. Only tiles of numbers are smaller, which are offsets inside a tile, and the two scalars that such
    offsets are multiplied by: REP * key-value heads and d * heads.
    """
    found = re.findall(r"arith\.muli .*?: (?!tensor)(\w+)", resources.ttir)
    narrow = [kind for kind in found if kind != "i64"]
    assert "i64" in found and len(narrow) <= 2, f"offsets below 64 bits: {found}"
