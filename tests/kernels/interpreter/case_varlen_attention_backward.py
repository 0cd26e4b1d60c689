"""varlen_attention's gradient kernels in the interpreter; run by ../test_varlen_attention_backward.py in its own process."""

from __future__ import annotations

from dataclasses import replace

import interpreter_bf16
import pytest
import torch
import varlen_attention_oracle as oracle
from varlen_attention_grads import check, check_all

from paras2s_kernels import force, varlen_attention
from paras2s_kernels.gpu import varlen_attention_backward as kernel
from paras2s_kernels.reference import varlen_attention as reference

interpreter_bf16.install()

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize("dtype", (FP16, BF16), ids=str)
def test_several_blocks_empty_and_single_tokens(dtype: torch.dtype) -> None:
    check(oracle.make_case((37, 0, 1, 5), 1, 1, 24, 21, dtype, strided=True), kernel)


@pytest.mark.parametrize("dtype", (FP32, BF16), ids=str)
def test_as_it_is_launched(dtype: torch.dtype) -> None:
    check(oracle.make_case((40, 3), 1, 1, 8, 18, dtype), kernel, None, None)


@pytest.mark.parametrize("heads,kv_heads,dim", ((3, 3, 1), (7, 1, 24)))
def test_heads(heads: int, kv_heads: int, dim: int) -> None:
    check(oracle.make_case((9, 3), heads, kv_heads, dim, prefix=5), kernel)


def test_more_keys_than_queries_in_a_tile() -> None:
    check(oracle.make_case((50, 16, 33), 1, 1, 8, prefix=33), kernel, kernel.Tile(16, 32, 1))


@pytest.mark.parametrize("lengths", ((15, 1, 16), (1,) * 17, (0, 0, 3, 0, 0)))
def test_sequences_and_blocks_meet_anywhere(lengths: tuple[int, ...]) -> None:
    check(oracle.make_case(lengths, 1, 1, 8, 16), kernel)


def test_an_empty_prefix_and_more_parts_than_blocks() -> None:
    check(oracle.make_case((5,), prefix=0), kernel)
    check(oracle.make_case((18,), prefix=3), kernel, parts=4)


@pytest.mark.parametrize("lengths", ((), (0, 0)))
def test_no_tokens(lengths: tuple[int, ...]) -> None:
    check(oracle.make_case(lengths, prefix=3), kernel)


def test_without_a_gradient_of_the_sums_or_the_result() -> None:
    case = oracle.make_case((18, 3), 2, 1, 8, prefix=5)
    check(case, kernel, grad_lse=False)
    out, lse = reference.forward(*case.arguments)
    got = kernel.backward(None, case.grad_lse, *case.arguments, out, lse, True)
    case.grad_out.zero_()
    oracle.check_close(case, got, True, oracle.NAMES[2:])


def test_a_gradient_in_any_layout() -> None:
    case = oracle.make_case((18, 3), 2, 1, 8, prefix=5)
    turned = case.grad_out.transpose(1, 2).contiguous().transpose(1, 2)
    assert turned.stride(2) != 1
    check(replace(case, grad_out=turned), kernel)
    same = torch.ones(1).expand(21, 2, 8)  # what the gradient of a sum looks like
    check(replace(case, grad_out=same), kernel)


def test_through_the_public_function() -> None:
    case = oracle.make_case((18, 3), 2, 1, 8, prefix=5, dtype=BF16)
    with force("triton"):
        oracle.check_close(case, oracle.run_function(case, varlen_attention, with_lse=False), with_lse=False)


def test_heads_tiles_tokens_of_no_sequence_and_low_scores() -> None:
    check_all(kernel)
