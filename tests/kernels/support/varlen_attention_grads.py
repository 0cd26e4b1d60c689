"""Checks of varlen_attention's gradient kernels, for the cases and for the planted bugs."""

from __future__ import annotations

from dataclasses import replace

import torch
import varlen_attention_oracle as oracle

from paras2s_kernels.gpu.varlen_tiles import Tile
from paras2s_kernels.reference import varlen_attention as reference

SMALL = Tile(16, 16, 1)
# which gradients are whose
OF = {
    "grad_queries_kernel": oracle.NAMES[2:3],
    "grad_keys_kernel": oracle.NAMES[3:5],
    "grad_prefix_kernel": oracle.NAMES[5:],
}
Names = tuple[str, ...]
GRADS: Names = oracle.NAMES[2:]


def check(
    case: oracle.Case, module: object, tile: Tile | None = SMALL, parts: int | None = 2, grad_lse: bool = True, names: Names = GRADS
) -> None:
    """The gradients alone, of a forward by the reference."""
    out, lse = reference.forward(*case.arguments)
    sums = case.grad_lse if grad_lse else None
    has_prefix = case.prefix_k is not None
    with oracle.guarded():
        grads = module.backward(  # type: ignore[attr-defined]
            case.grad_out, sums, *case.arguments, out, lse, has_prefix, tile=tile, parts=parts
        )
    assert all(grad.is_contiguous() for grad in grads)
    got = {name: grad for name, grad in zip(GRADS, grads if has_prefix else grads[:3], strict=False) if name in names}
    oracle.check_close(case, tuple(got.values()), grad_lse, tuple(got))


def check_tail(module: object, names: Names = GRADS) -> None:
    """Tokens behind the last sequence get gradient 0 and give none."""
    case = oracle.make_case((21, 20), 1, 1, 8, prefix=5)
    short = replace(case, cu_seqlens=case.cu_seqlens[:2])
    part = replace(short, **{name: getattr(case, name)[:21] for name in ("q", "k", "v", "grad_out", "grad_lse")})
    out, lse = (torch.cat([x, torch.full_like(y[21:], fill)]) for x, y, fill in
                zip(reference.forward(*part.arguments), reference.forward(*case.arguments), (0.0, float("-inf")), strict=True))  # fmt: skip
    with oracle.guarded():
        grads = module.backward(  # type: ignore[attr-defined]
            short.grad_out, short.grad_lse, *short.arguments, out, lse, True, tile=SMALL, parts=2
        )
    got = {name: grad for name, grad in zip(GRADS, grads, strict=True) if name in names}
    for name in set(got) & set(GRADS[:3]):
        assert not got[name][21:].any(), f"{name}: tokens of no sequence"  # NaN is any, too
        got[name] = got[name][:21]
    oracle.check_close(part, tuple(got.values()), True, tuple(got))


def check_low_scores(module: object, names: Names = GRADS) -> None:
    """exp(-lse) is infinite here: where the prefix ends it must not meet a key of 0."""
    case = oracle.make_case((18, 3), 1, 1, 8, prefix=5)
    case.q[..., 0], case.k[..., 0], case.prefix_k[..., 0] = 24.0, -24.0, -24.0
    out, lse = reference.forward(*case.arguments)
    assert lse.max() < -150
    grads = module.backward(  # type: ignore[attr-defined]
        case.grad_out, case.grad_lse, *case.arguments, out, lse, True, tile=SMALL, parts=2
    )
    assert all(grad.isfinite().all() for name, grad in zip(GRADS, grads, strict=True) if name in names), "grad_q: not finite"


def check_all(module: object, names: Names = GRADS) -> None:
    """What finds most comes first, what is long last."""
    check(oracle.make_case((33, 5), 1, 1, 8, 19), module, Tile(32, 16, 1), names=names)
    check(oracle.make_case((37,), 1, 1, 8), module, Tile(16, 32, 1), names=names)
    check_tail(module, names)
    check_low_scores(module, names)
    check(oracle.make_case((34,), 4, 2, 8, 3, strided=True), module, names=names)
