from __future__ import annotations

from pathlib import Path

import grpo_loss_oracle as oracle
import pytest
import torch
from planted import with_bug

from paras2s_kernels import grpo_loss
from paras2s_kernels.reference import grpo_loss as reference

HERE = Path(__file__).parent
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAN = float("nan")


def run_public(case: oracle.Case, function=grpo_loss, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    tensors = [argument.to(device) for argument in case.arguments[:5]]
    x = tensors[0].detach().requires_grad_()
    loss, stats = function(x, *tensors[1:], *case.arguments[5:])
    (grad,) = torch.autograd.grad(loss, x)
    return loss.detach().cpu(), stats.detach().cpu(), grad.cpu()


def op(*arguments: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ops.paras2s.grpo_loss(*arguments)[:2]


both = pytest.mark.parametrize("function", (grpo_loss, op), ids=("eager", "op"))


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", (1, 7, 57, 129))
@pytest.mark.parametrize("rows", (1, 3, 9))
def test_reference(rows: int, length: int, dtype: torch.dtype, function) -> None:
    case = oracle.make_case(rows, length, dtype)
    oracle.check_close(case, *run_public(case, function))


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("garbage", (NAN, float("inf"), float("-inf"), 3e4))
def test_reference_what_does_not_count_is_not_read(garbage: float, dtype: torch.dtype, function) -> None:
    case = oracle.make_case(6, 23, dtype, missing=True, strided=True, garbage=garbage)
    loss, stats, grad = run_public(case, function)
    oracle.check_close(case, loss, stats, grad)
    assert not grad[~case.free | case.advantages.isnan()[:, None]].any()


@pytest.mark.parametrize("rows", (0, 1, 5))
def test_reference_nothing_counts(rows: int) -> None:
    case = oracle.make_case(rows, 7)
    case.advantages[:] = NAN
    oracle.check_close(case, *run_public(case))
    oracle.check_close(oracle.make_case(rows, 0), *run_public(oracle.make_case(rows, 0)))


def test_reference_no_weight_on_the_kl() -> None:
    case = oracle.make_case(4, 23, kl_weight=0.0)
    loss, stats, grad = run_public(case)
    oracle.check_close(case, loss, stats, grad)
    case.ref[0] = NAN
    again, stats, grad_again = run_public(case)
    assert stats[0].isnan() and torch.equal(loss, again) and torch.equal(grad, grad_again)


@pytest.mark.parametrize("which", range(3))
def test_reference_what_is_not_finite_is_seen(which: int) -> None:
    case = oracle.make_case(4, 23)
    case.arguments[which][0, case.free[0]] = NAN
    assert run_public(case)[0].isnan()


def test_reference_a_ratio_that_overflows_beside_an_advantage_of_zero() -> None:
    case = oracle.make_case(4, 23)
    case.old[2] = -200.0  # advantage 0
    loss, _, grad = run_public(case)
    assert loss.isfinite() and grad.isfinite().all()


def test_reference_more_than_65535_rows() -> None:
    zeros = torch.zeros(70_000, 2)
    loss, stats = grpo_loss(zeros, zeros, zeros, zeros == 0, torch.arange(70_000.0), 0.2, 0.2, 0.1)
    torch.testing.assert_close(loss, torch.tensor(-69_999 / 2))
    assert not stats.any()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rows,length", ((5, 15), (64, 56), (64, 57)))
def test_it_is_what_plain_torch_makes(rows: int, length: int, seed: int) -> None:
    case = oracle.make_case(rows, length, clip_low=0.2, clip_high=0.2, kl_weight=0.05, seed=seed)
    x = case.new.clone().requires_grad_()
    want, watched = oracle.eager(x, case.old, case.ref, case.free, case.advantages, 0.2, 0.05)
    (want_grad,) = torch.autograd.grad(want, x)
    loss, stats, grad = run_public(case)
    # the same sums in the same order: a few last bits apart at most
    torch.testing.assert_close(loss, want.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(stats, torch.stack([watched[name] for name in ("kl", "clipped", "off_policy")]), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(grad, want_grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("clip", (0.1, 0.2, 0.3))
def test_at_the_bounds_of_the_ratio_it_is_what_plain_torch_makes(clip: float) -> None:
    log = torch.tensor([1 - clip, 1.0, 1 + clip]).log()
    around = torch.stack([log, torch.nextafter(log, log - 1), torch.nextafter(log, log + 1)]).flatten()
    new = around.repeat(3, 1).requires_grad_()
    zeros, advantages = torch.zeros(new.shape), torch.tensor([1.0, -1.0, 0.0])
    want, watched = oracle.eager(new, zeros, zeros, zeros == 0, advantages, clip, 0.3)
    loss, stats = grpo_loss(new, zeros, zeros, zeros == 0, advantages, clip, clip, 0.3)
    torch.testing.assert_close(loss, want)
    assert stats[1] == watched["clipped"]
    torch.testing.assert_close(torch.autograd.grad(loss, new), torch.autograd.grad(want, new), rtol=1e-5, atol=1e-7)


def test_nothing_but_new_and_the_loss_has_a_gradient() -> None:
    case = oracle.make_case(4, 9)
    tensors = [tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in case.arguments[:5]]
    loss, stats = grpo_loss(*tensors, *case.arguments[5:])
    assert loss.requires_grad and not stats.requires_grad
    (loss * 2.5).backward()
    assert all(tensor.grad is None for tensor in tensors[1:])
    torch.testing.assert_close(tensors[0].grad.double(), 2.5 * oracle.exact(case)[2], rtol=2e-5, atol=1e-6)


BUGS = {
    "missing_reward_counts": ("~free | missing.unsqueeze(1)", "~free"),
    "missing_row_divides": ("/ max(rows, 1)", "/ max(len(advantages), 1)"),
    "new_not_masked": ("(new - old_logprob).masked_fill_(ignored, 0.0).exp_()", "(new - old_logprob).exp_()"),
    "distance_not_masked": ("(ref_logprob - new).masked_fill_(ignored, 0.0)", "(ref_logprob - new)"),
    "advantage_not_masked": ("by_row.masked_fill(ignored, 0.0)", "by_row.expand_as(new)"),
    "bounded_on_the_wrong_side": ("up = by_row <= 0", "up = by_row >= 0"),
    "bounded_on_both_sides": ("torch.where(up, -math.inf, 1 - clip_low)", "torch.where(up, 1 - clip_low, 1 - clip_low)"),
    "bounded_above_only": ("torch.where(up, -math.inf, 1 - clip_low)", "torch.where(up, -math.inf, -math.inf)"),
    "held_token_learns": (".masked_fill_(bounded != ratio, 0.0)", ""),
    "gradient_sign": ("(ratio * minus)", "(ratio * -minus)"),
    "policy_sign": ("torch.mul(minus, bounded", "torch.mul(-minus, bounded"),
    "policy_without_bounds": ("torch.mul(minus, bounded", "torch.mul(minus, ratio"),
    "k1_for_k3": ("out=terms[1]).sub_(1)", "out=terms[1])"),
    "clips_swapped": ("(apart > clip_high) | (apart < -clip_low)", "(apart > clip_low) | (apart < -clip_high)"),
    "clipped_above_only": ("(apart > clip_high) | (apart < -clip_low)", "apart > clip_high"),
    "off_policy_sign": ("    apart.abs_()\n", ""),
    "forced_tokens_divide": ("count = free.sum(1)", "count = (free | True).sum(1)"),
    "empty_row_divides_by_zero": (".clamp_(min=1)", ""),
    "kl_without_weight": ("policy + kl_weight * stats[0]", "policy + stats[0]"),
    "kl_gradient_without_weight": ("expected.sub_(1), alpha=kl_weight", "expected.sub_(1)"),
    "kl_gradient_sign": ("token_grad.sub_(expected", "token_grad.add_(expected"),
    "gradient_of_the_sum": ("token_grad.div_(count.unsqueeze(1))", "token_grad"),
    "share_of_all_rows": ("1.0 / rows if rows", "1.0 / len(free) if rows"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_in_the_reference_is_caught(bug: str, tmp_path: Path) -> None:
    module = with_bug(Path(reference.__file__), tmp_path, bug, *BUGS[bug])
    with pytest.raises(AssertionError, match=r"loss:|stats:|gradient:"):
        oracle.check(oracle.make_case(9, 23), module.forward)
        oracle.check(oracle.make_case(6, 23, missing=True, garbage=NAN), module.forward)


TOKENS = torch.zeros(2, 5)
GOOD = {"new_logprob": TOKENS, "old_logprob": TOKENS, "ref_logprob": TOKENS, "free": TOKENS == 0, "advantages": TOKENS[:, 0]}
GOOD |= {"clip_low": 0.2, "clip_high": 0.2, "kl_weight": 0.1}


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    (
        ("new_logprob", TOKENS[0], "expected \\[B, L\\]"),
        ("new_logprob", TOKENS.double(), "expected float32"),
        ("new_logprob", torch.zeros(5, 2).T, "the last dimension"),
        ("old_logprob", TOKENS[:1], "expected \\[2, 5\\]"),
        ("old_logprob", TOKENS.int(), "expected float32"),
        ("ref_logprob", TOKENS[:, :3], "expected \\[2, 5\\]"),
        ("ref_logprob", TOKENS.to("meta"), "on meta"),
        ("free", TOKENS, "expected bool"),
        ("free", (torch.zeros(5, 2) == 0).T, "the last dimension"),
        ("advantages", TOKENS, "expected \\[2\\]"),
        ("advantages", TOKENS[:, 0].double(), "expected float32"),
        ("advantages", TOKENS[:, 0].to("meta"), "on meta"),
        ("clip_low", -0.1, "expected a finite"),
        ("clip_low", 1.1, "expected at most 1"),
        ("clip_high", NAN, "expected a finite"),
        ("kl_weight", float("inf"), "expected a finite"),
    ),
)
def test_what_it_cannot_take(name: str, wrong: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        grpo_loss(**{**GOOD, name: wrong})


def test_op_is_registered_right() -> None:
    case = oracle.make_case(4, 9, missing=True)
    arguments = (case.new.clone().requires_grad_(), *case.arguments[1:])
    torch.library.opcheck(torch.ops.paras2s.grpo_loss.default, arguments)


def test_compiles_to_one_graph() -> None:
    case = oracle.make_case(5, 33, missing=True)
    compiled = torch.compile(grpo_loss, fullgraph=True, backend="aot_eager")
    oracle.check_close(case, *run_public(case, compiled))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", (1, 57, 128, 1500))
def test_gpu(length: int, dtype: torch.dtype) -> None:
    for case in (oracle.make_case(65, length, dtype), oracle.make_case(6, length, dtype, missing=True, strided=True, garbage=NAN)):
        oracle.check_close(case, *run_public(case, device="cuda"))


@pytest.mark.gpu
def test_gpu_many_rows() -> None:
    zeros = torch.zeros(70_000, 2, device="cuda")
    loss, stats = grpo_loss(zeros, zeros, zeros, zeros == 0, torch.arange(70_000.0, device="cuda"), 0.2, 0.2, 0.1)
    torch.testing.assert_close(loss.cpu(), torch.tensor(-69_999 / 2))
    assert not stats.any()
