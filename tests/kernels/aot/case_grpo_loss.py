"""grpo_loss's kernels compiled for three GPUs; run by ../test_grpo_loss.py in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ahead_of_time import SHARED_LIMIT, Resources, check_fits, compile_for
from planted import with_bug

from paras2s_kernels.gpu import grpo_loss as kernel

_TYPES = {name: "*fp32" for name in ("means", "token_grad", "advantages", "loss", "stats", "share")}
_TYPES |= {"free": "*i1", "length": "i32", "rows": "i32"}
_TYPES |= {name: "fp32" for name in ("clip_low", "clip_high", "lower", "upper", "kl_weight")}


def _build(function: Any, capability: int, dtype: str, block: int, num_warps: int, stride: str = "i32", kl: bool = True) -> Resources:
    types = _TYPES | {f"{name}_logprob": f"*{dtype}" for name in ("new", "old", "ref")}
    types |= {f"{name}_stride": stride for name in ("new", "old", "ref", "free")}
    arguments = {name: types[name] for name in function.arg_names if name in types}
    return compile_for(capability, function, arguments, {"HAS_KL": kl, "BLOCK": block}, num_warps)


@pytest.mark.parametrize("block", kernel.CONFIGS)
@pytest.mark.parametrize("dtype", ("fp32", "fp16", "bf16"))
@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_rows_fit(capability: int, dtype: str, block: int) -> None:
    check_fits(_build(kernel.rows_kernel, capability, dtype, block, kernel.CONFIGS[block]), capability)


@pytest.mark.parametrize("kl", (False, True))
@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_totals_fit(capability: int, kl: bool) -> None:
    check_fits(_build(kernel.totals_kernel, capability, "fp32", kernel.ROW_BLOCK, 4, kl=kl), capability)


def _check_offsets(resources: Resources) -> None:
    products = [line for line in resources.ttir.splitlines() if "arith.muli" in line]
    assert products and all("i64" in line for line in products), f"offsets below 64 bits: {products}"


@pytest.mark.parametrize("stride", ("i32", "i64"))
def test_row_offsets_are_64_bit(stride: str) -> None:
    _check_offsets(_build(kernel.rows_kernel, 90, "bf16", 128, 1, stride))
    _check_offsets(_build(kernel.totals_kernel, 90, "bf16", 128, 1, stride))


@pytest.mark.parametrize("offset", ("new_logprob + row * new_stride", "token_grad + row * length", "free + row * free_stride"))
def test_planted_narrow_offset_is_caught(offset: str, tmp_path: Path) -> None:
    module = with_bug(Path(kernel.__file__), tmp_path, "narrow_offset", offset, offset.replace("row *", "tl.program_id(0) *"))
    with pytest.raises(AssertionError, match="offsets below 64 bits"):
        _check_offsets(_build(module.rows_kernel, 90, "bf16", 128, 1))


def test_planted_spill_is_caught() -> None:
    with pytest.raises(AssertionError, match="spills"):
        check_fits(_build(kernel.rows_kernel, 90, "fp32", 2048, 1), 90)
