"""Kernels compiled as their host code launches them: counts that change from call to call make no kernel of their own."""

from __future__ import annotations

import torch
from as_launched import compiled_only

from paras2s_kernels.gpu import shared_prefix_attention, varlen_attention


def test_one_kernel_takes_any_number_of_packed_tokens() -> None:
    """One token, one sequence and one position of a prefix too: of constants of 1, ptxas of CUDA 12.8 crashes on some."""
    with compiled_only() as built:
        for tokens, sequences, prefix in ((1, 1, 1), (5, 2, 3), (32, 16, 16)):
            q, k = (torch.zeros(tokens, heads, 16, dtype=torch.bfloat16) for heads in (4, 2))
            shared = torch.zeros(prefix, 2, 16, dtype=torch.bfloat16)
            ends = torch.full((sequences + 1,), tokens, dtype=torch.int32)
            arguments = (q, k, k, ends, 0.25, shared, shared)
            out, lse = varlen_attention.forward(*arguments)
            varlen_attention.backward(q, lse, *arguments, out, lse, True)
    assert {name: len(kernels) for name, kernels in built.items()} == dict.fromkeys(
        ("forward_kernel", "delta_kernel", "grad_queries_kernel", "grad_keys_kernel", "grad_prefix_kernel"), 1
    )


def test_one_kernel_takes_any_number_of_rows() -> None:
    with compiled_only() as built:
        for rows, prompts, prefix, suffix in ((1, 1, 1, 1), (6, 3, 130, 3), (64, 16, 512, 32)):
            q = torch.zeros(rows, 4, 16, dtype=torch.bfloat16)
            keys, own = (torch.zeros(n, 2, length, 16, dtype=torch.bfloat16) for n, length in ((prompts, prefix), (rows, suffix)))
            lengths, numbers = torch.zeros(prompts, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
            shared_prefix_attention.forward(q, keys, keys, lengths, own, own, numbers, numbers, 0.25, None, tile_rows=1)
    # strides that are and are not multiples of 16 would make two, but here all of them are
    assert {name: len(kernels) for name, kernels in built.items()} == {"prefix_kernel": 1, "suffix_kernel": 1}
