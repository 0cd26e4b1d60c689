"""varlen_attention's forward kernel in the interpreter; run by ../test_varlen_attention.py in its own process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import interpreter_bf16
import pytest
import torch
import varlen_attention_oracle as oracle
from launches import record_grids
from planted import with_bug

from paras2s_kernels.gpu import varlen_attention as kernel
from paras2s_kernels.gpu import varlen_attention_backward as gradients
from paras2s_kernels.gpu import varlen_tiles as tiles
from paras2s_kernels.gpu.varlen_tiles import Tile, near, tile_for

interpreter_bf16.install()

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
NAN = float("nan")
SMALL = Tile(16, 16, 1)


def check(case: oracle.Case, module: object, tile: Tile | None = SMALL) -> tuple[torch.Tensor, torch.Tensor]:
    with oracle.guarded():
        out, lse = module.forward(*case.arguments, tile=tile)  # type: ignore[attr-defined]
    assert out.is_contiguous() and lse.is_contiguous()
    oracle.check_close(case, (out, lse))
    return out, lse


@pytest.mark.parametrize("dtype", (FP16, BF16), ids=str)
def test_several_blocks_empty_and_single_tokens(dtype: torch.dtype) -> None:
    check(oracle.make_case((37, 0, 1, 5), 1, 1, 24, 21, dtype, strided=True), kernel)


def test_an_empty_prefix() -> None:
    check(oracle.make_case((18,), 1, 1, 8, prefix=0), kernel)


@pytest.mark.parametrize("dtype", (FP32, BF16), ids=str)
def test_as_it_is_launched(dtype: torch.dtype) -> None:
    check(oracle.make_case((130, 3), 1, 1, 8, 70, dtype), kernel, None)


@pytest.mark.parametrize("heads,kv_heads,dim", ((3, 3, 1), (7, 1, 24), (2, 1, 200)))
def test_heads(heads: int, kv_heads: int, dim: int) -> None:
    check(oracle.make_case((9, 3), heads, kv_heads, dim, prefix=5), kernel)


def test_far_more_queries_than_keys_in_a_tile() -> None:
    check(oracle.make_case((50, 16, 33), 1, 1, 8, prefix=33), kernel, Tile(64, 16, 1))


@pytest.mark.parametrize("lengths", ((32, 16), (15, 1, 16), (1,) * 17, (0, 0, 3, 0, 0)))
def test_sequences_and_blocks_meet_anywhere(lengths: tuple[int, ...]) -> None:
    check(oracle.make_case(lengths, 1, 1, 8, 16), kernel)


@pytest.mark.parametrize("lengths", ((), (0,), (0, 0)))
def test_no_tokens(lengths: tuple[int, ...]) -> None:
    out, lse = kernel.forward(*oracle.make_case(lengths, prefix=3).arguments)
    assert out.shape == (0, 4, 16) and lse.shape == (0, 4)


def test_large_scores_keep_their_differences() -> None:
    case = oracle.make_case((37, 3), 1, 1, 16, prefix=21)
    case.q.mul_(60)
    out, _ = kernel.forward(*case.arguments, tile=SMALL)
    torch.testing.assert_close(out.double(), oracle.exact(case)[0], rtol=1e-3, atol=1e-4)


def _tail(module: object) -> None:
    """Tokens behind the last sequence are 0, whatever stands there, ends beyond the tokens are cut, and neither disturbs the others."""
    roomy = oracle.make_case((21, 20, 50), 1, 1, 8, prefix=5)  # so that what is read too far is there, at every run
    case = replace(roomy, **{name: getattr(roomy, name)[:41] for name in ("q", "k", "v", "grad_out", "grad_lse")})
    case = replace(case, cu_seqlens=roomy.cu_seqlens[:3].clone())
    want = oracle.exact(case)[0]
    behind = (torch.arange(41) >= 21)[:, None, None]
    short = replace(case, cu_seqlens=case.cu_seqlens[:2], k=case.k.masked_fill(behind, NAN), v=case.v.masked_fill(behind, NAN))
    with oracle.guarded():
        out, lse = module.forward(*short.arguments, tile=SMALL)  # type: ignore[attr-defined]
    torch.testing.assert_close(out[:21].double(), want[:21], rtol=1e-5, atol=3e-6, msg=lambda m: f"out: {m}")
    assert not out[21:].any() and bool((lse[21:] == float("-inf")).all()), "out: tokens of no sequence"
    case.cu_seqlens[2] += 50
    with oracle.guarded():
        out, _ = module.forward(*case.arguments, tile=SMALL)  # type: ignore[attr-defined]
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=3e-6, msg=lambda m: f"out: {m}")


def test_a_grid_holds_every_tile() -> None:
    for lengths in ((1,) * 40, (15, 17) * 5, (16,) * 4, (0, 31, 0, 33)):
        starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        tiles = [start // 16 + b + i for b, start in enumerate(starts[:-1]) for i in range(-(-lengths[b] // 16))]
        assert len(set(tiles)) == len(tiles) and max(tiles) < starts[-1] // 16 + len(lengths)


def test_tables_hold_every_head_size() -> None:
    for table in (kernel.FORWARD, gradients.GRAD_QUERIES, gradients.GRAD_KEYS):
        assert [tile_for(table, dim, 2) is table[2, size] for dim, size in ((1, 64), (65, 128), (256, 256))] == [True] * 3
    assert [gradients.parts_for(tokens, 32) for tokens in (1, 256, 257, 100_000)] == [1, 1, 2, 9]


def test_far_tokens_are_brought_together() -> None:
    far = torch.empty_strided((2, 1, 4), (2**22, 4, 1))
    assert near(far).stride(0) == 4 and near(far[:, :, :3].contiguous()).stride(0) == 3


def test_tiles_are_in_the_grid_dimension_that_can_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = record_grids(monkeypatch, kernel, "forward_kernel")
    rows = torch.zeros(9_000_000, 1, 1)
    kernel.forward(rows, rows, rows, torch.tensor([0, 9_000_000], dtype=torch.int32), 1.0, None, None)
    assert grids == [(9_000_000 // kernel.FORWARD[4, 64].queries + 2, 1)]


# in varlen_tiles.py, and in varlen_attention.py
IN_TILES = {
    "bisection_skips_one": ("tl.where(fits, high, middle - 1)", "tl.where(fits, high, middle - 2)"),
    "tiles_strictly_before": ("// BLOCK + middle <= tile", "// BLOCK + middle < tile"),
    "no_room_for_a_sequence": ("position = (tile - start // BLOCK - low) * BLOCK", "position = (tile - start // BLOCK) * BLOCK"),
    "rest_is_a_sequence": ("rest = low == sequences", "rest = low > sequences"),
    "end_not_cut": ("end = tl.minimum(tl.where(rest, tokens, end), tokens)", "end = tl.where(rest, tokens, end)"),
    "rows_beyond_the_sequence": ("there = (row < rows_left(position, stop, BLOCK))[:, None] & (column < DIM)[None, :]\n    return",
                                 "there = (row < BLOCK)[:, None] & (column < DIM)[None, :]\n    return"),
    "stores_beyond_the_sequence": ("there = (row < rows_left(position, stop, BLOCK))[:, None] & (column < DIM)[None, :]\n    tl.store",
                                   "there = (row < BLOCK)[:, None] & (column < DIM)[None, :]\n    tl.store"),
    "stride_of_a_row": ("return tl.load(base + position * stride + (row[:, None] * stride +",
                        "return tl.load(base + position * stride + (row[:, None] * DIM +"),
    "stride_between_blocks": ("return tl.load(base + position * stride +", "return tl.load(base + position * DIM +"),
}  # fmt: skip
BUGS = {
    "no_rescale_of_the_sum": ("total = total * decay + tl.sum(weights, 1)", "total = total + tl.sum(weights, 1)"),
    "no_rescale_of_the_output": ("acc = acc * decay[:, None]\n", "acc = acc + 0.0\n"),
    "maximum_not_kept": ("        m = new_m\n", ""),
    "unseen_counts": ('            scores = tl.where(tl.arange(0, BLOCK_N)[None, :] <= last[:, None], scores, float("-inf"))\n'
                      "        new_m", "        new_m"),
    "sees_one_more": ("scores = tl.where(tl.arange(0, BLOCK_N)[None, :] <= last[:, None], scores, float(\"-inf\"))\n        new_m",
                      "scores = tl.where(tl.arange(0, BLOCK_N)[None, :] <= last[:, None] + 1, scores, float(\"-inf\"))\n        new_m"),
    "not_itself": ("scores = tl.where(tl.arange(0, BLOCK_N)[None, :] <= last[:, None], scores, float(\"-inf\"))\n        new_m",
                   "scores = tl.where(tl.arange(0, BLOCK_N)[None, :] < last[:, None], scores, float(\"-inf\"))\n        new_m"),
    "scale_of_e": ("tokens, sequences, keys.shape[0], scale * math.log2(math.e), HAS", "tokens, sequences, keys.shape[0], scale, HAS"),
    "sums_beyond_the_sequence": ("sums, mask=row < rows_left(position, length, BLOCK_M))", "sums)"),
    "sums_without_the_maximum": ("(m + tl.log2(total)) * LN2", "tl.log2(total) * LN2"),
    "sums_of_base_two": ("(m + tl.log2(total)) * LN2", "(m + tl.log2(total))"),
    "division_forgotten": ("result = acc / tl.where(nothing, 1.0, total)[:, None]", "result = acc"),
    "division_by_zero": ("tl.where(nothing, 1.0, total)", "total"),
    "nothing_has_a_sum": ('sums = tl.where(nothing, float("-inf"), ', "sums = tl.where(nothing, 0.0, "),
    "prefix_of_the_first_head": ("values = prefix_v + kv_head * pv_head", "values = prefix_v"),
    "keys_of_the_first_head": ("keys = k + start * k_token + kv_head * k_head", "keys = k + start * k_token"),
    "interleaved_heads": ("kv_head = head // REP", "kv_head = head % (heads // REP)"),
    "keys_of_the_first_sequence": ("keys = k + start * k_token + kv_head * k_head", "keys = k + kv_head * k_head"),
    "prefix_dropped": ("seen = tl.where(rest, 0, prefix).to(tl.int64)", "seen = zero"),
    "rest_sees_the_prefix": ("seen = tl.where(rest, 0, prefix).to(tl.int64)", "seen = zero + prefix"),
    "end_of_the_prefix_dropped": ("pk_token, pv_token, even, seen, seen - 1,", "pk_token, pv_token, seen, seen, seen - 1,"),
    "prefix_is_causal": ("            True, 0, DIM", "            True, 1, DIM"),
    "prefix_in_whole_blocks": ("even = seen // BLOCK_N * BLOCK_N", "even = seen + 0"),
    "own_beginning_dropped": ("k_token, v_token, zero, even, position,", "k_token, v_token, even, even, position,"),
    "diagonal_dropped": ("k_token, v_token, even, stop, position,", "k_token, v_token, stop, stop, position,"),
    "diagonal_cut": ("tl.minimum(position + BLOCK_M, length)", "tl.minimum(position + BLOCK_N, length)"),
    "diagonal_not_masked": ("        True, 1, DIM", "        False, 1, DIM"),
    "diagonal_taken_for_whole": ("even = tl.minimum(position // BLOCK_N * BLOCK_N, stop)", "even = tl.minimum(position, stop)"),
    "rest_sees_itself": ("stop = tl.where(rest, 0, tl.minimum(position + BLOCK_M, length))",
                         "stop = tl.minimum(position + BLOCK_M, length)"),
}  # fmt: skip


def _suite(module: object) -> None:
    _tail(module)
    check(oracle.make_case((37, 4), 1, 1, 8), module, Tile(16, 32, 1))
    check(oracle.make_case((37, 1, 0, 5), 1, 1, 8, 21), module)
    check(oracle.make_case((18, 3), 4, 2, 8, 3, strided=True), module, Tile(32, 16, 1))


def test_heads_tiles_and_tokens_of_no_sequence_from_which_the_planted_bugs_start() -> None:
    _suite(kernel)


def planted(bug: str, tmp_path: Path) -> object:
    if bug in BUGS:
        return with_bug(Path(kernel.__file__), tmp_path, bug, *BUGS[bug])
    with_bug(Path(tiles.__file__), tmp_path, f"tiles_{bug}", *IN_TILES[bug])
    return with_bug(Path(kernel.__file__), tmp_path, bug, tiles.__name__, f"planted_tiles_{bug}")


@pytest.mark.parametrize("bug", (*IN_TILES, *BUGS))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_planted_bug_is_caught(bug: str, tmp_path: Path) -> None:
    module = planted(bug, tmp_path)
    with pytest.raises(AssertionError, match=r"(out|lse):"):
        _suite(module)
