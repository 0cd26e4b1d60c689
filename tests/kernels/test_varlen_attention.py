from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import varlen_attention_oracle as oracle
from planted import with_bug

from paras2s_kernels import backends, dispatch, force, varlen_attention, varlen_libraries
from paras2s_kernels.reference import varlen_attention as reference

HERE = Path(__file__).parent
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAN = float("nan")
SHAPES = ((37, 0, 1, 5), (6, 6, 6), (6, 6, 3, 3, 6), (1,), (1, 1, 1))


op = torch.ops.paras2s.varlen_attention


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prefix", (None, 0, 21))
@pytest.mark.parametrize("lengths", SHAPES, ids=str)
def test_reference(lengths: tuple[int, ...], prefix: int | None, dtype: torch.dtype) -> None:
    case = oracle.make_case(lengths, prefix=prefix, dtype=dtype, strided=len(lengths) > 3)
    oracle.check_close(case, oracle.run_function(case, varlen_attention, with_lse=False), with_lse=False)
    oracle.check_close(case, oracle.run_function(case, op, with_lse=True))


@pytest.mark.parametrize("heads,kv_heads,dim", ((1, 1, 8), (3, 3, 1), (7, 1, 24), (4, 2, 200)))
def test_reference_heads(heads: int, kv_heads: int, dim: int) -> None:
    case = oracle.make_case((9, 3), heads, kv_heads, dim, prefix=5)
    oracle.check_close(case, oracle.run_function(case, varlen_attention, with_lse=False), with_lse=False)
    oracle.check_close(case, oracle.run_function(case, op, with_lse=True))


@pytest.mark.parametrize("lengths", ((), (0, 0)))
def test_no_tokens(lengths: tuple[int, ...]) -> None:
    case = oracle.make_case(lengths, prefix=3)
    oracle.check_close(case, oracle.run_function(case, varlen_attention, with_lse=False), with_lse=False)
    oracle.check_close(case, oracle.run_function(case, op, with_lse=True))


def test_a_prefix_that_needs_no_gradient_gets_none() -> None:
    case = oracle.make_case(prefix=5)
    leaves = [x.clone().requires_grad_() for x in (case.q, case.k, case.v)]
    for function in (varlen_attention, lambda *arguments: op(*arguments)[0]):
        out = function(*leaves, *case.arguments[3:])
        grads = torch.autograd.grad((out * case.grad_out).sum(), leaves)
        oracle.check_close(case, grads, False, oracle.NAMES[2:])


def test_only_one_of_the_prefixes_needs_a_gradient() -> None:
    case = oracle.make_case(prefix=5)
    prefix_v = case.prefix_v.clone().requires_grad_()
    (grad,) = torch.autograd.grad((op(*case.arguments[:6], prefix_v)[0] * case.grad_out).sum(), [prefix_v])
    oracle.check_close(case, (grad,), False, oracle.NAMES[6:])


def test_it_is_attention_over_the_prefix_and_each_sequence() -> None:
    case = oracle.make_case((4, 7), prefix=5)
    out = varlen_attention(*case.arguments[:4], prefix_k=case.prefix_k, prefix_v=case.prefix_v)
    k, v = (torch.cat([shared, own[4:]]).repeat_interleave(2, 1).transpose(0, 1)
            for shared, own in ((case.prefix_k, case.k), (case.prefix_v, case.v)))  # fmt: skip
    mask = torch.ones(7, 12, dtype=torch.bool).tril(5)
    want = torch.nn.functional.scaled_dot_product_attention(case.q[4:].transpose(0, 1), k, v, attn_mask=mask).transpose(0, 1)
    torch.testing.assert_close(out[4:], want, rtol=1e-5, atol=1e-6)


def test_results_are_the_same_at_every_run() -> None:
    case = oracle.make_case(prefix=21)
    first, second = (oracle.run_function(case, op, with_lse=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


BUGS = {
    "sees_one_more": ("triu_(prefix + 1)", "triu_(prefix + 2)"),
    "not_itself": ("triu_(prefix + 1)", "triu_(prefix)"),
    "prefix_after_its_own": ("torch.cat([prefix.expand(count, *prefix.shape), own], 1)",
                             "torch.cat([own, prefix.expand(count, *prefix.shape)], 1)"),
    "runs_overlap": ("start += count * length", "start += length"),
    "attend_scale": ("is_causal=mask is None, scale=scale", "is_causal=mask is None, scale=1.0"),
    "attend_not_causal": ("is_causal=mask is None", "is_causal=False"),
    "attend_heads_first": ("parts.append(out.transpose(1, 2).flatten(0, 1))", "parts.append(out.reshape(count * length, *q.shape[1:]))"),
    "forward_scale": (".mul_(scale).masked_fill_", ".masked_fill_"),
    "interleaved_heads": ("unflatten(1, (kv_heads, -1))", "unflatten(1, (-1, kv_heads)).transpose(1, 2)"),
    "gradient_of_the_sums": ("(g * o).sum(-1) - g_sums", "(g * o).sum(-1)"),
    "delta": ("((g * o).sum(-1) - g_sums)", "(-g_sums)"),
    "gradient_of_q_scale": ("_packed((slope @ keys).mul_(scale))", "_packed(slope @ keys)"),
    "gradient_of_k_scale": ("(slope.transpose(-1, -2) @ queries).sum(2).mul_(scale)", "(slope.transpose(-1, -2) @ queries).sum(2)"),
    "gradient_of_the_last_run": ("shared += own[:, :, :prefix].sum(0).transpose(0, 1)",
                                 "shared.copy_(own[:, :, :prefix].sum(0).transpose(0, 1))"),
    "gradient_of_one_of_a_run": ("own[:, :, :prefix].sum(0)", "own[:, :, :prefix][0]"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_in_the_reference_is_caught(bug: str, tmp_path: Path) -> None:
    module = with_bug(Path(reference.__file__), tmp_path, bug, *BUGS[bug])
    with pytest.raises((AssertionError, RuntimeError)):
        for case in (oracle.make_case((6, 6, 3, 5), prefix=7), oracle.make_case((6, 6, 3))):
            oracle.check_close(case, oracle.run_function(case, module.attend, with_lse=False), with_lse=False)
            oracle.check_module(case, module)


GOOD = oracle.make_case((4, 7), prefix=5)
WRONG = (
    ("q", GOOD.q[0], r"expected \[T, H, d\]"),
    ("q", torch.zeros(11, 4, 300), "expected"),
    ("q", torch.zeros(11, 4, 0), "expected"),
    ("q", GOOD.q.double(), "expected float32"),
    ("q", torch.zeros(11, 16, 4).transpose(1, 2), "the last dimension"),
    ("k", GOOD.k[:5], r"expected \[T, Hkv, d\]"),
    ("k", GOOD.k[..., :8], "expected"),
    ("k", GOOD.k[:, :0], "0 heads"),
    ("k", torch.zeros(11, 3, 16), "3 heads"),
    ("k", GOOD.k.half(), "expected torch.float32"),
    ("v", GOOD.v[:, :1], "1 heads"),
    ("v", GOOD.v.to("meta"), "on meta"),
    ("prefix_k", None, "missing beside prefix_v"),
    ("prefix_v", None, "missing beside prefix_k"),
    ("prefix_k", GOOD.prefix_k[0], r"expected \[P, Hkv, d\]"),
    ("prefix_k", GOOD.prefix_k[:, :1], "1 heads"),
    ("prefix_v", GOOD.prefix_v[:3], r"expected \[5, 2, 16\]"),
    ("prefix_v", GOOD.prefix_v.bfloat16(), "expected torch.float32"),
    ("cu_seqlens", GOOD.cu_seqlens[None], r"expected \[B \+ 1\]"),
    ("cu_seqlens", GOOD.cu_seqlens[:0], r"expected \[B \+ 1\]"),
    ("cu_seqlens", GOOD.cu_seqlens.long(), "expected int32"),
    ("cu_seqlens", GOOD.cu_seqlens.to("meta"), "on meta"),
    ("cu_seqlens", GOOD.cu_seqlens + 1, "expected to rise from 0"),
    ("cu_seqlens", GOOD.cu_seqlens[:2], "expected to rise from 0 to the 11"),
    ("cu_seqlens", torch.tensor([0, 7, 4, 11], dtype=torch.int32), "expected to rise"),
    ("scale", NAN, "expected a finite"),
)


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_what_it_cannot_take(name: str, wrong: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        varlen_attention(*replace(GOOD, **{name: wrong}).arguments)


@pytest.mark.parametrize(("longest", "message"), ((6, "6, but a sequence has 7"), (-1, "expected at least 0")))
def test_longest_sequence_is_checked(longest: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^max_seqlen: {message}"):
        varlen_attention(*GOOD.arguments, max_seqlen=longest)


def test_ops_are_registered_right() -> None:
    for prefix in (None, 5):
        case = oracle.make_case((4, 0, 7), prefix=prefix)
        of = [
            x if x is None or not x.is_floating_point() else x.clone().requires_grad_() for x in case.arguments if not isinstance(x, float)
        ]
        torch.library.opcheck(op.default, (*of[:4], case.scale, *of[4:]))
        out, lse = reference.forward(*case.arguments)
        backward = torch.ops.paras2s.varlen_attention_backward.default
        torch.library.opcheck(backward, (case.grad_out, None, *case.arguments, out, lse, prefix is not None))


def test_compiles_to_one_graph() -> None:
    case = oracle.make_case(prefix=5)
    compiled = torch.compile(varlen_attention, fullgraph=True, backend="aot_eager")
    oracle.check_close(case, oracle.run_function(case, compiled, with_lse=False), with_lse=False)


# The libraries need a GPU. Here: what would be asked of them, and when. A tensor on "meta" stands in for one on CUDA.
@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict]]:
    """Both libraries are there and take any device; every call of one is in the list, and computed by the reference."""
    calls: list[tuple[str, dict]] = []

    def flash_attn_varlen_func(q, k, v, cu_q, cu_k, most_q, most_k, dropout_p=0.0, softmax_scale=None, causal=False, **other):
        calls.append(("flash-attn", {"most": most_q, "other": other}))
        assert causal and cu_q is cu_k and most_q == most_k and dropout_p == 0
        return reference.attend(q, k, v, cu_q, softmax_scale, None, None)

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        calls.append(("torch-flash", {"most": max_q, "grouped": enable_gqa}))
        assert window_size == (-1, 0) and cu_seq_q is cu_seq_k and max_q == max_k
        return reference.attend(query, key, value, cu_seq_q, scale, None, None)

    stub = ModuleType("flash_attn")
    stub.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", stub)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    monkeypatch.setattr(varlen_libraries, "missing", lambda library, device: None)
    return calls


HALF = oracle.make_case((4, 7), dtype=torch.bfloat16)


@pytest.mark.parametrize("library", dispatch.LIBRARIES["varlen_attention"])
def test_a_library_gets_what_it_needs(library: str, libraries: list[tuple[str, dict]]) -> None:
    with force(library):
        out = varlen_attention(*HALF.arguments[:5])
        varlen_attention(*HALF.arguments[:5], max_seqlen=7)
    oracle.check_close(HALF, (out,))
    assert [name for name, _ in libraries] == [library] * 2 and [call["most"] for _, call in libraries] == [11, 7]
    assert library == "flash-attn" or all(call["grouped"] for _, call in libraries)


def test_libraries_in_their_order_and_the_rest_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(type="cuda")

    def call(dtype: torch.dtype = torch.bfloat16, dim: int = 64, tokens: int = 9, heads: int = 4) -> SimpleNamespace:
        return SimpleNamespace(device=gpu, dtype=dtype, shape=(tokens, heads, dim))

    there = {"flash-attn", "torch-flash"}
    monkeypatch.setattr(varlen_libraries, "missing", lambda library, device: None if library in there else "gone")
    choose = varlen_libraries.choose
    assert choose(call(), call(heads=2), None) == "flash-attn"
    there.remove("flash-attn")
    assert choose(call(), call(heads=2), None) == "torch-flash"
    monkeypatch.setattr(varlen_libraries, "_options_of_torch", lambda: frozenset({"scale", "window_size"}))  # torch 2.11
    assert choose(call(), call(heads=2), None) is None and choose(call(), call(), None) == "torch-flash"
    for wrong in (call(torch.float32), call(dim=63), call(tokens=0)):
        assert choose(wrong, wrong, None) is None
    assert choose(call(), call(), torch.zeros(1)) is None
    for name in dispatch.BACKENDS:
        with force(name):
            assert choose(call(), call(), None) is None
    with force("torch-flash"), pytest.raises(ValueError, match=r"force\(\): torch-flash knows no shared prefix"):
        choose(call(), call(), torch.zeros(1))
    with force("flash-attn"), pytest.raises(ValueError, match=r"force\(\): gone"):
        choose(call(), call(), None)


@pytest.mark.parametrize("library", dispatch.LIBRARIES["varlen_attention"])
def test_a_library_cannot_be_forced_on_the_cpu(library: str) -> None:
    with force(library):
        with pytest.raises(ValueError, match=rf"force\(\): {library} needs CUDA tensors \(these are on cpu\)"):
            varlen_attention(*HALF.arguments)
        assert dispatch.choose(torch.device("cpu")) == "reference"  # for the kernels that have no such library


def test_doctor_says_which_library_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.ENV, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def row() -> dict[str, object]:
        return next(row for row in backends() if row["kernel"] == "varlen_attention")

    assert row()["chosen"] == "reference" and "flash-attn needs CUDA tensors" in str(row()["why"])
    with force("flash-attn"):
        assert row()["chosen"] == "none" and "force(): flash-attn needs CUDA" in str(row()["why"])
        assert backends()[0]["chosen"] == "reference"
    monkeypatch.setenv(dispatch.ENV, "nonsense")
    assert row()["chosen"] == "none"
    monkeypatch.delenv(dispatch.ENV)
    monkeypatch.setattr(varlen_libraries, "missing", lambda library, device: None if library == "torch-flash" else "not installed")
    assert row()["chosen"] == "torch-flash" and row()["available"] == ["torch-flash", "reference"]
    assert row()["why"] == "torch-flash is there; reference for what it cannot take, and for graphs"
    with force("reference"):
        assert row()["chosen"] == "reference" and row()["why"] == "forced by force()"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prefix", (None, 300))
@pytest.mark.parametrize("heads,kv_heads,dim", ((4, 2, 32), (28, 4, 128), (2, 1, 80), (4, 4, 256)))
def test_gpu(heads: int, kv_heads: int, dim: int, prefix: int | None, dtype: torch.dtype) -> None:
    case = oracle.make_case((257, 0, 1, 130, 64), heads, kv_heads, dim, prefix, dtype, strided=dim == 80)
    with force("triton"):
        got = oracle.run_function(case.to("cuda"), op, with_lse=True)
        again = oracle.run_function(case.to("cuda"), op, with_lse=True)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    oracle.check_close(case, tuple(x.cpu() for x in got))


@pytest.mark.gpu
@pytest.mark.parametrize("library", dispatch.LIBRARIES["varlen_attention"])
@pytest.mark.parametrize("kv_heads", (4, 2))
def test_gpu_libraries(library: str, kv_heads: int) -> None:
    case = oracle.make_case((257, 1, 130, 64), 4, kv_heads, 64, dtype=torch.bfloat16)
    on_gpu = case.to("cuda")
    reason = varlen_libraries.missing(library, on_gpu.q.device) or varlen_libraries._unsuited(library, on_gpu.q, on_gpu.k, None)
    if reason:
        pytest.skip(reason)
    with force(library):
        got = oracle.run_function(on_gpu, varlen_attention, with_lse=False)
    oracle.check_close(case, tuple(x.cpu() for x in got), with_lse=False)


@pytest.mark.gpu
def test_gpu_many_sequences() -> None:
    case = oracle.make_case((3, 2), 2, 1, 16, 9)
    n = 40_000
    many = {name: getattr(case, name).repeat(n, 1, 1).cuda() for name in ("q", "k", "v")}
    ends = (torch.arange(0, n * 5, 5)[:, None] + torch.tensor([3, 5])).flatten()
    cu = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).int().cuda()
    with force("triton"):
        out = varlen_attention(**many, cu_seqlens=cu, prefix_k=case.prefix_k.cuda(), prefix_v=case.prefix_v.cuda())
    torch.testing.assert_close(out[-5:].cpu().double(), oracle.exact(case)[0], rtol=1e-5, atol=3e-6)


@pytest.mark.gpu
def test_gpu_is_captured_in_a_graph() -> None:
    case = oracle.make_case((130, 64), prefix=70)
    arguments = case.to("cuda").arguments
    with force("triton"):
        varlen_attention(*arguments)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = varlen_attention(*arguments)
    graph.replay()
    oracle.check_close(case, (out.cpu(),))
