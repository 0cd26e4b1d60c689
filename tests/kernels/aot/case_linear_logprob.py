"""linear_logprob's kernels compiled for three GPUs; run by ../test_linear_logprob.py in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ahead_of_time import SHARED_LIMIT, Resources, check_fits, compile_for
from planted import with_bug

from paras2s_kernels.gpu import linear_logprob as kernel

_ROWS = ("row_max", "sums", "moments", "chosen", "entropy", "log_sum", "grad_logprob", "grad_entropy")


def _build(function: Any, capability: int, dtype: str, block: int, num_warps: int) -> Resources:
    types = {"logits": "*fp32", "grad": f"*{dtype}", "ids": "*i64", "inv_temperature": "fp32"}
    types |= dict.fromkeys(("row_stride", "width", "first"), "i32")
    types |= dict.fromkeys(_ROWS, "*fp32")
    arguments = {name: types[name] for name in function.arg_names if name in types}
    return compile_for(capability, function, arguments, {"BLOCK": block}, num_warps)


@pytest.mark.parametrize("block", kernel.CONFIGS)
@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_merge_fits(capability: int, block: int) -> None:
    check_fits(_build(kernel.merge_kernel, capability, "fp32", block, kernel.CONFIGS[block]), capability)


@pytest.mark.parametrize("dtype", ("fp32", "fp16", "bf16"))
@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_gradient_fits(capability: int, dtype: str) -> None:
    block = kernel.GRADIENT_BLOCK
    check_fits(_build(kernel.gradient_kernel, capability, dtype, block, kernel.CONFIGS[block]), capability)


def _check_offsets(resources: Resources) -> None:
    """Every product of the row with its stride, and there is one, has 64 bits."""
    products = [line for line in resources.ttir.splitlines() if "arith.muli" in line and "%row" in line]
    assert products and all(": i64" in line for line in products), f"offsets below 64 bits: {products}"


@pytest.mark.parametrize("name", ("merge_kernel", "gradient_kernel"))
def test_row_offsets_are_64_bit(name: str, tmp_path: Path) -> None:
    _check_offsets(_build(getattr(kernel, name), 90, "bf16", 256, 1))


@pytest.mark.parametrize("name", ("merge_kernel", "gradient_kernel"))
def test_planted_narrow_offset_is_caught(name: str, tmp_path: Path) -> None:
    following = {"merge_kernel": "    base", "gradient_kernel": "    columns"}[name]
    right, wrong = (f"    row = tl.program_id(0){cast}\n{following}" for cast in (".to(tl.int64)", ""))
    module = with_bug(Path(kernel.__file__), tmp_path, f"narrow_offset_{name}", right, wrong)
    with pytest.raises(AssertionError, match="offsets below 64 bits"):
        _check_offsets(_build(getattr(module, name), 90, "bf16", 256, 1))


def test_planted_spill_is_caught() -> None:
    with pytest.raises(AssertionError, match="spills"):
        check_fits(_build(kernel.merge_kernel, 90, "fp32", 8192, 1), 90)
