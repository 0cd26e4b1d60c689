"""sample_logprob's Triton kernel in the interpreter; run by ../test_sample_logprob.py in its own process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import interpreter_bf16
import pytest
import sample_logprob_oracle as oracle
import torch
import triton
import triton.language as tl
from launches import record_grids
from planted import with_bug

from paras2s_kernels import force, sample_logprob
from paras2s_kernels.gpu import sample_logprob as kernel
from paras2s_kernels.reference import sample_logprob as reference

interpreter_bf16.install()

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# columns -> block: a row in one partly filled block, and odd rows in several
BLOCKS = {1: 256, 7: 256, 129: 64, 1000: 256}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", BLOCKS)
def test_the_whole_vocabulary(vocab: int, dtype: torch.dtype) -> None:
    oracle.check(oracle.make_case(5, vocab, dtype), kernel.forward, block=BLOCKS[vocab])


RESTRICTED = ({"top_k": 1}, {"top_k": 20}, {"top_p": 0.7}, {"top_k": 40, "top_p": 0.9}, {"top_k": 40, "top_p": 0.9, "temperature": 0.0})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("settings", RESTRICTED, ids=str)
def test_restricted(settings: dict[str, float], dtype: torch.dtype) -> None:
    oracle.check(oracle.make_case(2, 97, dtype, strided=True, **settings), kernel.forward, block=64)


def test_ties_at_the_cut_are_kept_and_both_zeros_are_one() -> None:
    case = oracle.make_case(8, 50, torch.bfloat16, ties=True, top_k=25)
    assert (case.logits.view(torch.int16) == -(2**15)).any() and (case.logits.topk(25).values[:, -1] == 0).any()
    oracle.check(case, kernel.forward, block=64)
    oracle.check(replace(case, top_k=0, top_p=0.6), kernel.forward, block=32)


def test_greedy_takes_the_lowest_of_equals() -> None:
    case = oracle.make_case(6, 129, torch.bfloat16, ties=True, temperature=0.0)
    case.logits[:, [3, 40, 100]] = 9.0
    ids, _ = oracle.check(case, kernel.forward, block=32)
    assert ids.tolist() == [3] * 6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("settings", ({}, {"temperature": 0.0}, {"top_k": 40, "top_p": 0.8}), ids=str)
def test_illegal_ids(settings: dict[str, float], dtype: torch.dtype) -> None:
    case = oracle.make_case(3, 129, dtype, illegal=0.8, **settings)  # fewer than 40 are legal
    case.logits[2, :70] = oracle.NEG_INF
    oracle.check(case, kernel.forward, block=64)


def test_large_logits_keep_their_differences() -> None:
    case = oracle.make_case(3, 129)
    case.logits.add_(1024.0)
    oracle.check(case, kernel.forward, block=64)


def test_a_row_is_drawn_alike_in_every_batch() -> None:
    case = oracle.make_case(6, 61)
    other = torch.tensor([4, 1])
    ids, logprob = kernel.forward(*case.arguments())
    again = replace(case, logits=case.logits[other], row_ids=case.row_ids[other], steps=case.steps[other])
    ids_again, logprob_again = kernel.forward(*again.arguments())
    assert torch.equal(ids_again, ids[other]) and torch.equal(logprob_again, logprob[other])


def test_through_the_public_function() -> None:
    case = oracle.make_case(4, 61, torch.bfloat16, top_k=9)
    with force("triton"):
        ids, logprob = sample_logprob(*case.arguments())
    oracle.check_drawn(case, ids, logprob)
    case = replace(case, steps=torch.full((4,), 7), top_k=0)
    with force("triton"):
        ids, logprob = sample_logprob(case.logits, case.seed, case.row_ids, 7, case.stream, case.temperature)
    oracle.check_drawn(case, ids, logprob)


def test_rows_are_in_the_grid_dimension_that_can_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = record_grids(monkeypatch, kernel, "sample_kernel")
    rows = torch.zeros(70_000, dtype=torch.int64)
    kernel.forward(rows[:, None].float(), 0, rows, rows, 0, 1.0, 0, 1.0)
    assert grids == [(70_000,)]  # dimension 0 ends at 2**31 - 1, the others at 65,535


def _check_exponentials(module: object) -> None:
    exponentials = module.exponentials  # type: ignore[attr-defined]

    @triton.jit
    def run(words, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
        places = tl.arange(0, N)
        tl.store(out + places, exponentials(tl.load(words + places).to(tl.uint32)))

    special = [0, 1, 2, 100, 127, 128, 129, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1]
    words = torch.cat([torch.tensor(special), torch.randint(0, 2**32, (256 - len(special),))])
    out = torch.empty(256)
    run.fn.__globals__["exponentials"] = exponentials
    run[(1,)](words, out, N=256)
    want = -torch.log1p(-(words.double() + 0.5) * 2.0**-32)
    torch.testing.assert_close(out.double(), want, rtol=1e-6, atol=0.0, msg=lambda m: f"exponentials: {m}")
    torch.testing.assert_close(reference.exponentials(words).double(), want, rtol=1e-6, atol=0.0)


BUGS = {
    "order_of_the_negatives": ("bits ^ 0xFFFFFFFF, bits |", "bits, bits |"),
    "positives_below_the_negatives": ("bits | 0x80000000)", "bits)"),
    "two_zeros": ("tl.where(x == 0.0, 0.0, x).to(", "x.to("),
    "digits_overlap": ("digit = digit >> 2", "digit = digit >> 1"),
    "a_digit_left_out": ("range(DIGITS)", "range(DIGITS - 1)"),
    "second_threshold": ("found + 2 * digit", "found + 3 * digit"),
    "third_threshold": ("(tl.sum(three, 0) >= target)", "(tl.sum(two, 0) >= target)"),
    "one_more_than_k": ("top_k * 1.0", "top_k + 1.0"),
    "blocks_forgotten": ("one += tl.where", "one = tl.where"),
    "total_below_the_cut": ("mass += tl.where(ordered(x) >= least, tl", "mass += tl.where(ordered(x) >= 0, tl"),
    "mass_without_temperature": ("tl.exp((x - row_max) * inv_temperature)", "tl.exp(x - row_max)"),
    "nucleus_of_everything": ("top_p * tl.sum(mass, 0)", "tl.sum(mass, 0)"),
    "cut_excludes_its_id": ("kept = ordered(x) >= least", "kept = ordered(x) > least"),
    "dead_row_has_a_value": ("value = tl.where(m == neg_inf, neg_inf, ", "value = ("),
    "maximum_of_the_last_block": ("m = tl.maximum(m, tl.max(x, 0))", "m = tl.max(x, 0)"),
    "stride_ignored": ("base = logits + row * row_stride", "base = logits + row * vocab"),
    "stream_ignored": ("stream * 4194304 + start", "start"),
    "same_numbers_in_every_block": ("+ start // 4 +", "+"),
    "step_of_the_first_row": ("tl.load(steps + row * step_stride)", "tl.load(steps)"),
    "row_id_of_the_first_row": ("tl.load(row_ids + row)", "tl.load(row_ids)"),
    "row_id_of_32_bits": ("(row_id >> 32)", "(row_id >> 63)"),
    "seed_of_32_bits": ("tl.philox(seed, ", "tl.philox(seed & 0xFFFFFFFF, "),
    "words_out_of_order": ("tl.join(r0, r2), tl.join(r1, r3)", "tl.join(r0, r1), tl.join(r2, r3)"),
    "weights_of_the_last_block": ("weights += w", "weights = w"),
    "weights_without_temperature": ("w = tl.where(kept, tl.exp((x - m) * inv_temperature), 0.0)",
                                    "w = tl.where(kept, tl.exp(x - m), 0.0)"),
    "race_the_wrong_way": ("w / exponentials(words)", "w * exponentials(words)"),
    "race_of_those_left_out": ("score = tl.where(kept, w / exponentials(words), neg_inf)",
                               "score = tl.exp((x - m) * inv_temperature) / exponentials(words)"),
    "greedy_takes_the_last": ("tl.where(top > best, ", "tl.where(top >= best, "),
    "place_in_the_block": ("start + place", "place"),
    "logprob_without_temperature": ("(x_id - m) * inv_temperature - tl.log", "(x_id - m) - tl.log"),
    "complement_forgotten": ("((words ^ 0xFFFFFFFF)", "(words"),
    "infinite_race": ("(words.to(tl.float32) + 0.5)", "words.to(tl.float32)"),
    "smallest_numbers_lost": ("tl.where(lost == 0.0, v, ", "tl.where(lost == 0.0, 0.0, "),
    "rounding_not_made_up_for": ("-tl.log(rest) * (v / tl.where(lost == 0.0, 1.0, lost))", "-tl.log(rest)"),
}  # fmt: skip


def _suite(module: object) -> None:
    forward = module.forward  # type: ignore[attr-defined]
    oracle.check(oracle.make_case(3, 129, strided=True), forward, block=64)
    case = oracle.make_case(2, 129, illegal=0.3, temperature=0.0)
    case.logits[:, [40, 100]] = 9.0
    case.logits[0], case.logits[1, 128] = oracle.NEG_INF, oracle.NEG_INF  # all of the last block too
    oracle.check(case, forward, block=64)
    _check_exponentials(module)
    oracle.check(oracle.make_case(4, 33, torch.bfloat16, ties=True, top_k=18), forward, block=32)
    oracle.check(oracle.make_case(4, 129, torch.bfloat16, top_k=30, top_p=0.6), forward, block=64)
    oracle.check(oracle.make_case(2, 33, top_k=7), forward, block=64)


def test_the_planted_bugs_start_from_a_kernel_that_passes() -> None:
    _suite(kernel)


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_planted_bug_is_caught(bug: str, tmp_path: Path) -> None:
    module = with_bug(Path(kernel.__file__), tmp_path, bug, *BUGS[bug])
    with pytest.raises(AssertionError, match=r"ids:|logprob:|exponentials:"):
        _suite(module)
