"""shared_prefix_attention's kernels compiled for three GPUs; run by ../test_shared_prefix_attention.py in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ahead_of_time import SHARED_LIMIT, Resources, check_fits, compile_for
from planted import with_bug

from paras2s_kernels.gpu import shared_prefix_attention as kernel

_TYPES = {name: "*i64" for name in ("starts", "lengths", "prompt_of")}
_TYPES |= {name: "*fp32" for name in ("part_out", "part_max", "part_sum")}
_TYPES |= {name: "i32" for name in ("rows", "prompts", "capacity", "tile_rows", "splits")} | {"scale": "fp32"}
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def _build(function: Any, capability: int, dtype: str, dim: int, queries: int, stride: str = "i32", wide: bool = True) -> Resources:
    types = _TYPES | {name: f"*{dtype}" for name in ("q", "keys", "values", "out")}
    strides = [name for name in function.arg_names if name.startswith(("q_", "k_", "v_"))]
    types |= dict.fromkeys(strides, stride)
    arguments = {name: types[name] for name in function.arg_names if name in types}
    constants = {"HAS_STARTS": True, "REP": 7, "DIM": dim, "BLOCK_M": queries, "BLOCK_D": max(16, 1 << (dim - 1).bit_length())}
    constants |= kernel.launch(dim, _BYTES[dtype], queries, wide or function is kernel.suffix_kernel)
    warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    return compile_for(capability, function, arguments, constants, warps, stages, strides if wide else ())


@pytest.mark.parametrize("dim", (128, 256))
@pytest.mark.parametrize("dtype", ("fp32", "bf16"))
@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_largest_tiles_fit(capability: int, dtype: str, dim: int) -> None:
    check_fits(_build(kernel.prefix_kernel, capability, dtype, dim, kernel.MAX_QUERIES[_BYTES[dtype]]), capability)


@pytest.mark.parametrize("dim", (120, 250))
@pytest.mark.parametrize("dtype", ("fp32", "bf16"))
@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_largest_tiles_of_odd_strides_fit(capability: int, dtype: str, dim: int) -> None:
    queries = kernel.MAX_QUERIES_NARROW[_BYTES[dtype]]
    check_fits(_build(kernel.prefix_kernel, capability, dtype, dim, queries, wide=False), capability)


@pytest.mark.parametrize(("dim", "wide"), ((128, True), (256, True), (120, False), (250, False)))
@pytest.mark.parametrize("dtype", ("fp32", "bf16"))
@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_suffix_fits(capability: int, dtype: str, dim: int, wide: bool) -> None:
    queries = kernel.queries_of_suffix(7, _BYTES[dtype], wide)
    check_fits(_build(kernel.suffix_kernel, capability, dtype, dim, queries, wide=wide), capability)


@pytest.mark.parametrize("dim", (24, 32, 64))
def test_small_heads_fit(dim: int) -> None:
    wide = dim % 16 == 0
    for queries in (kernel.MIN_QUERIES[2], (kernel.MAX_QUERIES if wide else kernel.MAX_QUERIES_NARROW)[2]):
        check_fits(_build(kernel.prefix_kernel, 90, "fp16", dim, queries, wide=wide), 90)
    check_fits(_build(kernel.suffix_kernel, 90, "fp16", dim, kernel.queries_of_suffix(7, 2, wide), wide=wide), 90)


def test_smallest_tiles_and_many_heads_fit() -> None:
    for queries in (kernel.MIN_QUERIES[2], 128):
        check_fits(_build(kernel.prefix_kernel, 90, "bf16", 128, queries), 90)


def _check_offsets(resources: Resources) -> None:
    products = [line for line in resources.ttir.splitlines() if "arith.muli" in line]
    assert products and all("i64" in line for line in products), f"offsets below 64 bits: {products}"


@pytest.mark.parametrize("stride", ("i32", "i64"))
@pytest.mark.parametrize("function", ("prefix_kernel", "suffix_kernel"))
def test_offsets_are_64_bit(function: str, stride: str) -> None:
    _check_offsets(_build(getattr(kernel, function), 90, "bf16", 32, 16, stride))


@pytest.mark.parametrize("narrow", ("row = tl.program_id(0)", "tile = tl.program_id(0)"))
def test_planted_narrow_offset_is_caught(narrow: str, tmp_path: Path) -> None:
    module = with_bug(Path(kernel.__file__), tmp_path, "narrow_offset", f"{narrow}.to(tl.int64)", narrow)
    function = module.suffix_kernel if narrow.startswith("row") else module.prefix_kernel
    with pytest.raises(AssertionError, match="offsets below 64 bits"):
        _check_offsets(_build(function, 90, "bf16", 32, 16))


def test_planted_spill_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"spills"):
        check_fits(_build(kernel.prefix_kernel, 90, "fp32", 128, 64), 90)
