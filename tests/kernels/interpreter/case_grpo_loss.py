"""grpo_loss's Triton kernels in the interpreter; run by ../test_grpo_loss.py in its own process."""

from __future__ import annotations

from pathlib import Path

import grpo_loss_oracle as oracle
import interpreter_bf16
import pytest
import torch
from launches import record_grids
from planted import with_bug

from paras2s_kernels import force, grpo_loss
from paras2s_kernels.gpu import grpo_loss as kernel

interpreter_bf16.install()

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("length", "block"), ((1, 128), (7, 128), (57, 16), (129, 64)))
@pytest.mark.parametrize("rows", (1, 3, 9))
def test_numbers(rows: int, length: int, block: int, dtype: torch.dtype) -> None:
    oracle.check(oracle.make_case(rows, length, dtype), kernel.forward, block=block, row_block=4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("garbage", (float("nan"), float("inf"), float("-inf"), 3e4))
def test_what_does_not_count_is_not_read(garbage: float, dtype: torch.dtype) -> None:
    case = oracle.make_case(6, 23, dtype, missing=True, strided=True, garbage=garbage)
    _, _, grad = oracle.check(case, kernel.forward, block=16, row_block=4)
    assert not grad[~case.free | case.advantages.isnan()[:, None]].any()


@pytest.mark.parametrize("rows", (0, 1, 5))
def test_nothing_counts(rows: int) -> None:
    case = oracle.make_case(rows, 7)
    case.advantages[:] = float("nan")
    oracle.check(case, kernel.forward)
    oracle.check(oracle.make_case(rows, 0), kernel.forward)


@pytest.mark.parametrize("missing", (False, True))
def test_no_weight_on_the_kl(missing: bool) -> None:
    case = oracle.make_case(4, 23, kl_weight=0.0, missing=missing)
    oracle.check(case, kernel.forward, block=16)
    loss, _, grad, _ = kernel.forward(*case.arguments)
    case.ref[0] = float("nan")
    again, stats, grad_again, _ = kernel.forward(*case.arguments)
    assert stats[0].isnan() and torch.equal(loss, again) and torch.equal(grad, grad_again)


def test_what_is_not_finite_is_seen() -> None:
    for which in range(3):
        case = oracle.make_case(4, 23)
        case.arguments[which][0, case.free[0]] = float("nan")
        assert kernel.forward(*case.arguments)[0].isnan()


def test_a_ratio_that_overflows_beside_an_advantage_of_zero() -> None:
    case = oracle.make_case(4, 23)
    case.old[2] = -200.0  # advantage 0
    loss, _, grad, _ = kernel.forward(*case.arguments)
    assert loss.isfinite() and grad.isfinite().all()


def test_rows_are_in_the_grid_dimension_that_can_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = record_grids(monkeypatch, kernel, "rows_kernel", "totals_kernel")
    tokens = torch.zeros(70_000, 1)
    kernel.forward(tokens, tokens, tokens, tokens.bool(), tokens[:, 0], 0.2, 0.2, 0.1)
    assert grids == [(70_000,), (1,)]


def test_through_the_public_function() -> None:
    case = oracle.make_case(6, 23, torch.bfloat16, missing=True)
    x = case.new.clone().requires_grad_()
    with force("triton"):
        loss, stats = grpo_loss(x, *case.arguments[1:])
        (3 * loss).backward()
    assert not stats.requires_grad
    third = oracle.Case(*case.arguments)
    oracle.check_close(third, loss.detach(), stats, (x.grad.float() / 3).bfloat16())


def test_other_dtypes_beside_new() -> None:
    case = oracle.make_case(4, 23)
    mixed = oracle.Case(case.new, case.old.bfloat16(), case.ref.half(), case.free, case.advantages.bfloat16(), *case.arguments[5:])
    oracle.check(mixed, kernel.forward, block=16)


BUGS = {
    "stride_of_old": ("old_logprob + row * old_stride", "old_logprob + row * new_stride"),
    "stride_of_ref": ("ref_logprob + row * ref_stride", "ref_logprob + row * new_stride"),
    "stride_of_new": ("new_logprob + row * new_stride", "new_logprob + row * length"),
    "stride_of_free": ("is_free = free + row * free_stride", "is_free = free + row * length"),
    "missing_reward_counts": ("tl.where(advantage == advantage, length, 0)", "length"),
    "missing_row_divides": ("tl.sum((advantage == advantage).to(tl.int32), 0)", "tl.sum(inside.to(tl.int32), 0)"),
    "padding_rows_count": ('mask=inside, other=float("nan")', "mask=inside, other=0.0"),
    "count_beyond_the_row": ("columns, mask=columns < length, other=0)", "columns, mask=columns <= length, other=0)"),
    "count_of_the_last_block": ("        count += ", "        count = "),
    "forced_tokens_divide": ("tl.maximum(count, 1)", "tl.maximum(length, 1)"),
    "empty_row_divides_by_zero": ("1.0 / tl.maximum(count, 1)", "1.0 / tl.maximum(count, 0)"),
    "no_rows_divide_by_zero": ("tl.where(counted > 0, 1.0 / tl.maximum(counted, 1).to(tl.float32), 0.0)",
                               "1.0 / tl.maximum(counted, 1).to(tl.float32)"),
    "policy_of_masked_tokens": ("tl.sum(tl.where(keep, -advantage * tl.where(held, bound, ratio), 0.0), 0)",
                                "tl.sum(-advantage * tl.where(held, bound, ratio), 0)"),
    "gradient_of_masked_tokens": ("tl.where(keep, grad * per_token, 0.0)", "grad * per_token"),
    "policy_of_the_last_block": ("policy += tl.sum(tl.where", "policy = tl.sum(tl.where"),
    "kl_of_the_last_block": ("kl += tl.sum(expected", "kl = tl.sum(expected"),
    "clipped_of_the_last_block": ("clipped += tl.sum(((", "clipped = tl.sum((("),
    "off_of_the_last_block": ("off += tl.sum(tl.abs", "off = tl.sum(tl.abs"),
    "ratio_upside_down": ("tl.exp(new - old)", "tl.exp(old - new)"),
    "distance_upside_down": ("distance = ref - new", "distance = new - ref"),
    "held_on_the_wrong_side": ("tl.where(advantage >= 0, ratio > upper, ratio < lower)",
                               "tl.where(advantage <= 0, ratio > upper, ratio < lower)"),
    "held_on_both_sides": ("held = tl.where(advantage >= 0, ratio > upper, ratio < lower)",
                           "held = (ratio > upper) | (ratio < lower)"),
    "wrong_bound": ("bound = tl.where(advantage >= 0, upper, lower)", "bound = tl.where(advantage >= 0, lower, upper)"),
    "held_token_learns": ("grad = tl.where(held, 0.0, -advantage * ratio)", "grad = -advantage * ratio"),
    "policy_sign": ("-advantage * tl.where(held", "advantage * tl.where(held"),
    "gradient_sign": ("tl.where(held, 0.0, -advantage", "tl.where(held, 0.0, advantage"),
    "gradient_without_ratio": ("tl.where(held, 0.0, -advantage * ratio)", "tl.where(held, 0.0, -advantage)"),
    "k1_for_k3": ("expected - distance - 1.0", "expected - 1.0"),
    "kl_gradient_sign": ("kl_weight * (1.0 - expected)", "kl_weight * (expected - 1.0)"),
    "kl_without_weight": ("total += kl_weight * (kl * per_row)", "total += kl * per_row"),
    "clipped_above_only": ("(apart > clip_high) | (-apart > clip_low)", "(apart > clip_high)"),
    "clips_swapped": ("(apart > clip_high) | (-apart > clip_low)", "(apart > clip_low) | (-apart > clip_high)"),
    "off_policy_sign": ("tl.abs(apart)", "apart"),
    "gradient_lands_in_the_next_row": ("token_grad + row * length", "token_grad + row * length + 1"),
    "kl_of_the_last_rows": ("kl += tl.sum(tl.load", "kl = tl.sum(tl.load"),
    "rows_overlap": ("tl.store(means + row * 4 + 3,", "tl.store(means + row * 4 + 2,"),
    "share_forgotten": ("tl.store(share, per_row)", "tl.store(share, 1.0)"),
}  # fmt: skip


def _suite(module: object) -> None:
    forward = module.forward  # type: ignore[attr-defined]
    oracle.check(oracle.make_case(9, 23, strided=True), forward, block=16, row_block=4)
    oracle.check(oracle.make_case(6, 23, missing=True, garbage=float("nan")), forward, block=16, row_block=4)
    oracle.check(oracle.make_case(2, 3, missing=True, clip_low=0.05, seed=1), forward)
    none = oracle.make_case(2, 3)
    none.advantages[:] = float("nan")
    oracle.check(none, forward)
    assert forward(*none.arguments)[3] == 0, "share: of no rows"


def test_the_planted_bugs_start_from_a_kernel_that_passes() -> None:
    _suite(kernel)


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_planted_bug_is_caught(bug: str, tmp_path: Path) -> None:
    module = with_bug(Path(kernel.__file__), tmp_path, bug, *BUGS[bug])
    with pytest.raises(AssertionError, match=r"loss:|stats:|gradient:|share:"):
        _suite(module)
