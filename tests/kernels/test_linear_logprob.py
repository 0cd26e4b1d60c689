from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import linear_logprob_oracle as oracle
import pytest
import torch
from planted import with_bug

from paras2s_kernels import linear_logprob
from paras2s_kernels.reference import linear_logprob as reference

HERE = Path(__file__).parent
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def run_public(case: oracle.Case, function=linear_logprob, device: str = "cpu") -> oracle.Results:
    hidden, weight = (x.detach().to(device).requires_grad_() for x in (case.hidden, case.weight))
    logprob, entropy = function(hidden, weight, case.ids.to(device), case.temperature)[:2]
    loss = logprob @ case.grad_logprob.to(device) + entropy @ case.grad_entropy.to(device)
    grads = torch.autograd.grad(loss, (hidden, weight))
    return logprob.detach().cpu(), entropy.detach().cpu(), grads[0].cpu(), grads[1].cpu()


def op(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, temperature: float) -> tuple[torch.Tensor, ...]:
    return torch.ops.paras2s.linear_logprob(hidden, weight, ids, temperature)


@pytest.mark.parametrize("function", (linear_logprob, op), ids=("eager", "op"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", (1, 7, 1000))
@pytest.mark.parametrize("rows", (1, 3, 300))
def test_reference(rows: int, vocab: int, dtype: torch.dtype, function, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_TOKENS", 64)
    monkeypatch.setattr(reference, "_CHUNK", 1000)  # several pieces, the last of them short
    case = oracle.make_case(rows, vocab, dtype=dtype, strided=True)
    oracle.check_close(case, *run_public(case, function))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_loses_at_most_twice_what_eager_loses(dtype: torch.dtype) -> None:
    case = oracle.make_case(65, 1000, dtype=dtype)
    oracle.check_against_eager(case, *run_public(case))


@pytest.mark.parametrize("function", (linear_logprob, op), ids=("eager", "op"))
def test_one_gradient_only(function) -> None:
    case = oracle.make_case(5, 129)
    for frozen in (0, 1):
        tensors = [case.hidden.clone(), case.weight.clone()]
        tensors[1 - frozen].requires_grad_()
        function(*tensors, case.ids, case.temperature)[0].sum().backward()
        assert tensors[frozen].grad is None and tensors[1 - frozen].grad is not None
    entropy_only = oracle.Case(case.hidden, case.weight, case.ids, case.temperature, torch.zeros(5), case.grad_entropy)
    hidden = case.hidden.clone().requires_grad_()
    (function(hidden, case.weight, case.ids, case.temperature)[1] @ case.grad_entropy).backward()
    torch.testing.assert_close(hidden.grad.double(), oracle.exact(entropy_only)[2], rtol=1e-5, atol=1e-5)


def test_more_than_65535_rows_and_no_rows() -> None:
    case = oracle.make_case(70_000, 3, size=2)
    case.grad_logprob[100:69_900] = case.grad_entropy[100:69_900] = 0.0  # a sum of all has an error of its own
    oracle.check_close(case, *run_public(case))
    outputs = linear_logprob(torch.zeros(0, 4), torch.zeros(7, 4), torch.zeros(0, dtype=torch.int64), ref_logprob=torch.zeros(0))
    assert all(output.shape == (0,) for output in outputs)


def test_kl_is_k3_and_has_its_gradient() -> None:
    case = oracle.make_case(9, 50)
    ref = oracle.exact(case)[0].float() + torch.randn(9, generator=torch.Generator().manual_seed(1))
    tensors = [x.double().requires_grad_() for x in (case.hidden, case.weight)]
    logs = (tensors[0] @ tensors[1].t() / case.temperature).log_softmax(-1)
    d = ref.double() - logs.gather(1, case.ids[:, None])[:, 0]
    want = d.exp() - d - 1
    want_grads = torch.autograd.grad(want @ case.grad_logprob.double(), tensors)
    got_tensors = [x.clone().requires_grad_() for x in (case.hidden, case.weight)]
    got = linear_logprob(*got_tensors, case.ids, case.temperature, ref.clone().requires_grad_())[2]
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    for grad, expected in zip(torch.autograd.grad(got @ case.grad_logprob, got_tensors), want_grads, strict=True):
        torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-5)
    logprob, _, none = linear_logprob(case.hidden, case.weight, case.ids, case.temperature)
    assert not none.any()
    itself = linear_logprob(case.hidden, case.weight, case.ids, case.temperature, logprob + 1e-4)[2]
    torch.testing.assert_close(itself, torch.full((9,), 5e-9), rtol=0.1, atol=0.0)  # exp(d) - 1 - d in fp32 would be 0 or 1e-7


@pytest.mark.parametrize("function", (linear_logprob, torch.compile(linear_logprob, backend="aot_eager")), ids=("eager", "compiled"))
def test_under_autocast_it_casts_as_linear_does_and_keeps_float32_logits(function) -> None:
    case = oracle.make_case(9, 50, dtype=torch.bfloat16)
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logprob, entropy, _ = function(hidden, weight, case.ids, case.temperature)
        (logprob @ case.grad_logprob + entropy @ case.grad_entropy).backward()
    assert weight.grad.dtype == torch.float32
    oracle.check_close(case, logprob.detach(), entropy.detach(), hidden.grad, weight.grad.bfloat16())


MEMORY = """
import re, torch
from paras2s_kernels import linear_logprob
rows, vocab = 16384, 8192
hidden, weight = torch.randn(rows, 8, requires_grad=True), torch.randn(vocab, 8, requires_grad=True)
ids = torch.randint(0, vocab, (rows,))

def call(some):
    outputs = linear_logprob(hidden[:some], weight, ids[:some], 1.0, torch.zeros(some))
    sum(output.sum() for output in outputs).backward()

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

call(16)
before = peak()
call(rows)
print(peak() - before, rows * vocab * 4)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of its memory from Linux")
def test_memory_is_far_below_that_of_the_logits() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True, check=True)
    grown, logits = (int(number) for number in done.stdout.split())
    assert grown < logits / 4, f"{grown / 2**20:.0f} MiB, where the logits alone would be {logits / 2**20:.0f}"


BUGS = {
    "weight_of_the_last_piece": ("grad_head.addmm_(grad.t(), states)", "grad_head = grad.t() @ states"),
    "ids_of_the_first_piece": ("token_logprob.forward(hidden[piece].float() @ head, ids[piece]",
                               "token_logprob.forward(hidden[piece].float() @ head, ids[: piece.stop - piece.start]"),
    "entropy_and_log_sum_swapped": ("entropy[piece], row_max[piece], log_sum[piece]", "log_sum[piece], row_max[piece], entropy[piece]"),
    "gradients_swapped": ("None if grad_logprob is None else grad_logprob[piece], None if grad_entropy is None else grad_entropy[piece]",
                          "grad_entropy[piece], grad_logprob[piece]"),
    "rounded_logits": ("hidden[piece].float() @ head, ids", "(hidden[piece] @ weight.t()).float(), ids"),
    "rounded_recomputation": ("states @ head.t()", "(hidden[piece] @ weight.t()).float()"),
    "last_rows_left_out": ("range(0, rows, size)", "range(0, rows - 1, size)"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_in_the_reference_is_caught(bug: str, tmp_path: Path) -> None:
    module = with_bug(Path(reference.__file__), tmp_path, bug, *BUGS[bug])
    with pytest.raises(AssertionError, match=r"logprob:|entropy:|gradient of"):
        for checked in (reference, module):  # the first must pass
            checked._TOKENS, checked._CHUNK, before = 8, 1, (checked._TOKENS, checked._CHUNK)
            try:
                oracle.check(oracle.make_case(33, 129, dtype=torch.bfloat16), checked.forward, checked.backward)
                oracle.check(oracle.make_case(33, 129), checked.forward, checked.backward)
            except AssertionError:
                assert checked is module, "the reference itself fails"
                raise
            finally:
                checked._TOKENS, checked._CHUNK = before


GOOD = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(5, 4), "ids": torch.zeros(2, dtype=torch.int64), "temperature": 1.0}


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    (
        ("hidden", torch.zeros(4), "expected"),
        ("hidden", torch.zeros(2, 0), "expected"),
        ("hidden", torch.zeros(2, 4, dtype=torch.float64), "expected float32"),
        ("weight", torch.zeros(0, 4), "expected"),
        ("weight", torch.zeros(5, 3), r"expected \[V, 4\]"),
        ("weight", torch.zeros(5, 4, dtype=torch.bfloat16), "expected torch.float32"),
        ("weight", torch.zeros(5, 4, device="meta"), "on meta"),
        ("ids", torch.zeros(3, dtype=torch.int64), "expected"),
        ("ids", torch.zeros(2, dtype=torch.int32), "expected torch.int64"),
        ("ids", torch.zeros(2, dtype=torch.int64, device="meta"), "on meta"),
        ("ids", torch.tensor([0, 5]), r"5 in row 1 is outside \[0, 5\)"),
        ("ids", torch.tensor([-1, 0]), "-1 in row 0"),
        ("ref_logprob", torch.zeros(3), "expected"),
        ("ref_logprob", torch.zeros(2, dtype=torch.float64), "expected torch.float32"),
        ("ref_logprob", torch.zeros(2, device="meta"), "on meta"),
        ("temperature", 0.0, "expected"),
        ("temperature", float("nan"), "expected"),
        ("temperature", float("inf"), "expected"),
    ),
)
def test_what_it_cannot_take(name: str, wrong: object, message: str) -> None:
    linear_logprob(**GOOD)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        linear_logprob(**{**GOOD, name: wrong})


def test_op_is_registered_right() -> None:
    case = oracle.make_case(3, 9, size=4)
    for frozen in (False, True):
        arguments = (case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_(not frozen), case.ids, case.temperature)
        torch.library.opcheck(torch.ops.paras2s.linear_logprob.default, arguments)


def test_compiles_to_one_graph() -> None:
    case = oracle.make_case(5, 33)
    oracle.check_close(case, *run_public(case, torch.compile(linear_logprob, fullgraph=True, backend="aot_eager")))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", (1, 7, 1000, 16_896))
def test_gpu(vocab: int, dtype: torch.dtype) -> None:
    case = oracle.make_case(65, vocab, size=64, dtype=dtype, strided=True)
    oracle.check_close(case, *run_public(case, device="cuda"))


@pytest.mark.gpu
def test_gpu_memory_and_many_rows() -> None:
    rows, vocab = 70_000, 40_000  # 2.8e9 logits, past 31 bits: 11 GB in fp32
    case = oracle.make_case(rows, vocab, size=16, dtype=torch.bfloat16)
    hidden, weight, ids = (x.cuda() for x in (case.hidden, case.weight, case.ids))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    logprob, entropy, _ = linear_logprob(hidden.requires_grad_(), weight.requires_grad_(), ids)
    (logprob.sum() + entropy.sum()).backward()
    assert torch.cuda.max_memory_allocated() - before < 2**30
    want = (hidden[-3:].double() @ weight.double().t()).log_softmax(-1).gather(1, ids[-3:, None])[:, 0]
    torch.testing.assert_close(logprob[-3:].double(), want, rtol=1e-5, atol=1e-5)
