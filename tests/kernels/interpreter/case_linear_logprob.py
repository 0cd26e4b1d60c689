"""linear_logprob's Triton kernels in the interpreter; run by ../test_linear_logprob.py in its own process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import interpreter_bf16
import linear_logprob_oracle as oracle
import pytest
import torch
from launches import record_grids
from planted import with_bug

from paras2s_kernels import force, linear_logprob
from paras2s_kernels.gpu import linear_logprob as kernel

interpreter_bf16.install()

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# columns -> columns of a piece, block: one partly filled block; several blocks a piece, several pieces, the last of them odd
PIECES = {1: (256, 256), 7: (256, 256), 129: (128, 64), 300: (130, 64)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", PIECES)
@pytest.mark.parametrize("rows", (1, 3, 10))
def test_both_directions(rows: int, vocab: int, dtype: torch.dtype) -> None:
    width, block = PIECES[vocab]
    oracle.check(oracle.make_case(rows, vocab, dtype=dtype), kernel.forward, kernel.backward, tokens=4, width=width, block=block)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_rows(dtype: torch.dtype) -> None:
    case = oracle.make_case(5, 70, dtype=dtype, strided=True)
    assert case.hidden.stride(0) == case.weight.stride(0) == 27
    oracle.check(case, kernel.forward, kernel.backward, tokens=3, width=48, block=32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loses_at_most_twice_what_eager_loses(dtype: torch.dtype) -> None:
    case = oracle.make_case(12, 300, dtype=dtype)
    oracle.check_against_eager(case, *oracle.run(case, kernel.forward, kernel.backward, tokens=8, width=160, block=64))


def test_large_logits_keep_their_differences() -> None:
    case = oracle.make_case(3, 129)
    case.hidden[:, 0], case.weight[:, 0] = 8.0, 16.0
    logprob, entropy, *_ = oracle.run(case, kernel.forward, kernel.backward, width=64, block=32)
    want_logprob, want_entropy, *_ = oracle.exact(case)
    torch.testing.assert_close(logprob.double(), want_logprob, rtol=1e-5, atol=2e-4)  # a logit of 128 has steps of 1.5e-5
    torch.testing.assert_close(entropy.double(), want_entropy, rtol=1e-5, atol=2e-4)


def test_the_grids_are_such_that_rows_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = record_grids(monkeypatch, kernel, "merge_kernel", "gradient_kernel")
    rows, hidden, weight = torch.zeros(70_000), torch.zeros(70_000, 1), torch.zeros(3, 1)
    kernel.forward(hidden, weight, rows.long(), 1.0, tokens=70_000)
    kernel.backward(hidden, weight, rows.long(), 1.0, rows, rows, rows, rows, rows, True, True, tokens=70_000)
    assert grids == [(70_000,), (70_000, 1)]  # dimension 0 ends at 2**31 - 1, the others at 65,535
    grids.clear()
    kernel.forward(hidden, weight, rows.long(), 1.0)
    assert sum(grid[0] for grid in grids) == 70_000 and max(grid[0] for grid in grids) == kernel.TOKENS


def test_what_is_held_at_a_time_is_bounded() -> None:
    for rows, vocab in ((1, 151_680), (2000, 1026), (16_384, 151_680), (10**6, 16_896)):
        tokens, columns = kernel._split(rows, vocab, None, None)
        assert (tokens[0].stop - tokens[0].start) * (columns[0].stop - columns[0].start) <= kernel.LOGITS
        assert tokens[-1].stop == rows and columns[-1].stop == vocab


def test_id_out_of_range_is_nan_and_leaves_the_other_rows() -> None:
    case = oracle.make_case(4, 50)
    want = oracle.exact(case)[0]
    case.ids[1], case.ids[2] = 50, -1
    logprob, entropy, *_ = kernel.forward(case.hidden, case.weight, case.ids, case.temperature, width=20)
    assert logprob[1:3].isnan().all() and entropy.isfinite().all()
    torch.testing.assert_close(logprob[[0, 3]].double(), want[[0, 3]], rtol=1e-5, atol=1e-5)


def test_only_what_is_needed() -> None:
    case = oracle.make_case(4, 50)
    arguments = (case.hidden, case.weight, case.ids, case.temperature)
    _, *rows = kernel.forward(*arguments)
    both = kernel.backward(*arguments, *rows, case.grad_logprob, None, True, True)
    for needed in ((True, False), (False, True)):
        grads = kernel.backward(*arguments, *rows, case.grad_logprob, None, *needed)
        for need, grad, want in zip(needed, grads, both, strict=True):
            assert torch.equal(grad, want) if need else not grad.numel()
    no_entropy = replace(case, grad_entropy=torch.zeros(4))
    torch.testing.assert_close(both[0].double(), oracle.exact(no_entropy)[2], rtol=1e-5, atol=1e-5)


def test_through_the_public_function() -> None:
    case = oracle.make_case(3, 129, dtype=torch.bfloat16)
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
    with force("triton"):
        logprob, entropy, kl = linear_logprob(hidden, weight, case.ids, case.temperature)
        (logprob @ case.grad_logprob + entropy @ case.grad_entropy).backward()
    oracle.check_close(case, logprob.detach(), entropy.detach(), hidden.grad, weight.grad)
    assert not kl.any()


def test_products_get_rows_that_begin_at_16_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, product = [], kernel._product

    def record(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        seen.extend((a, b) if out is None else (a, b, out))
        return product(a, b, out)

    monkeypatch.setattr(kernel, "_product", record)
    oracle.run(oracle.make_case(3, 99, size=64, dtype=torch.float16), kernel.forward, kernel.backward, width=50)
    assert len(seen) == 2 * 3 + 2 * (3 + 2 + 2)
    assert all(max(x.stride()) * x.element_size() % 16 == 0 for x in seen)


BUGS = {
    "sum_not_rescaled": ("s = scale * s + tl.sum(e, 0)", "s = s + tl.sum(e, 0)"),
    "entropy_sum_not_rescaled": ("t = scale * (t + shift * s)", "t = (t + shift * s)"),
    "entropy_sum_not_shifted": ("t = scale * (t + shift * s)", "t = scale * t"),
    "padding_counts": ("e = tl.where(inside, tl.exp(z), 0.0)", "e = tl.exp(z)"),
    "padding_not_masked": ("z = tl.where(inside, (x - new_m) * inv_temperature, 0.0)", "z = (x - new_m) * inv_temperature"),
    "nothing_is_infinite": ("_NOTHING = -1e30", '_NOTHING = float("-inf")'),
    "sums_of_the_last_piece": ("s = tl.load(sums + row)", "s = 0.0"),
    "moments_of_the_last_piece": ("t = tl.load(moments + row)", "t = 0.0"),
    "maximum_not_kept": ("tl.store(row_max + row, m)", "tl.store(row_max + row, m + 1.0)"),
    "id_of_the_first_piece": ("column = tl.load(ids + row) - first", "column = tl.load(ids + row)"),
    "id_lost_in_the_next_piece": ("mask=here, other=0.0), mask=here)", "mask=here, other=0.0))"),
    "rows_overlap": ("base = logits + row * row_stride", "base = logits + row * (row_stride - 1)"),
    "no_gaps_between_rows": ("base = logits + row * row_stride", "base = logits + row * width"),
    "no_gaps_between_rows_of_the_gradient": ("tl.store(grad + row * row_stride", "tl.store(grad + row * width"),
    "entropy_sign": ("log_sum - moments / sums", "log_sum + moments / sums"),
    "logprob_without_temperature": ("(chosen - row_max) * (1.0 / temperature) - log_sum", "(chosen - row_max) - log_sum"),
    "backward_softmax_without_temperature": ("tl.load(row_max + row)) * inv_temperature -", "tl.load(row_max + row)) -"),
    "backward_entropy_dropped": ("(log_p + tl.load(entropy + row))", "log_p"),
    "backward_entropy_sign": ("(g_logprob + tl.load(grad_entropy", "(g_logprob - tl.load(grad_entropy"),
    "backward_wrong_column": ("columns == tl.load(ids + row) - first", "columns == tl.load(ids + row)"),
    "backward_without_temperature": ("(g * inv_temperature).to(", "g.to("),
    "backward_first_block_only": ("tl.program_id(1) * BLOCK + tl", "tl"),
    "last_piece_only_to_hidden": ("grad_hidden[piece] += _product", "grad_hidden[piece] = _product"),
    "last_tokens_only_to_weight": ("grad_head += _product", "grad_head = _product"),
    "rounded_logits": (
        "return torch.mm(a.float(), b.float(), out=out)",
        "return (a @ b).float() if out is None else out.copy_(a @ b)",
    ),
}  # fmt: skip


def _suite(module: object) -> None:
    forward, backward = module.forward, module.backward  # type: ignore[attr-defined]
    oracle.check(oracle.make_case(5, 129), forward, backward, tokens=3, width=48, block=32)
    oracle.check(oracle.make_case(3, 70, dtype=torch.bfloat16), forward, backward, tokens=2, width=40, block=64)


def test_the_planted_bugs_start_from_a_kernel_that_passes() -> None:
    _suite(kernel)


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_planted_bug_is_caught(bug: str, tmp_path: Path) -> None:
    module = with_bug(Path(kernel.__file__), tmp_path, bug, *BUGS[bug])
    with pytest.raises(AssertionError, match=r"logprob:|entropy:|gradient of"):
        _suite(module)
