"""varlen_attention's kernels compiled for a GPU; run by ../test_varlen_attention.py in its own process."""

from __future__ import annotations

from pathlib import Path

import pytest
from ahead_of_time import check_fits
from planted import with_bug
from varlen_attention_builds import BYTES, TABLES, build, check_offsets

from paras2s_kernels.gpu import varlen_attention as kernel


@pytest.mark.parametrize("function", TABLES)
@pytest.mark.parametrize(("dtype", "dim"), (("bf16", 128), ("fp32", 32)))
def test_it_fits_and_its_offsets_are_64_bit(dtype: str, dim: int, function: str) -> None:
    built = build(getattr(kernel, function), 90, dtype, dim, kernel.tile_for(TABLES[function], dim, BYTES[dtype]))
    check_fits(built, 90)
    check_offsets(built)


def test_delta_fits_and_its_offsets_are_64_bit() -> None:
    built = build(kernel.delta_kernel, 90, "fp32", 256, kernel.Tile(kernel.DELTA_ROWS, 16, 4))
    check_fits(built, 90)
    check_offsets(built)


@pytest.mark.parametrize("narrow", ("start", "head"))
def test_planted_narrow_offset_is_caught(narrow: str, tmp_path: Path) -> None:
    right, wrong = {
        "start": ("return start, end - start, position, rest", "return start.to(tl.int32), end - start, position, rest"),
        "head": ("head = tl.program_id(1).to(tl.int64)\n    heads = tl.num_programs(1)\n    kv_head",
                 "head = tl.program_id(1)\n    heads = tl.num_programs(1)\n    kv_head"),
    }[narrow]  # fmt: skip
    text = Path(kernel.__file__).read_text()
    first = text.index("def _place") if narrow != "head" else text.index("def forward_kernel")
    body = text[first : text.index("def delta_kernel")]
    module = with_bug(Path(kernel.__file__), tmp_path, f"narrow_{narrow}", body, body.replace(right, wrong))
    with pytest.raises(AssertionError, match="offsets below 64 bits"):
        check_offsets(build(module.forward_kernel, 90, "bf16", 16, kernel.Tile(16, 16, 4)))


def test_planted_spill_is_caught() -> None:
    with pytest.raises(AssertionError, match="spills"):
        check_fits(build(kernel.forward_kernel, 90, "bf16", 128, kernel.Tile(128, 64, 4)), 90)
