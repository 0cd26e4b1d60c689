"""sample_logprob's kernel compiled for three GPUs; run by ../test_sample_logprob.py in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ahead_of_time import SHARED_LIMIT, Resources, check_fits, compile_for
from planted import with_bug

from paras2s_kernels.gpu import sample_logprob as kernel

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_WHOLE: dict[str, bool] = {"GREEDY": False, "TOP_K": False, "TOP_P": False}
_RESTRICTED = {"GREEDY": False, "TOP_K": True, "TOP_P": True}


def _build(
    function: Any, capability: int, dtype: str, block: int, choice: dict[str, bool], stride: str = "i32", seed: str = "i64"
) -> Resources:
    types = {"logits": f"*{dtype}", "row_ids": "*i64", "steps": "*i64", "ids": "*i64", "logprob": "*fp32"}
    types |= {"row_stride": stride, "step_stride": "i32", "vocab": "i32", "seed": seed, "stream": "i32"}
    types |= {"inv_temperature": "fp32", "top_k": "i32", "top_p": "fp32"}
    constants = {**choice, "BLOCK": block, "DIGITS": kernel.DIGITS[_DTYPES[dtype]]}
    return compile_for(capability, function, types, constants, kernel.CONFIGS.get(block, 1))


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize(("capability", "block"), [(90, 256), (90, 1024), *((capability, 4096) for capability in SHARED_LIMIT)])
def test_fits(capability: int, block: int, dtype: str) -> None:
    check_fits(_build(kernel.sample_kernel, capability, dtype, block, _RESTRICTED), capability)


@pytest.mark.parametrize("choice", (_WHOLE, {**_WHOLE, "TOP_K": True}, {**_WHOLE, "TOP_P": True}, {**_RESTRICTED, "GREEDY": True}), ids=str)
def test_every_choice_fits(choice: dict[str, bool]) -> None:
    check_fits(_build(kernel.sample_kernel, 90, "bf16", 4096, choice), 90)


def test_seeds_of_32_bits_compile() -> None:  # Triton takes a small seed for one
    check_fits(_build(kernel.sample_kernel, 90, "bf16", 256, _WHOLE, seed="i32"), 90)


def _check_offsets(resources: Resources) -> None:
    """Both products with the row number: by the stride of the logits and by that of the steps."""
    products = [line for line in resources.ttir.splitlines() if "arith.muli" in line and "%row" in line]
    assert len(products) >= 2 and all(": i64" in line for line in products), f"offsets below 64 bits: {products}"


@pytest.mark.parametrize("stride", ("i32", "i64"))
def test_row_offsets_are_64_bit(stride: str) -> None:
    _check_offsets(_build(kernel.sample_kernel, 90, "bf16", 256, _WHOLE, stride))


def test_planted_narrow_offset_is_caught(tmp_path: Path) -> None:
    right, wrong = "row = tl.program_id(0).to(tl.int64)", "row = tl.program_id(0)"
    module = with_bug(Path(kernel.__file__), tmp_path, "narrow_offset", right, wrong)
    with pytest.raises(AssertionError, match="offsets below 64 bits"):
        _check_offsets(_build(module.sample_kernel, 90, "bf16", 256, _WHOLE))


def test_planted_spill_is_caught() -> None:
    with pytest.raises(AssertionError, match="spills"):
        check_fits(_build(kernel.sample_kernel, 90, "fp32", 2048, _WHOLE), 90)
