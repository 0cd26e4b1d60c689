"""token_logprob's kernels compiled for three GPUs; run by ../test_token_logprob.py in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ahead_of_time import SHARED_LIMIT, Resources, check_fits, compile_for
from planted import with_bug

from paras2s_kernels.gpu import token_logprob as kernel

_ROWS = {name: "*fp32" for name in ("logprob", "entropy", "row_max", "log_sum", "grad_logprob", "grad_entropy")}


def _build(function: Any, capability: int, dtype: str, block: int, num_warps: int, stride: str = "i32") -> Resources:
    types = {"logits": f"*{dtype}", "grad": f"*{dtype}", "ids": "*i64", "row_stride": stride, "vocab": "i32"}
    types |= _ROWS | {"inv_temperature": "fp32"}
    arguments = {name: types[name] for name in function.arg_names if name in types}
    return compile_for(capability, function, arguments, {"BLOCK": block}, num_warps)


@pytest.mark.parametrize("block", kernel.CONFIGS)
@pytest.mark.parametrize("dtype", ("fp32", "fp16", "bf16"))
@pytest.mark.parametrize("capability", SHARED_LIMIT)
@pytest.mark.parametrize("direction", ("forward", "backward"))
def test_fits(direction: str, capability: int, dtype: str, block: int) -> None:
    function = getattr(kernel, f"{direction}_kernel")
    check_fits(_build(function, capability, dtype, block, kernel.CONFIGS[block]), capability)


def _check_offsets(resources: Resources) -> None:
    products = [line for line in resources.ttir.splitlines() if "arith.muli" in line]
    assert products and all(": i64" in line for line in products), f"offsets below 64 bits: {products}"


@pytest.mark.parametrize("stride", ("i32", "i64"))
@pytest.mark.parametrize("direction", ("forward", "backward"))
def test_row_offsets_are_64_bit(direction: str, stride: str) -> None:
    _check_offsets(_build(getattr(kernel, f"{direction}_kernel"), 90, "bf16", 256, 1, stride))


def test_planted_narrow_offset_is_caught(tmp_path: Path) -> None:
    right = "    base = logits + row * row_stride\n    m = tl.full"
    wrong = right.replace("row * ", "tl.program_id(0) * ")
    module = with_bug(Path(kernel.__file__), tmp_path, "narrow_offset", right, wrong)
    with pytest.raises(AssertionError, match="offsets below 64 bits"):
        _check_offsets(_build(module.forward_kernel, 90, "bf16", 256, 1))


def test_planted_spill_is_caught() -> None:
    with pytest.raises(AssertionError, match="spills"):
        check_fits(_build(kernel.backward_kernel, 90, "fp32", 8192, 1), 90)
