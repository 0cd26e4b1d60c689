"""varlen_attention's other tiles compiled for the other GPUs; run by ../test_varlen_attention.py in its own process."""

from __future__ import annotations

from typing import Any

import pytest
from ahead_of_time import check_fits
from varlen_attention_builds import BYTES, TABLES, build

from paras2s_kernels.gpu.varlen_attention import forward_kernel
from paras2s_kernels.gpu.varlen_attention_backward import grad_keys_kernel
from paras2s_kernels.gpu.varlen_tiles import tile_for

# With those of case_varlen_attention.py: each tile of bf16 once, and both types on every GPU. float32 takes seconds a kernel.
BUILDS = [(*where, function) for where in ((80, "bf16", 256), (100, "bf16", 64)) for function in TABLES]
BUILDS += [(*where, function) for where in ((80, "fp32", 128), (100, "fp32", 256)) for function in (forward_kernel, grad_keys_kernel)]


@pytest.mark.parametrize(("capability", "dtype", "dim", "function"), BUILDS)
def test_it_fits(capability: int, dtype: str, dim: int, function: Any) -> None:
    check_fits(build(function, capability, dtype, dim, tile_for(TABLES[function], dim, BYTES[dtype])), capability)
