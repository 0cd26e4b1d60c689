"""bfloat16 arithmetic for the Triton 3.6 interpreter.

The interpreter keeps bf16 as its 16 raw bits in uint16 arrays and adds and multiplies those bits as
integers. Here a bf16 value is a float32 array instead, and the one place through which every result goes,
the constructor of a handle, rounds it to the nearest bf16 (ties to even). Raw bits exist only at loads,
stores and bitcasts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_BF16 = tl.bfloat16


def widen(bits: np.ndarray) -> np.ndarray:
    """uint16 bits of bf16 -> float32."""
    return np.left_shift(bits.astype(np.uint32), 16).view(np.float32)


def nearest(values: np.ndarray) -> np.ndarray:
    """float -> float32 that holds the nearest bf16; NaN stays NaN, what is too large becomes infinite."""
    single = np.array(values, dtype=np.float32, ndmin=1)
    bits = single.view(np.uint32)
    low = bits & np.uint32(0xFFFF)
    cut = bits - low
    up = (low > 0x8000) | ((low == 0x8000) & ((cut >> np.uint32(16)) & np.uint32(1) == 1))
    rounded = np.where(up, cut + np.uint32(0x10000), cut).view(np.float32)
    return np.where(np.isnan(single), single, rounded).reshape(np.shape(values))


def narrow(values: np.ndarray) -> np.ndarray:
    """float -> uint16 bits of the nearest bf16."""
    single = np.ascontiguousarray(nearest(values), dtype=np.float32)
    bits = np.right_shift(single.view(np.uint32), 16).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(0x7FC0), bits)


def _is_bf16(dtype: Any) -> bool:
    return not isinstance(dtype, tl.pointer_type) and dtype.scalar == _BF16


def install() -> None:
    """Patches the interpreter of this process, once."""
    if getattr(interpreter, "_bf16_as_float32", False):
        return
    interpreter._bf16_as_float32 = True
    handle, builder = interpreter.TensorHandle, interpreter.InterpreterBuilder
    numpy_dtype, fits, check = (
        interpreter._get_np_dtype,
        interpreter._validate_np_data_size,
        handle.__post_init__,
    )
    load, store = builder.create_masked_load, builder.create_masked_store
    bitcast, fabs, fp_to_fp, rmw = (
        builder.create_bitcast, builder.create_fabs, builder.create_fp_to_fp, builder.create_atomic_rmw
    )  # fmt: skip

    def post_init(self: Any) -> None:
        if _is_bf16(self.dtype) and self.data.dtype.kind == "f":
            self.data = nearest(self.data)
        check(self)

    def masked_load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
        if not _is_bf16(ptrs.get_element_ty()):
            return load(self, ptrs, mask, other, *rest)
        fill = np.zeros(ptrs.data.shape, np.uint16) if other is None else narrow(other.data)
        fill = np.ascontiguousarray(np.broadcast_to(fill, ptrs.data.shape))
        bits = interpreter._interpreter.load(ptrs.data, mask.data, fill, np.dtype(np.uint16))
        return handle(widen(bits), _BF16)

    def masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        if not _is_bf16(value.dtype):
            return store(self, ptrs, value, mask, *rest)
        return interpreter._interpreter.store(ptrs.data, narrow(value.data), mask.data)

    def cast(self: Any, src: Any, dst_type: Any) -> Any:
        return handle(src.data.astype(interpreter._get_np_dtype(dst_type)), dst_type.scalar)

    def cast_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if _is_bf16(src.dtype) or _is_bf16(dst_type):
            return cast(self, src, dst_type)
        return fp_to_fp(self, src, dst_type, rounding_mode)

    def cast_bits(self: Any, src: Any, dst_type: Any) -> Any:
        if _is_bf16(src.dtype) == _is_bf16(dst_type):
            return bitcast(self, src, dst_type)
        if _is_bf16(dst_type):
            return handle(widen(src.data.view(np.uint16)), _BF16)
        return handle(narrow(src.data).view(interpreter._get_np_dtype(dst_type)), dst_type.scalar)

    def absolute(self: Any, arg: Any) -> Any:
        return handle(np.abs(arg.data), _BF16) if _is_bf16(arg.dtype) else fabs(self, arg)

    def atomic_rmw(self: Any, op: Any, ptr: Any, val: Any, *rest: Any) -> Any:
        if _is_bf16(val.dtype):
            raise NotImplementedError("the interpreter has no bf16 atomics")
        return rmw(self, op, ptr, val, *rest)

    interpreter._get_np_dtype = lambda ty: np.dtype(np.float32) if _is_bf16(ty) else numpy_dtype(ty)
    interpreter._validate_np_data_size = lambda array, ty: _is_bf16(ty) or fits(array, ty)
    handle.__post_init__ = post_init
    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
    builder.cast_impl, builder.create_fp_to_fp = cast, cast_fp
    builder.create_bitcast, builder.create_fabs, builder.create_atomic_rmw = cast_bits, absolute, atomic_rmw
    builder.get_bf16 = lambda self, value: handle(np.array([value], dtype=np.float32), _BF16)
