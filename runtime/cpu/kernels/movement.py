"""Border and data movement: QuantizeLinear, DequantizeLinear, strided copies, gathers."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from . import record as r
from .intrinsics import as_pointer, carray, external
from .memory import address, widen


def _rint32(_context: Any, _x: Any) -> Any:
    """rint32(x): float32 to the nearest integer, half to even."""

    def codegen(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FloatType()
        return builder.call(external(builder, "llvm.rint.f32", kind, [kind]), [args[0]])

    return types.float32(types.float32), codegen


rint32: Any = intrinsic(_rint32)


@njit(nogil=True)
def line_offset(step: Any, pointers: Any, line: int, which: int) -> int:
    """Byte offset of an innermost row, `line` counting all rows."""
    rank = step[r.RANK]
    shape = carray(as_pointer(address(pointers, step[r.M_SHAPE])), rank, np.int64)
    strides = carray(as_pointer(address(pointers, step[which])), rank, np.int64)
    at = 0
    for i in range(rank - 2, -1, -1):
        at += (line % shape[i]) * strides[i]
        line //= shape[i]
    return at


@njit(nogil=True)
def lines_of(step: Any, pointers: Any) -> int:
    shape = carray(as_pointer(address(pointers, step[r.M_SHAPE])), step[r.RANK], np.int64)
    n = 1
    for i in range(step[r.RANK] - 1):
        n *= shape[i]
    return n


@njit(nogil=True)
def quantize_chunk(step: Any, chunk: int, pointers: Any) -> None:
    """clip(rint(x / scale) + zero_point), in float32; M_SCALE: ref to a float32."""
    rank = step[r.RANK]
    lines = lines_of(step, pointers)
    inner = carray(as_pointer(address(pointers, step[r.M_SHAPE])), rank, np.int64)[rank - 1]
    stride = carray(as_pointer(address(pointers, step[r.M_DST_STRIDES])), rank, np.int64)[rank - 1]
    src_stride = carray(as_pointer(address(pointers, step[r.M_SRC_STRIDES])), rank, np.int64)[rank - 1]
    scale = carray(as_pointer(address(pointers, step[r.M_SCALE])), 1, np.float32)[0]
    zero, lo, hi = np.float32(step[r.M_ZERO_POINT]), np.float32(step[r.M_LO]), np.float32(step[r.M_HI])
    src, dst = address(pointers, step[r.M_SRC]), address(pointers, step[r.M_DST])
    wide = step[r.M_DTYPE] >= 2
    for line in range(lines * chunk // step[r.CHUNKS], lines * (chunk + 1) // step[r.CHUNKS]):
        x_at = src + line_offset(step, pointers, line, r.M_SRC_STRIDES)
        y_at = dst + line_offset(step, pointers, line, r.M_DST_STRIDES)
        if src_stride == 4:
            x = carray(as_pointer(x_at), inner, np.float32)
            if wide:
                for i in range(inner):
                    v = np.int32(min(max(rint32(x[i] / scale) + zero, lo), hi))
                    carray(as_pointer(y_at + i * stride), 1, np.uint16)[0] = np.uint16(v & 65535)
            else:
                y = carray(as_pointer(y_at), inner * stride, np.uint8)
                for i in range(inner):
                    y[i * stride] = np.uint8(np.int32(min(max(rint32(x[i] / scale) + zero, lo), hi)) & 255)
        else:
            for i in range(inner):
                f = carray(as_pointer(x_at + i * src_stride), 1, np.float32)[0]
                v = np.int32(min(max(rint32(f / scale) + zero, lo), hi))
                if wide:
                    carray(as_pointer(y_at + i * stride), 1, np.uint16)[0] = np.uint16(v & 65535)
                else:
                    carray(as_pointer(y_at + i * stride), 1, np.uint8)[0] = np.uint8(v & 255)


@njit(nogil=True)
def dequantize_chunk(step: Any, chunk: int, pointers: Any) -> None:
    """(x - zero_point) * scale, the difference rounded to float32 first."""
    rank = step[r.RANK]
    lines = lines_of(step, pointers)
    inner = carray(as_pointer(address(pointers, step[r.M_SHAPE])), rank, np.int64)[rank - 1]
    d_stride = carray(as_pointer(address(pointers, step[r.M_DST_STRIDES])), rank, np.int64)[rank - 1]
    s_stride = carray(as_pointer(address(pointers, step[r.M_SRC_STRIDES])), rank, np.int64)[rank - 1]
    scale = carray(as_pointer(address(pointers, step[r.M_SCALE])), 1, np.float32)[0]
    src, dst, code = address(pointers, step[r.M_SRC]), address(pointers, step[r.M_DST]), step[r.M_DTYPE]
    zero = np.int64(step[r.M_ZERO_POINT])
    for line in range(lines * chunk // step[r.CHUNKS], lines * (chunk + 1) // step[r.CHUNKS]):
        x_at = src + line_offset(step, pointers, line, r.M_SRC_STRIDES)
        y_at = dst + line_offset(step, pointers, line, r.M_DST_STRIDES)
        for i in range(inner):
            # the output's own place holds the widened integer for a moment
            at = y_at + i * d_stride
            widen(at, x_at + i * s_stride, 1, code)
            value = carray(as_pointer(at), 1, np.int32)[0]
            centred = np.float32(np.int64(value) - zero)
            carray(as_pointer(at), 1, np.float32)[0] = centred * scale


@njit(nogil=True)
def _move(dst: int, d_stride: int, src: int, s_stride: int, count: int, code: int) -> None:
    """count elements, code 0, 2, 4: of 1, 2, 4 bytes."""
    size = 1 if code < 2 else (2 if code < 4 else 4)
    if d_stride == size and s_stride == size:
        a = carray(as_pointer(src), count * size, np.uint8)
        b = carray(as_pointer(dst), count * size, np.uint8)
        for i in range(count * size):
            b[i] = a[i]
    elif size == 1:
        a1 = carray(as_pointer(src), count * s_stride, np.uint8)
        b1 = carray(as_pointer(dst), count * d_stride, np.uint8)
        for i in range(count):
            b1[i * d_stride] = a1[i * s_stride]
    elif size == 2:
        for i in range(count):
            v = carray(as_pointer(src + i * s_stride), 1, np.uint16)[0]
            carray(as_pointer(dst + i * d_stride), 1, np.uint16)[0] = v
    else:
        for i in range(count):
            w = carray(as_pointer(src + i * s_stride), 1, np.uint32)[0]
            carray(as_pointer(dst + i * d_stride), 1, np.uint32)[0] = w


@njit(nogil=True)
def copy_chunk(step: Any, chunk: int, pointers: Any) -> None:
    """A strided copy (layout changes, concatenation where it cannot be written in place, slices, splits)."""
    rank = step[r.RANK]
    lines = lines_of(step, pointers)
    inner = carray(as_pointer(address(pointers, step[r.M_SHAPE])), rank, np.int64)[rank - 1]
    d_stride = carray(as_pointer(address(pointers, step[r.M_DST_STRIDES])), rank, np.int64)[rank - 1]
    s_stride = carray(as_pointer(address(pointers, step[r.M_SRC_STRIDES])), rank, np.int64)[rank - 1]
    src, dst = address(pointers, step[r.M_SRC]), address(pointers, step[r.M_DST])
    for line in range(lines * chunk // step[r.CHUNKS], lines * (chunk + 1) // step[r.CHUNKS]):
        x_at = src + line_offset(step, pointers, line, r.M_SRC_STRIDES)
        y_at = dst + line_offset(step, pointers, line, r.M_DST_STRIDES)
        _move(y_at, d_stride, x_at, s_stride, inner, step[r.M_DTYPE])


@njit(nogil=True)
def gather_chunk(step: Any, chunk: int, pointers: Any) -> None:
    """y[o, i, :] = x[o, index[i], :]; M_SHAPE = (outer, count, inner) with strides; M_INDICES: ref to int64."""
    shape = carray(as_pointer(address(pointers, step[r.M_SHAPE])), 3, np.int64)
    s = carray(as_pointer(address(pointers, step[r.M_SRC_STRIDES])), 3, np.int64)
    d = carray(as_pointer(address(pointers, step[r.M_DST_STRIDES])), 3, np.int64)
    index = carray(as_pointer(address(pointers, step[r.M_INDICES])), shape[1], np.int64)
    src, dst = address(pointers, step[r.M_SRC]), address(pointers, step[r.M_DST])
    lines = shape[0] * shape[1]
    for line in range(lines * chunk // step[r.CHUNKS], lines * (chunk + 1) // step[r.CHUNKS]):
        o, i = line // shape[1], line % shape[1]
        x_at, y_at = src + o * s[0] + index[i] * s[1], dst + o * d[0] + i * d[1]
        _move(y_at, d[2], x_at, s[2], shape[2], step[r.M_DTYPE])
