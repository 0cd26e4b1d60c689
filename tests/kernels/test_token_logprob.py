from __future__ import annotations

from pathlib import Path

import pytest
import token_logprob_oracle as oracle
import torch
from planted import with_bug

from paras2s_kernels import token_logprob
from paras2s_kernels.reference import token_logprob as reference

HERE = Path(__file__).parent
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def run_public(case: oracle.Case, function=token_logprob, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    x = case.logits.detach().to(device).requires_grad_()
    logprob, entropy = function(x, case.ids.to(device), case.temperature)
    loss = logprob @ case.grad_logprob.to(device) + entropy @ case.grad_entropy.to(device)
    (grad,) = torch.autograd.grad(loss, x)
    return logprob.detach().cpu(), entropy.detach().cpu(), grad.cpu()


def op(logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ops.paras2s.token_logprob(logits, ids, temperature)[:2]


@pytest.mark.parametrize("function", (token_logprob, op), ids=("eager", "op"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", (1, 7, 129, 1000))
@pytest.mark.parametrize("rows", (1, 3, 65))
def test_reference(rows: int, vocab: int, dtype: torch.dtype, function) -> None:
    case = oracle.make_case(rows, vocab, dtype)
    oracle.check_close(case, *run_public(case, function))


@pytest.mark.parametrize("function", (token_logprob, op), ids=("eager", "op"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("illegal", (0.3, 0.97))
def test_reference_illegal_ids(illegal: float, dtype: torch.dtype, function) -> None:
    case = oracle.make_case(6, 129, dtype, illegal=illegal)
    case.grad_logprob[:2] = float("nan")
    case.grad_entropy[0] = float("nan")
    x = case.logits.clone().requires_grad_()
    logprob, entropy = function(x, case.ids, case.temperature)
    torch.autograd.backward((logprob, entropy), (case.grad_logprob, case.grad_entropy))
    oracle.check_close(case, logprob.detach(), entropy.detach(), x.grad)
    assert logprob[0] == logprob[1] == float("-inf") and entropy[0] == 0
    assert x.grad.isfinite().all() and not x.grad[0].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_loses_at_most_twice_what_eager_loses(dtype: torch.dtype) -> None:
    case = oracle.make_case(65, 1000, dtype)
    oracle.check_against_eager(case, *run_public(case))


@pytest.mark.parametrize("unused", (0, 1))
def test_reference_one_gradient_only(unused: int) -> None:
    case = oracle.make_case(5, 129)
    (case.grad_logprob, case.grad_entropy)[unused].zero_()
    x = case.logits.clone().requires_grad_()
    used = token_logprob(x, case.ids, case.temperature)[1 - unused]
    used.backward((case.grad_logprob, case.grad_entropy)[1 - unused])
    torch.testing.assert_close(x.grad.double(), oracle.exact(case)[2], rtol=2e-5, atol=2e-6)


def test_reference_strided_rows_temperature_one_and_no_rows() -> None:
    case = oracle.make_case(5, 129, temperature=1.0, strided=True)
    oracle.check_close(case, *run_public(case))
    logprob, entropy = token_logprob(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64))
    assert logprob.shape == entropy.shape == (0,)


def test_reference_more_than_65535_rows() -> None:
    logits = torch.randn(70_000, 3)
    logprob, entropy = token_logprob(logits, torch.full((70_000,), 2))
    torch.testing.assert_close(logprob, logits.log_softmax(-1)[:, 2], rtol=1e-5, atol=1e-6)
    assert entropy.max() <= torch.log(torch.tensor(3.0)) + 1e-6


BUGS = {
    "sign_of_log_sum": (".log_().neg_()", ".log_()"),
    "temperature_of_logprob": (".mul_(inv_temperature).sub_(log_sum)", ".sub_(log_sum)"),
    "no_floor": ("return z.clamp_(min=_FLOOR)", "return z"),
    "entropy_sign": (
        "entropy = log_sum - torch.linalg.vecdot(p, z)",
        "entropy = log_sum + torch.linalg.vecdot(p, z)",
    ),
    "backward_temperature": (
        "grad_logprob.mul_(inv_temperature).unsqueeze(1))",
        "grad_logprob.unsqueeze(1))",
    ),
    "backward_entropy": ("(entropy - log_sum)", "(entropy + log_sum)"),
    "impossible_token_learns": ("grad_logprob.masked_fill(impossible, 0.0)", "grad_logprob.clone()"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_in_the_reference_is_caught(bug: str, tmp_path: Path) -> None:
    module = with_bug(Path(reference.__file__), tmp_path, bug, *BUGS[bug])
    with pytest.raises(AssertionError, match=r"logprob:|entropy:|gradient:"):
        oracle.check(oracle.make_case(3, 129), module.forward, module.backward)
        oracle.check(oracle.make_case(3, 129, illegal=0.3), module.forward, module.backward)


GOOD = (torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64), 1.0)


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    (
        (0, torch.zeros(5), "logits: expected"),
        (0, torch.zeros(2, 0), "logits: expected"),
        (0, torch.zeros(2, 5, dtype=torch.float64), "logits: expected float32"),
        (0, torch.zeros(5, 2).T, "logits: the last dimension"),
        (1, torch.zeros(3, dtype=torch.int64), "ids: expected"),
        (1, torch.zeros(2, dtype=torch.int32), "ids: expected int64"),
        (1, torch.zeros(2, dtype=torch.int64, device="meta"), "ids: on meta"),
        (1, torch.tensor([0, 5]), r"ids: 5 in row 1 is outside \[0, 5\)"),
        (1, torch.tensor([-1, 0]), "ids: -1 in row 0"),
        (2, 0.0, "temperature: expected"),
        (2, float("nan"), "temperature: expected"),
        (2, float("inf"), "temperature: expected"),
    ),
)
def test_what_it_cannot_take(position: int, wrong: object, message: str) -> None:
    arguments = [*GOOD]
    arguments[position] = wrong
    with pytest.raises(ValueError, match=message):
        token_logprob(*arguments)


def test_op_is_registered_right() -> None:
    case = oracle.make_case(3, 9)
    arguments = (case.logits.clone().requires_grad_(), case.ids, case.temperature)
    torch.library.opcheck(torch.ops.paras2s.token_logprob.default, arguments)


def test_compiles_to_one_graph() -> None:
    case = oracle.make_case(5, 33)
    compiled = torch.compile(token_logprob, fullgraph=True, backend="aot_eager")
    oracle.check_close(case, *run_public(case, compiled))
    with pytest.raises(ValueError, match="ids: 33"):
        compiled(case.logits, torch.full((5,), 33), 0.8)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", (1, 7, 1000, 5001, 168_448))
def test_gpu(vocab: int, dtype: torch.dtype) -> None:
    for case in (
        oracle.make_case(65, vocab, dtype),
        oracle.make_case(5, max(vocab, 2), dtype, illegal=0.3, strided=True),
    ):
        case.grad_logprob[1:2] = 0.0 if case.logits[1, case.ids[1]] == float("-inf") else case.grad_logprob[1]
        x = case.logits.cuda().requires_grad_()
        logprob, entropy = token_logprob(x, case.ids.cuda(), case.temperature)
        torch.autograd.backward((logprob, entropy), (case.grad_logprob.cuda(), case.grad_entropy.cuda()))
        oracle.check_close(case, logprob.detach().cpu(), entropy.detach().cpu(), x.grad.cpu())


@pytest.mark.gpu
def test_gpu_many_rows_and_far_offsets() -> None:
    logits = torch.randn(70_000, 40_000, dtype=torch.bfloat16, device="cuda")  # 2.8e9 elements, past 31 bits
    ids = torch.randint(0, 40_000, (70_000,), device="cuda")
    logprob, _ = token_logprob(logits, ids)
    tail = logits[-3:].double().log_softmax(-1).gather(1, ids[-3:, None])[:, 0]
    torch.testing.assert_close(logprob[-3:].double(), tail, rtol=1e-5, atol=1e-5)
