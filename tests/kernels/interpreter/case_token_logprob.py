"""token_logprob's Triton kernels in the interpreter; run by ../test_token_logprob.py in its own process."""

from __future__ import annotations

from pathlib import Path

import interpreter_bf16
import pytest
import token_logprob_oracle as oracle
import torch
from launches import record_grids
from planted import with_bug

from paras2s_kernels import force, token_logprob
from paras2s_kernels.gpu import token_logprob as kernel

interpreter_bf16.install()

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# columns -> block: a row in one partly filled block, and odd rows in several
BLOCKS = {1: 256, 7: 256, 129: 64, 1000: 256}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", BLOCKS)
@pytest.mark.parametrize("rows", (1, 3, 65))
def test_both_directions(rows: int, vocab: int, dtype: torch.dtype) -> None:
    block = BLOCKS[vocab]
    if rows == 65 and vocab > block:  # the interpreter takes milliseconds a block
        rows, block = (9, block) if vocab == 1000 else (rows, 256)
    oracle.check(oracle.make_case(rows, vocab, dtype), kernel.forward, kernel.backward, block=block)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("illegal", (0.3, 0.97))
def test_illegal_ids(illegal: float, dtype: torch.dtype) -> None:
    case = oracle.make_case(6, 129, dtype, illegal=illegal)
    case.grad_logprob[:2] = float("nan")  # what exp(-inf - -inf) in a loss sends back
    case.grad_entropy[0] = float("nan")
    logprob, entropy, grad = oracle.check(case, kernel.forward, kernel.backward, block=32)
    assert logprob[0] == logprob[1] == float("-inf") and entropy[0] == 0
    assert grad.isfinite().all() and not grad[0].any()


def test_first_blocks_wholly_illegal() -> None:
    case = oracle.make_case(4, 129)
    case.logits[:, :70] = float("-inf")
    case.ids[:] = 100
    oracle.check(case, kernel.forward, kernel.backward, block=32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_rows(dtype: torch.dtype) -> None:
    case = oracle.make_case(5, 129, dtype, strided=True)
    assert case.logits.stride(0) == 134
    oracle.check(case, kernel.forward, kernel.backward, block=64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loses_at_most_twice_what_eager_loses(dtype: torch.dtype) -> None:
    case = oracle.make_case(5, 300, dtype)
    oracle.check_against_eager(case, *oracle.check(case, kernel.forward, kernel.backward, block=128))


def test_large_logits_keep_their_differences() -> None:
    case = oracle.make_case(3, 129)
    case.logits.add_(1024.0)
    oracle.check(case, kernel.forward, kernel.backward, block=64)


def test_rows_are_in_the_grid_dimension_that_can_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = record_grids(monkeypatch, kernel, "forward_kernel", "backward_kernel")
    rows = torch.zeros(70_000)
    kernel.forward(rows[:, None], rows.long(), 1.0)
    kernel.backward(rows[:, None], rows.long(), 1.0, rows, rows, rows, rows, rows)
    assert grids == [(70_000,), (70_000,)]  # dimension 0 ends at 2**31 - 1, the others at 65,535


def test_id_out_of_range_is_nan_and_leaves_the_other_rows() -> None:
    case = oracle.make_case(4, 50)
    want = oracle.exact(case)[0]
    case.ids[1], case.ids[2] = 50, -1
    logprob, entropy, *_ = kernel.forward(case.logits, case.ids, case.temperature)
    assert logprob[1:3].isnan().all() and entropy.isfinite().all()
    torch.testing.assert_close(logprob[[0, 3]].double(), want[[0, 3]], rtol=1e-5, atol=5e-6)


def test_through_the_public_function() -> None:
    case = oracle.make_case(3, 129, torch.bfloat16)
    x = case.logits.clone().requires_grad_()
    with force("triton"):
        logprob, entropy = token_logprob(x, case.ids, case.temperature)
        (logprob @ case.grad_logprob + entropy @ case.grad_entropy).backward()
    oracle.check_close(case, logprob.detach(), entropy.detach(), x.grad)
    with force("triton"):
        token_logprob(x, case.ids)[0].sum().backward()  # only one gradient, and that one with stride 0


def test_bf16_repair_rounds_as_torch_does() -> None:
    special = torch.tensor([3.4e38, 1.00390625, 1.01171875, -0.0, float("inf"), float("nan"), 1e-40])  # two ties
    values = torch.cat([torch.randn(4000) * 10.0 ** torch.randint(-30, 30, (4000,)), special])
    want = values.bfloat16()
    got = torch.from_numpy(interpreter_bf16.nearest(values.numpy()))
    torch.testing.assert_close(got, want.float(), rtol=0, atol=0, equal_nan=True)
    bits = torch.from_numpy(interpreter_bf16.narrow(values.numpy()).view("int16"))
    torch.testing.assert_close(bits.view(torch.bfloat16), want, rtol=0, atol=0, equal_nan=True)


BUGS = {
    "sum_not_rescaled": ("s = scale * s + tl.sum(e, 0)", "s = s + tl.sum(e, 0)"),
    "entropy_sum_not_rescaled": ("t = scale * (t + shift * s)", "t = (t + shift * s)"),
    "entropy_sum_not_shifted": ("t = scale * (t + shift * s)", "t = scale * t"),
    "padding_counts": (
        "x = tl.load(base + columns, mask=columns < vocab, other=neg_inf)",
        "x = tl.load(base + columns, mask=columns < vocab, other=0.0)",
    ),
    "mask_one_too_wide": ("mask=columns < vocab, other=neg_inf)", "mask=columns <= vocab, other=neg_inf)"),
    "illegal_not_masked": ("z = tl.where(illegal, 0.0, (x - new_m) * inv_temperature)",
                           "z = (x - new_m) * inv_temperature"),
    "empty_block_not_masked": ("e = tl.where(illegal, 0.0, tl.exp(z))", "e = tl.exp(z)"),
    "shift_from_nothing": ("shift = tl.where(m == neg_inf, 0.0, (m - new_m) * inv_temperature)",
                           "shift = (m - new_m) * inv_temperature"),
    "entropy_sign": ("log_s - t / s", "t / s - log_s"),
    "id_of_first_row": ("x_id = tl.load(base + chosen, mask=in_range, other=0.0)",
                        "x_id = tl.load(logits + chosen, mask=in_range, other=0.0)"),
    "stride_ignored": ("    base = logits + row * row_stride\n    m = tl.full",
                       "    base = logits + row * vocab\n    m = tl.full"),
    "logprob_without_temperature": ("(x_id - m) * inv_temperature - log_s", "(x_id - m) - log_s"),
    "dead_row_has_no_sum": ("s = tl.where(m == neg_inf, 1.0, s)", "s = s + 0.0"),
    "dead_row_learns": ("g_entropy = tl.where(m == neg_inf, 0.0, tl.load(grad_entropy + row))",
                        "g_entropy = tl.load(grad_entropy + row)"),
    "backward_without_temperature": ("(g * inv_temperature).to(", "g.to("),
    "backward_softmax_without_temperature": ("(x - m) * inv_temperature - log_s", "(x - m) - log_s"),
    "backward_entropy_sign": ("g_logprob + g_entropy * (log_p", "g_logprob - g_entropy * (log_p"),
    "backward_entropy_dropped": ("g_entropy * (log_p + row_entropy)", "g_entropy * log_p"),
    "backward_wrong_column": ("columns == chosen, g_logprob", "columns == chosen + 1, g_logprob"),
    "impossible_token_learns": ("g_logprob = tl.where(x_id * inv_temperature == neg_inf, 0.0, ",
                                "g_logprob = ("),
}  # fmt: skip


def _suite(module: object) -> None:
    forward, backward = module.forward, module.backward  # type: ignore[attr-defined]
    oracle.check(oracle.make_case(3, 129, strided=True), forward, backward, block=64)
    illegal = oracle.make_case(3, 129, illegal=0.3)
    illegal.grad_entropy[0] = float("nan")
    oracle.check(illegal, forward, backward, block=64)
    behind = oracle.make_case(2, 129)
    behind.logits[:, :70] = float("-inf")
    behind.ids[:] = 100
    oracle.check(behind, forward, backward, block=64)


def test_the_planted_bugs_start_from_a_kernel_that_passes() -> None:
    _suite(kernel)


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_planted_bug_is_caught(bug: str, tmp_path: Path) -> None:
    module = with_bug(Path(kernel.__file__), tmp_path, bug, *BUGS[bug])
    with pytest.raises(AssertionError, match=r"logprob:|entropy:|gradient:"):
        _suite(module)
