"""varlen_attention's kernels compiled for a GPU; run by ../test_varlen_attention.py in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ahead_of_time import check_fits
from planted import with_bug
from varlen_attention_builds import BYTES, TABLES, build, check_offsets

from paras2s_kernels.gpu import varlen_attention as kernel
from paras2s_kernels.gpu import varlen_attention_backward as gradients
from paras2s_kernels.gpu import varlen_tiles as tiles
from paras2s_kernels.gpu.varlen_tiles import Tile, tile_for


@pytest.mark.parametrize("function", TABLES)
@pytest.mark.parametrize(("dtype", "dim"), (("bf16", 128), ("fp32", 32)))
def test_it_fits_and_its_offsets_are_64_bit(dtype: str, dim: int, function: Any) -> None:
    built = build(function, 90, dtype, dim, tile_for(TABLES[function], dim, BYTES[dtype]))
    check_fits(built, 90)
    check_offsets(built)


def test_delta_fits_and_its_offsets_are_64_bit() -> None:
    built = build(gradients.delta_kernel, 90, "fp32", 256, Tile(gradients.DELTA_ROWS, 16, 4))
    check_fits(built, 90)
    check_offsets(built)


@pytest.mark.parametrize("narrow", ("start", "head"))
def test_planted_narrow_offset_is_caught(narrow: str, tmp_path: Path) -> None:
    right, wrong = {
        "start": ("return start, end - start, position, rest", "return start.to(tl.int32), end - start, position, rest"),
        "head": ("head = tl.program_id(1).to(tl.int64)\n    heads = tl.num_programs(1)\n    kv_head",
                 "head = tl.program_id(1)\n    heads = tl.num_programs(1)\n    kv_head"),
    }[narrow]  # fmt: skip
    if narrow == "start":
        with_bug(Path(tiles.__file__), tmp_path, "narrow_tiles", right, wrong)
        right, wrong = "paras2s_kernels.gpu.varlen_tiles", "planted_narrow_tiles"
    module = with_bug(Path(kernel.__file__), tmp_path, f"narrow_{narrow}", right, wrong)
    with pytest.raises(AssertionError, match="offsets below 64 bits"):
        check_offsets(build(module.forward_kernel, 90, "bf16", 16, Tile(16, 16, 4)))


def test_planted_spill_is_caught() -> None:
    with pytest.raises(AssertionError, match="spills"):
        check_fits(build(kernel.forward_kernel, 90, "bf16", 128, Tile(128, 64, 4)), 90)
