from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import shared_prefix_attention_oracle as oracle
import torch
from planted import with_bug

from paras2s_kernels import shared_prefix_attention
from paras2s_kernels.reference import shared_prefix_attention as reference

HERE = Path(__file__).parent
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAN = float("nan")


both = pytest.mark.parametrize("function", (shared_prefix_attention, torch.ops.paras2s.shared_prefix_attention), ids=("eager", "op"))


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padding", ("none", "left", "right"))
@pytest.mark.parametrize("mixed", (False, True))
@pytest.mark.parametrize("sizes", ((3, 1, 2), (2, 2, 2)))
def test_reference(sizes: tuple[int, ...], mixed: bool, padding: str, dtype: torch.dtype, function) -> None:
    case = oracle.make_case(sizes, padding=padding, ragged=padding != "none", mixed=mixed, strided=mixed, dtype=dtype)
    oracle.check(case, function)


@pytest.mark.parametrize("heads,kv_heads,dim", ((1, 1, 8), (4, 4, 16), (7, 1, 24), (40, 2, 16), (2, 1, 200)))
def test_reference_heads(heads: int, kv_heads: int, dim: int) -> None:
    oracle.check(oracle.make_case((2, 1), heads, kv_heads, dim, prefix=19, suffix=5), shared_prefix_attention)


@both
@pytest.mark.parametrize("sizes,prefix,suffix", (((2, 1), 0, 5), ((2, 1), 5, 0), ((1, 1), 0, 0), ((0, 0), 5, 5), ((0, 2), 5, 5)))
def test_reference_without_prefix_suffix_or_rows(sizes: tuple[int, ...], prefix: int, suffix: int, function) -> None:
    oracle.check(oracle.make_case(sizes, prefix=prefix, suffix=suffix), function)


@both
def test_reference_a_row_that_sees_nothing_is_zero(function) -> None:
    case = oracle.make_case(padding="right", ragged=True)
    case.suffix_lengths[3] = 0  # prompt 1, which has no prefix
    assert not oracle.check(case, function)[3].any()


def test_under_autocast() -> None:
    case = oracle.make_case((2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        out = shared_prefix_attention(*case.arguments)
    torch.testing.assert_close(out.float(), shared_prefix_attention(*case.arguments), atol=0.03, rtol=0)


def test_order_of_the_rows_changes_nothing() -> None:
    case = oracle.make_case((2, 2, 2), padding="left", ragged=True)
    out = shared_prefix_attention(*oracle.in_other_order(case).arguments)
    torch.testing.assert_close(out.flip(0), shared_prefix_attention(*case.arguments))


def test_it_is_attention_over_the_copied_prefix() -> None:
    case = oracle.make_case((2, 2))
    k, v = (torch.cat([prefix.repeat_interleave(2, 0), own], 2).repeat_interleave(3, 1)
            for prefix, own in ((case.prefix_k, case.suffix_k), (case.prefix_v, case.suffix_v)))  # fmt: skip
    want = torch.nn.functional.scaled_dot_product_attention(case.q[:, :, None], k, v)[:, :, 0]
    torch.testing.assert_close(shared_prefix_attention(*case.arguments), want, rtol=1e-5, atol=1e-6)


BUGS = {
    "scale": ("(q * scale)", "(q * 1.0)"),
    "unseen_counts": ("scores += planned.seen", "pass"),
    "unseen_values": ("x.masked_fill(prefix_outside[:, None, :, None], 0.0)", "x"),
    "unseen_values_of_its_own": ("x[:, :, :longest].masked_fill(suffix_outside[:, None, :, None], 0.0)", "x[:, :, :longest]"),
    "starts_ignored": ("torch.zeros_like(lengths) if starts is None else starts", "torch.zeros_like(lengths)"),
    "end_ignored": ("(position < first.unsqueeze(1)) | (position >= end.unsqueeze(1))", "position < first.unsqueeze(1)"),
    "unsorted_rows": ("index_copy_(0, order, of * group + rank)", "copy_(of * group + rank)"),
    "ranks_overlap": ("of * group + rank", "of * group"),
    "sorted_is_enough": ("bool(inside.all())", "bool(inside.any())"),
    "result_not_taken_back": ("x.flatten(0, 1)[place]", "x.flatten(0, 1)[:rows]"),
    "nothing_is_nan": ("planned.nothing is None", "True"),
    "prefix_dropped": ("torch.baddbmm(shared.reshape(rows * kv, rep, dim), ", "torch.bmm("),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_in_the_reference_is_caught(bug: str, tmp_path: Path) -> None:
    module = with_bug(Path(reference.__file__), tmp_path, bug, *BUGS[bug])
    nothing = oracle.make_case(padding="right", ragged=True)
    nothing.suffix_lengths[3] = 0
    with pytest.raises(AssertionError, match="out:"):
        oracle.check(oracle.make_case((3, 3, 2), mixed=True, padding="left"), module.forward)
        oracle.check(oracle.make_case((2, 2, 2), mixed=True, padding="left"), module.forward)
        oracle.check(nothing, module.forward)


GOOD = oracle.make_case((1, 2))
WRONG = (
    ("q", GOOD.q[0], r"expected \[B, H, d\]"),
    ("q", torch.zeros(3, 6, 300), "expected"),
    ("q", GOOD.q.double(), "expected float32"),
    ("q", GOOD.q.clone().requires_grad_(), "needs a gradient"),
    ("prefix_k", GOOD.prefix_k[0], "expected"),
    ("prefix_k", GOOD.prefix_k[:, :0], "0 heads"),
    ("prefix_k", torch.zeros(2, 4, 37, 32), "4 heads"),
    ("prefix_k", GOOD.prefix_k.half(), "expected torch.float32"),
    ("prefix_k", torch.zeros(2, 2, 32, 37).transpose(2, 3), "the last dimension"),
    ("prefix_v", GOOD.prefix_v[:, :, :5], "expected"),
    ("suffix_k", GOOD.suffix_k[:2], "expected"),
    ("suffix_v", GOOD.suffix_v[:, :, :5], "expected"),
    ("suffix_v", GOOD.suffix_v.to("meta"), "on meta"),
    ("prefix_lengths", GOOD.prefix_lengths[:1], r"expected \[2\]"),
    ("prefix_lengths", GOOD.prefix_lengths + 1, "expected parts"),
    ("prefix_lengths", -GOOD.prefix_lengths, "expected parts"),
    ("prefix_starts", torch.tensor([-1, 0]), "expected none below 0"),
    ("prefix_starts", torch.zeros(2), "expected int64"),
    ("suffix_lengths", GOOD.suffix_lengths.int(), "expected int64"),
    ("suffix_lengths", GOOD.suffix_lengths + 1, "10 is more than the 9"),
    ("suffix_lengths", -GOOD.suffix_lengths, "expected parts"),
    ("prompt_of", GOOD.prompt_of[:2], r"expected \[3\]"),
    ("prompt_of", GOOD.prompt_of + 1, r"2 is outside \[0, 2\)"),
    ("prompt_of", GOOD.prompt_of - 1, "-1 is outside"),
    ("scale", NAN, "expected a finite"),
)


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_what_it_cannot_take(name: str, wrong: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        shared_prefix_attention(*replace(GOOD, **{name: wrong}).arguments)


def test_it_takes_no_group_below_0() -> None:
    with pytest.raises(ValueError, match=r"^group: expected at least 0, got -1"):
        shared_prefix_attention(*GOOD.arguments, group=-1)


def test_op_is_registered_right() -> None:
    op = torch.ops.paras2s.shared_prefix_attention.default
    torch.library.opcheck(op, oracle.make_case(padding="left", ragged=True).arguments)
    torch.library.opcheck(op, (*oracle.make_case((2, 2)).arguments, 2))


def test_compiles_to_one_graph() -> None:
    case = oracle.make_case(padding="left", ragged=True, mixed=True)
    oracle.check(case, torch.compile(shared_prefix_attention, fullgraph=True, backend="aot_eager"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padding", ("none", "left", "right"))
@pytest.mark.parametrize("heads,kv_heads,dim", ((6, 2, 32), (28, 4, 128), (8, 1, 80), (4, 4, 256)))
def test_gpu(heads: int, kv_heads: int, dim: int, padding: str, dtype: torch.dtype) -> None:
    for mixed in (False, True):
        case = oracle.make_case(
            (8, 3, 5), heads, kv_heads, dim, 700, 130, dtype, padding, ragged=padding != "none", mixed=mixed, strided=mixed
        )
        oracle.check_close(case, shared_prefix_attention(*case.to("cuda").arguments).cpu())


@pytest.mark.gpu
def test_gpu_many_rows() -> None:
    case = oracle.make_case((2, 2), 2, 1, 16, 9, 3)
    many = {name: getattr(case, name).repeat(18_000, *[1] * (getattr(case, name).dim() - 1))
            for name in ("q", "suffix_k", "suffix_v", "suffix_lengths", "prompt_of")}  # fmt: skip
    out = shared_prefix_attention(*replace(case, **many).to("cuda").arguments)
    torch.testing.assert_close(out[-4:].cpu().double(), oracle.exact(case), rtol=1e-5, atol=2e-6)


@pytest.mark.gpu
def test_gpu_is_captured_in_a_graph() -> None:
    case = oracle.make_case((8, 8), prefix=300, padding="left", ragged=True)
    arguments = case.to("cuda").arguments
    shared_prefix_attention(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = shared_prefix_attention(*arguments)
    graph.replay()
    oracle.check_close(case, out.cpu())
