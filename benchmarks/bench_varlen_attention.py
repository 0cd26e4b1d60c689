"""varlen_attention beside padded attention and a loop over the sequences, in one run on whatever device is there.

    pytest benchmarks/bench_varlen_attention.py --benchmark-only --benchmark-columns=median,iqr,rounds
    pytest benchmarks/bench_varlen_attention.py --benchmark-only --benchmark-json=varlen_attention.json

Each group holds all variants of one shape and direction. `padded` is torch's fused attention over rows that were padded, with a copy of
the prefix each, beforehand: neither is timed, only what the padding and the copies cost in the attention. `loop` is one call of it
a sequence. On a GPU `ours` is the Triton kernel; the libraries it would go to are variants of their own where they are there and
there is no prefix. extra_info has the FLOPs that must be done, and those of the padded rows.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import CUDA, measure
from paras2s_kernels import force, varlen_attention, varlen_libraries

DEVICE = "cuda" if CUDA else "cpu"
# sequences, mean length, heads, key-value heads, head size, prefix, dtype: the pocket model; a judge of 7 B
SHAPES = [(32, 56, 6, 2, 32, prefix, torch.float32) for prefix in (0, 60)]
if CUDA:
    SHAPES = [(64, length, 28, 4, 128, prefix, torch.bfloat16) for length in (256, 1024) for prefix in (0, 512)]
LIBRARIES = [name for name in ("flash-attn", "torch-flash") if varlen_libraries.missing(name, torch.device(DEVICE)) is None]


def lengths_of(count: int, mean: int) -> list[int]:
    """From half to one and a half of the mean, the same at every run."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(mean // 2, mean + mean // 2 + 1, (count,), generator=draw).tolist()


def of_packed(name: str, lengths: list[int], q: Tensor, k: Tensor, v: Tensor, *prefix: Tensor) -> Callable[[], Tensor]:
    cu_seqlens = torch.tensor([0, *lengths], device=q.device).cumsum(0).int()

    def call() -> Tensor:
        with force(name):
            return varlen_attention(q, k, v, cu_seqlens, None, *prefix, max_seqlen=max(lengths))

    return call


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """With a mask torch 2.11 has no fused kernel for grouped heads."""
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def of_loop(lengths: list[int], q: Tensor, k: Tensor, v: Tensor, *prefix: Tensor) -> Callable[[], Tensor]:
    masks = [torch.ones(n, n + len(prefix[0]), dtype=torch.bool, device=q.device).tril(len(prefix[0])) if prefix else None for n in lengths]

    def call() -> Tensor:
        outs = []
        for queries, keys, values, mask in zip(q.split(lengths), k.split(lengths), v.split(lengths), masks, strict=True):
            if prefix:
                keys, values = torch.cat([prefix[0], keys]), torch.cat([prefix[1], values])
            heads = [x.transpose(0, 1)[None] for x in (queries, keys, values)]
            out = fused(*heads, mask)
            outs.append(out[0].transpose(0, 1))
        return torch.cat(outs)

    return call


def of_padded(lengths: list[int], q: Tensor, k: Tensor, v: Tensor, *prefix: Tensor) -> Callable[[], Tensor]:
    """Padded on the right: no real position sees the padding, so without a prefix no mask is needed."""
    rows = [torch.nn.utils.rnn.pad_sequence(x.split(lengths), batch_first=True) for x in (q, k, v)]
    if prefix:
        rows[1:] = [torch.cat([p.expand(len(lengths), *p.shape), x], 1) for p, x in zip(prefix, rows[1:], strict=True)]
    heads = [x.transpose(1, 2).contiguous() for x in rows]
    longest = max(lengths)
    mask = torch.ones(longest, longest + len(prefix[0]), dtype=torch.bool, device=q.device).tril(len(prefix[0])) if prefix else None
    return lambda: fused(*heads, mask)


@pytest.mark.parametrize("variant", ("ours", *LIBRARIES, "padded", "loop"))
@pytest.mark.parametrize("direction", ("forward", "both"))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}+{shape[5]}")
def test_varlen_attention(benchmark: pytest.FixtureRequest, shape: tuple, direction: str, variant: str) -> None:
    count, mean, heads, kv_heads, dim, prefix, dtype = shape
    if variant in LIBRARIES and prefix:
        pytest.skip(f"{variant} knows no shared prefix")
    lengths = lengths_of(count, mean)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=dtype, device=DEVICE, requires_grad=direction == "both")

    tensors = [normal(sum(lengths), n, dim) for n in (heads, kv_heads, kv_heads)]
    tensors += [normal(prefix, kv_heads, dim) for _ in range(2)] if prefix else []
    if variant == "padded":
        forward = of_padded(lengths, *tensors)
    elif variant == "loop":
        forward = of_loop(lengths, *tensors)
    else:
        forward = of_packed(variant if variant in LIBRARIES else "triton" if CUDA else "reference", lengths, *tensors)
    grad = torch.randn_like(forward().detach())

    def call() -> None:
        out = forward()
        if direction == "both":
            torch.autograd.grad(out, tensors, grad, retain_graph=variant == "padded")

    benchmark.group = f"{direction}, {count} of {mean}, prefix {prefix}"  # type: ignore[attr-defined]
    longest, products = max(lengths), 3.5 if direction == "both" else 1  # two products forward, at least five backward
    benchmark.extra_info.update(  # type: ignore[attr-defined]
        flops=products * sum(4 * heads * dim * n * (prefix + n / 2) for n in lengths),
        flops_padded=products * 4 * heads * dim * count * longest * (prefix + longest / 2),
        device=torch.cuda.get_device_name() if CUDA else "cpu",
        torch=torch.__version__,
    )
    measure(benchmark, [call], rounds=20)
