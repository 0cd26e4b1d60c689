"""Bugs planted in varlen_attention's gradient kernels; run by ../test_varlen_attention_backward.py in its own process."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import interpreter_bf16
import pytest
from launches import record_grids
from planted import with_bug
from varlen_attention_grads import OF, check_all

from paras2s_kernels.gpu import varlen_attention_backward as kernel

interpreter_bf16.install()

MASK_Q = 'scores = tl.where(tl.arange(0, BLOCK_N)[None, :] <= last[:, None], scores, float("-inf"))\n        weights = tl.exp2(scores - lse'
MASK_K = "own[:, None] <= row[None, :]"
DELTA, QUERIES, KEYS, PREFIX = ("delta_kernel", "grad_queries_kernel"), ("grad_queries_kernel", "_grad_of_keys"), (
    "grad_keys_kernel", "grad_prefix_kernel"), ("grad_prefix_kernel", "parts_for")  # fmt: skip
ALL = ("delta_kernel", "parts_for")
# between which two functions the text occurs once, what is right, what is planted
BUGS = {
    "gradient_of_the_sums_added": (DELTA, "result -= tl.load(grad_lse", "result += tl.load(grad_lse"),
    "gradient_of_the_sums_dropped": (DELTA, "if HAS_LSE:", "if HAS_LSE and DIM < 0:"),
    "delta_of_the_first_head": (DELTA, "out + head * DIM, heads * DIM", "out, heads * DIM"),
    "delta_by_its_own_layout": (DELTA, "grad_out + head * g_head, g_token", "grad_out + head * DIM, heads * DIM"),
    "deltas_side_by_side": (DELTA, "place = position * heads + head + row * heads", "place = position * heads + head + row"),
    "queries_scale_of_e": (QUERIES, "acc * (scale * LN2)", "acc * scale"),
    "queries_without_lse": (ALL, "weights = tl.exp2(scores - lse[:, None])", "weights = tl.exp2(scores)"),
    "queries_lse_of_e": (QUERIES, 'other=0.0) * LOG2E', 'other=0.0)'),
    "queries_without_delta": (ALL, " - delta[:, None]", ""),
    "queries_unseen_counts": (ALL, MASK_Q, "scores = scores + 0.0\n        weights = tl.exp2(scores - lse"),
    "queries_see_one_more": (ALL, MASK_Q, MASK_Q.replace("last[:, None]", "last[:, None] + 1")),
    "queries_last_block_only": (ALL, "k_block, acc, input", "k_block, input"),
    "queries_of_the_first_head": (QUERIES, "keys = k + start * k_token + kv_head * k_head", "keys = k + start * k_token"),
    "queries_values_of_the_first_sequence": (QUERIES, "values = v + start * v_token", "values = v"),
    "queries_prefix_dropped": (QUERIES, "seen = tl.where(rest, 0, prefix)", "seen = tl.where(rest, 0, 0)"),
    "queries_rest_sees_the_prefix": (QUERIES, "seen = tl.where(rest, 0, prefix)", "seen = (prefix + zero)"),
    "queries_end_of_the_prefix": (QUERIES, "pk_token, pv_token, even, seen, seen - 1,", "pk_token, pv_token, seen, seen, seen - 1,"),
    "queries_prefix_is_causal": (QUERIES, "            True, 0, DIM", "            True, 1, DIM"),
    "queries_beginning_dropped": (QUERIES, "k_token, v_token, zero, even, position,", "k_token, v_token, even, even, position,"),
    "queries_diagonal_dropped": (QUERIES, "k_token, v_token, even, stop, position,", "k_token, v_token, stop, stop, position,"),
    "queries_diagonal_cut": (QUERIES, "tl.minimum(position + BLOCK_M, length)", "tl.minimum(position + BLOCK_N, length)"),
    "queries_layout_of_dout": (QUERIES, "g_token, position, length, DIM", "q_token, position, length, DIM"),
    "keys_unseen_counts": (ALL, MASK_K, "own[:, None] <= row[None, :] + 1000"),
    "keys_seen_too_early": (ALL, MASK_K, "own[:, None] <= row[None, :] + 1"),
    "keys_seen_too_late": (ALL, MASK_K, "own[:, None] < row[None, :]"),
    "keys_without_delta": (ALL, " - delta_block[None, :]", ""),
    "keys_lse_of_the_first_block": (ALL, "lse + position * heads + row * heads", "lse + row * heads"),
    "keys_values_of_the_last_block": (ALL, "g_block, grad_v, input", "g_block, input"),
    "keys_of_the_last_block": (ALL, "q_block, grad_k, input", "q_block, input"),
    "keys_scale_of_e": (KEYS, "acc_k * (scale * LN2)", "acc_k * scale"),
    "keys_of_one_head": (KEYS, "range(kv_head * REP, kv_head * REP + REP)", "range(kv_head * REP, kv_head * REP + 1)"),
    "keys_interleaved_heads": (KEYS, "row_base = start * heads + head", "row_base = start * heads + kv_head"),
    "keys_diagonal_late": (KEYS, "first = position // BLOCK_M * BLOCK_M", "first = tl.cdiv(position, BLOCK_M) * BLOCK_M"),
    "keys_diagonal_short": (KEYS, "tl.cdiv(position + BLOCK_N, BLOCK_M)", "tl.cdiv(position + 1, BLOCK_M)"),
    "keys_later_queries_dropped": (KEYS, "g_token, heads, even, stop, position", "g_token, heads, stop, stop, position"),
    "keys_rest_sees_itself": (KEYS, "stop = tl.where(rest, 0, length)", "stop = length"),
    "keys_stored_for_the_first_sequence": (KEYS, "place = (start * kv_heads + kv_head) * DIM", "place = kv_head * DIM + start * 0"),
    "prefix_scale_of_e": (PREFIX, "acc_k * (scale * LN2)", "acc_k * scale"),
    "prefix_of_one_head": (PREFIX, "range(kv_head * REP, kv_head * REP + REP)", "range(kv_head * REP, kv_head * REP + 1)"),
    "prefix_parts_overlap": (PREFIX, "stop = tl.minimum(first + share, seers)", "stop = seers"),
    "prefix_share_rounded_down": (PREFIX, "tl.cdiv(tl.cdiv(seers, BLOCK_M), tl.num_programs(2)",
                                  "tl.cdiv(seers // BLOCK_M, tl.num_programs(2)"),
    "prefix_seen_by_the_rest": (PREFIX, "seers = tl.minimum(tl.load(cu + sequences).to(tl.int64), tokens)",
                                "seers = tl.zeros_like(position) + tokens"),
    "prefix_of_the_first_head": (PREFIX, "prefix_v + kv_head * pv_head", "prefix_v"),
    "prefix_parts_in_one_place": (PREFIX, "((part * prefix) * kv_heads + kv_head)", "(part * 0 + kv_head)"),
    "prefix_of_one_part": (("parts_for", None), "part_k.sum(0)", "part_k[0]"),
}  # fmt: skip


def planted(bug: str, tmp_path: Path) -> ModuleType:
    (first, end), right, wrong = BUGS[bug]
    text = Path(kernel.__file__).read_text()
    body = text[text.index(f"def {first}(") : None if end is None else text.index(f"def {end}(")]
    assert body.count(right) == 1, f"{bug}: {right!r} occurs {body.count(right)} times from {first} to {end}"
    return with_bug(Path(kernel.__file__), tmp_path, bug, body, body.replace(right, wrong))


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_planted_bug_is_caught(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the gradients of the kernel that it is named after (those of q, for delta): the others are not launched."""
    module = planted(bug, tmp_path)
    own = next((name for name in OF if name.startswith(f"grad_{bug.split('_')[0]}_")), "grad_queries_kernel")
    record_grids(monkeypatch, module, *(name for name in OF if name != own))
    with pytest.raises(AssertionError, match=r"grad_\w+:"):
        check_all(module, OF[own])
