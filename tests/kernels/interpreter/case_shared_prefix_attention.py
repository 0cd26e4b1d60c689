"""shared_prefix_attention's Triton kernels in the interpreter; run by ../test_shared_prefix_attention.py in its own process."""

from __future__ import annotations

from pathlib import Path

import interpreter_bf16
import pytest
import shared_prefix_attention_oracle as oracle
import torch
from launches import record_grids
from planted import with_bug

from paras2s_kernels import force, shared_prefix_attention
from paras2s_kernels.gpu import shared_prefix_attention as kernel

interpreter_bf16.install()

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padding", ("none", "left", "right"))
def test_several_blocks_splits_and_tiles(padding: str, dtype: torch.dtype) -> None:
    case = oracle.make_case(dtype=dtype, padding=padding, ragged=padding != "none", prefix=69, suffix=19)
    oracle.check(case, kernel.forward, block=16, splits=2, tile_rows=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_it_is_launched(dtype: torch.dtype) -> None:
    oracle.check(oracle.make_case((4, 4), prefix=130, dtype=dtype), kernel.forward)


@pytest.mark.parametrize("heads,kv_heads,dim", ((1, 1, 8), (4, 4, 16), (7, 1, 24), (40, 2, 16), (2, 1, 200)))
def test_heads(heads: int, kv_heads: int, dim: int) -> None:
    oracle.check(oracle.make_case((2, 1), heads, kv_heads, dim, prefix=19, suffix=5), kernel.forward, block=16, splits=2)


@pytest.mark.parametrize("tile_rows", (1, 4, 6))
@pytest.mark.parametrize("strided", (False, True))
def test_rows_in_any_order(strided: bool, tile_rows: int) -> None:
    case = oracle.make_case(mixed=True, padding="left", ragged=True, strided=strided)
    oracle.check(case, kernel.forward, block=16, splits=2, tile_rows=tile_rows)


@pytest.mark.parametrize("prefix,suffix", ((0, 5), (5, 0), (0, 0)))
def test_without_prefix_or_suffix(prefix: int, suffix: int) -> None:
    oracle.check(oracle.make_case((2, 1), prefix=prefix, suffix=suffix), kernel.forward)


def test_a_row_that_sees_nothing_is_zero() -> None:
    case = oracle.make_case(padding="right", ragged=True)
    case.suffix_lengths[3] = 0  # prompt 1, which has no prefix
    assert not oracle.check(case, kernel.forward, block=16)[3].any()


def test_no_rows() -> None:
    assert kernel.forward(*oracle.make_case((0, 0)).arguments).shape == (0, 6, 32)


def test_more_splits_than_blocks() -> None:
    oracle.check(oracle.make_case((2,), prefix=17), kernel.forward, block=16, splits=5)


def test_large_scores_keep_their_differences() -> None:
    case = oracle.make_case((2, 1))
    case.q.mul_(60)
    want = oracle.exact(case)
    got = kernel.forward(*case.arguments, block=16, splits=2)
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4)


def test_out_of_range_reads_nothing_else() -> None:
    case = oracle.make_case((2, 2))
    want = oracle.exact(case)
    case.prefix_lengths[1] += 1000
    case.suffix_lengths[1:] += 1000
    case.prompt_of[0] = 7
    got = kernel.forward(*case.arguments, block=16)
    torch.testing.assert_close(got[1:].double(), want[1:], rtol=1e-5, atol=2e-6)
    case.prefix_lengths[:], case.prompt_of[0] = 0, 0
    torch.testing.assert_close(got[0].double(), oracle.exact(case)[0], rtol=1e-5, atol=2e-6)


def test_tiles_hold_whole_groups() -> None:
    assert kernel.tiling(64, 8, 7, 2) == (8, 64)  # 8 rows of 7 queries: 56 of 64
    assert kernel.tiling(64, 64, 7, 2) == (8, 64)  # 64 rows in 8 equal tiles, not 7 of 9 and a rest
    assert kernel.tiling(64, 8, 3, 4) == (4, 16)
    assert kernel.tiling(5, 1, 40, 2) == (1, 64)
    assert kernel.tiling(5, 1, 80, 2) == (1, 128)
    assert kernel.tiling(5, 1, 7, 2) == (1, 32)
    assert kernel.tiling(5, 8, 7, 2) == (5, 64)  # fewer rows than a group has
    assert kernel.tiling(64, 8, 7, 2, wide=False) == (4, 32)
    assert [kernel.splits_for(capacity, 32) for capacity in (0, 1, 128, 129, 4096)] == [0, 1, 1, 2, 9]


def test_a_group_is_in_one_tile_however_many_prompts_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 rows in groups of 8, and memory for 32 prompts: tiles of 64 / 32 rows would read each prefix four times."""
    grids = record_grids(monkeypatch, kernel, "prefix_kernel", "suffix_kernel")
    q, keys, own = torch.zeros(64, 28, 16), torch.zeros(32, 4, 128, 16), torch.zeros(64, 4, 8, 16)
    lengths, numbers = torch.zeros(32, dtype=torch.int64), torch.zeros(64, dtype=torch.int64)
    q, keys, own = (x.bfloat16() for x in (q, keys, own))
    for group in (0, 8):
        kernel.forward(q, keys, keys, lengths, own, own, numbers, numbers, 1.0, None, group)
    assert [grid[0] for grid in grids] == [32, 64, 8, 64]


def test_wide_loads_need_even_strides() -> None:
    x = torch.zeros(3, 4, 64)
    assert kernel.wide(x, x[:, :, :24], x[1:], x.transpose(0, 1))
    assert not kernel.wide(x, torch.zeros(3, 24)) and not kernel.wide(x[:, :, 1:])


def test_rows_are_in_the_grid_dimension_that_can_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = record_grids(monkeypatch, kernel, "prefix_kernel", "suffix_kernel")
    rows = torch.zeros(70_000, 1, 1, 1)
    numbers = torch.zeros(70_000, dtype=torch.int64)
    kernel.forward(rows[:, 0], rows, rows, numbers, rows, rows, numbers, numbers, 1.0, None)
    assert grids == [(70_000, 1, 1), (70_000, 1)]


def test_through_the_public_function() -> None:
    case = oracle.make_case(padding="left", dtype=torch.bfloat16)
    with force("triton"):
        oracle.check(case, shared_prefix_attention)


BUGS = {
    "no_rescale_of_the_sum": ("total = total * decay + tl.sum(weights, 1)", "total = total + tl.sum(weights, 1)"),
    "no_rescale_of_the_output": ("acc = acc * decay[:, None] + tl.dot(", "acc = acc + tl.dot("),
    "unseen_counts": ('scores = tl.where(seen, scores, float("-inf"))', "scores = scores + 0.0"),
    "nothing_seen_is_nan": ('    anchor = tl.where(new_m == float("-inf"), 0.0, new_m)\n    weights', "    anchor = new_m\n    weights"),
    "nothing_merged_is_nan": ('        anchor = tl.where(new_m == float("-inf"), 0.0, new_m)\n', "        anchor = new_m\n"),
    "scale_of_e": ("scale = scale * math.log2(math.e)", "scale = scale * 1.0"),
    "head_of_another_group": ("q_heads = head * REP + query % REP", "q_heads = query % REP"),
    "queries_interleaved": ("q_heads = head * REP + query % REP", "q_heads = (query % REP) * tl.num_programs(1) + head"),
    "other_prompts_seen": ("inside[None, :] & (prompt == current)[:, None]", "inside[None, :] & live[:, None]"),
    "later_prompts_missed": ("current = tl.min(tl.where(prompt > current, prompt, prompts), 0)\n\n", "current = prompts + current\n\n"),
    "first_prompt_for_all": ("k_base = keys + current * k_prompt", "k_base = keys + 0 * k_prompt"),
    "values_of_the_first_prompt": ("v_base = values + current * v_prompt", "v_base = values + 0 * v_prompt"),
    "starts_ignored": ("first = tl.maximum(tl.load(starts + current), 0)", "first = first + 0"),
    "values_from_the_start": (" + first * v_position", ""),
    "keys_from_the_start": (" + first * k_position", ""),
    "length_ignored": ("length = tl.minimum(tl.load(lengths + current), capacity - first)", "length = capacity - first"),
    "length_not_cut": ("length = tl.minimum(tl.load(lengths + current), capacity - first)", "length = tl.load(lengths + current)"),
    "suffix_length_ignored": ("length = tl.minimum(tl.load(lengths + row), capacity)", "length = tl.full((), 0, tl.int64) + capacity"),
    "suffix_not_cut": ("length = tl.minimum(tl.load(lengths + row), capacity)", "length = tl.load(lengths + row)"),
    "splits_overlap": ("end = tl.minimum(split * share + share, length)", "end = length"),
    "split_rounded_down": ("tl.cdiv(tl.cdiv(length, BLOCK_N), splits) * BLOCK_N", "length // BLOCK_N // splits * BLOCK_N"),
    "one_split_merged": ("for split in range(0, splits):", "for split in range(0, 1):"),
    "merge_without_gain": ("part_t * gain", "part_t"),
    "merged_output_without_gain": ("part * gain[:, None]", "part"),
    "merge_without_decay": ("total = total * decay + part_t", "total = total + part_t"),
    "merged_output_without_decay": ("acc = acc * decay[:, None] + part ", "acc = acc + part "),
    "merge_keeps_old_maximum": ("        m = new_m\n", ""),
    "suffix_of_the_first_row": ("k_base = keys + row * k_row", "k_base = keys + 0 * k_row"),
    "suffix_of_the_first_head": ("v_base = values + row * v_row + head * v_head", "v_base = values + row * v_row"),
    "prefix_of_the_first_head": ("v_base = values + current * v_prompt + head * v_head", "v_base = values + current * v_prompt"),
    "position_stride_of_keys": ("k_block = tl.load(k_base + offset[:, None] * k_position + columns[None, :], mask=there, other=0.0)\n"
                                "            v_block",
                                "k_block = tl.load(k_base + offset[:, None] * DIM + columns[None, :], mask=there, other=0.0)\n"
                                "            v_block"),
    "division_forgotten": ("acc / tl.where(total == 0.0, 1.0, total)[:, None]", "acc"),
    "division_by_zero": ("tl.where(total == 0.0, 1.0, total)", "total"),
    "unknown_prompt": ("tl.where((prompt >= 0) & (prompt < prompts), prompt, prompts)", "tl.where(prompt >= 0, prompt % prompts, prompts)"),
}  # fmt: skip


def _suite(module: object) -> None:
    forward = module.forward  # type: ignore[attr-defined]
    case = oracle.make_case(mixed=True, padding="left", ragged=True, strided=True, dim=24, prefix=69, suffix=19)
    oracle.check(case, forward, block=16, splits=3, tile_rows=4)
    right = oracle.make_case((1, 2), 2, 1, 16, padding="right", ragged=True, prefix=21, suffix=5)
    right.suffix_lengths[:] = torch.tensor([5, 0, 3])
    right.suffix_k[0], right.suffix_v[0], right.suffix_k[2, :, :3], right.suffix_v[2, :, :3] = 1.0, 1.0, 0.5, 0.5
    oracle.check(right, forward, block=16, splits=2, tile_rows=2)
    wide = oracle.make_case((2, 2), 2, 1, 16, prefix=21, suffix=5)
    want = oracle.exact(wide)[1:]
    wide.prefix_lengths[:] += 20
    wide.suffix_lengths[:] += 20
    wide.prompt_of[0] = 3
    got = forward(*wide.arguments, block=16, splits=2, tile_rows=2)
    torch.testing.assert_close(got[1:].double(), want, rtol=1e-5, atol=2e-6, msg=lambda m: f"out: {m}")
    lone = oracle.exact(oracle.Case(*(wide.arguments[:3]), torch.zeros(2, dtype=torch.int64), *wide.arguments[4:6],
                                    torch.full((4,), 5), torch.zeros(4, dtype=torch.int64), wide.scale))  # fmt: skip
    torch.testing.assert_close(got[0].double(), lone[0], rtol=1e-5, atol=2e-6, msg=lambda m: f"out: {m}")


def test_the_planted_bugs_start_from_a_kernel_that_passes() -> None:
    _suite(kernel)


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_planted_bug_is_caught(bug: str, tmp_path: Path) -> None:
    module = with_bug(Path(kernel.__file__), tmp_path, bug, *BUGS[bug])
    with pytest.raises(AssertionError, match="out:"):
        _suite(module)
