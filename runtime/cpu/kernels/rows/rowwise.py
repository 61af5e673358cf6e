"""Operators that work on whole rows: softmax, interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .. import record as r
from ..intrinsics import as_pointer, carray
from ..memory import address
from ..movement import line_offset, lines_of

DROPPED = -65536
"""Below what 16 bits hold: where a mask drops an element."""


@njit(nogil=True)
def softmax_chunk(step: Any, chunk: int, pointers: Any) -> None:
    """qir.Softmax along the innermost axis  [docs/arithmetic.md 9, 9b].

    M_SCALE: ref to the tables of exponentials (uint32), that of the low bytes behind that of the high ones for 16 bits.
    M_INDICES: ref to the reciprocals (int64).  M_OTHER, M_OTHER_STRIDES: the mask, where MASKED.
    """
    rank = step[r.RANK]
    lines = lines_of(step, pointers)
    n = carray(as_pointer(address(pointers, step[r.M_SHAPE])), rank, np.int64)[rank - 1]
    d_stride = carray(as_pointer(address(pointers, step[r.M_DST_STRIDES])), rank, np.int64)[rank - 1]
    s_stride = carray(as_pointer(address(pointers, step[r.M_SRC_STRIDES])), rank, np.int64)[rank - 1]
    k_stride = carray(as_pointer(address(pointers, step[r.M_OTHER_STRIDES])), rank, np.int64)[rank - 1]
    exps = carray(as_pointer(address(pointers, step[r.M_SCALE])), 512, np.uint32)
    reciprocals = carray(as_pointer(address(pointers, step[r.M_INDICES])), 256, np.int64)
    src, dst, mask = (
        address(pointers, step[r.M_SRC]),
        address(pointers, step[r.M_DST]),
        address(pointers, step[r.M_OTHER]),
    )
    code, masked = step[r.M_DTYPE], step[r.MASKED] != 0
    zero, lo, hi = np.int32(step[r.M_ZERO_POINT]), np.int32(step[r.M_LO]), np.int32(step[r.M_HI])
    row, e = np.empty(n, np.int32), np.empty(n, np.uint32)
    for line in range(lines * chunk // step[r.CHUNKS], lines * (chunk + 1) // step[r.CHUNKS]):
        read_row(row, src + line_offset(step, pointers, line, r.M_SRC_STRIDES), s_stride, code)
        if masked:
            _drop(row, mask + line_offset(step, pointers, line, r.M_OTHER_STRIDES), k_stride)
        total = np.int64(_exponentials(e, row, exps, code > r.I8))
        p = np.int64(0)
        for k in range(17, 31):
            if total >= np.int64(1) << k:
                p += 1
        u = total << (14 - p)
        r0 = reciprocals[(u >> 22) & 255]
        t = (u * r0) >> 30
        r1 = (r0 * ((np.int64(1) << 32) - t)) >> 31  # below 2^32: 2^61 / u, and u is at least 2^30
        at = dst + line_offset(step, pointers, line, r.M_DST_STRIDES)
        if d_stride == 1:
            _shares(carray(as_pointer(at), n, np.uint8), e, np.uint32(r1), np.uint64(39 + p), zero, lo, hi)
        else:
            y = carray(as_pointer(at), (n - 1) * d_stride + 1, np.uint8)
            _shares(y[::d_stride], e, np.uint32(r1), np.uint64(39 + p), zero, lo, hi)


@njit(nogil=True)
def _drop(row: Any, at: int, stride: int) -> None:
    n = len(row)
    keep = carray(as_pointer(at), (n - 1) * stride + 1, np.uint8)
    if stride == 1:
        for i in range(n):
            row[i] = row[i] if keep[i] != 0 else np.int32(DROPPED)
    else:
        for i in range(n):
            row[i] = row[i] if keep[i * stride] != 0 else np.int32(DROPPED)


@njit(nogil=True)
def _exponentials(e: Any, row: Any, exps: Any, wide: bool) -> Any:
    """e of each element, their sum."""
    n = len(row)
    top = np.int32(DROPPED)
    for i in range(n):
        top = max(top, row[i])
    total = np.uint64(0)
    for i in range(n):
        value = np.uint32(0)
        if row[i] != DROPPED:
            d = top - row[i]
            if wide:
                product = np.uint64(exps[d >> 8]) * np.uint64(exps[256 + (d & 255)])
                value = np.uint32((product + np.uint64(1 << 43)) >> np.uint64(44))
            else:
                value = exps[d]
        e[i] = value
        total += np.uint64(value)
    return total


@njit(nogil=True)
def _shares(y: Any, e: Any, r1: Any, shift: Any, zero: Any, lo: Any, hi: Any) -> None:
    """e r1 >> shift, rounded: products of 32 bits each, which vectors have."""
    half = np.uint64(1) << (shift - np.uint64(1))
    for i in range(len(e)):
        v = np.int32((np.uint64(e[i]) * np.uint64(r1) + half) >> shift) + zero
        y[i] = np.uint8(min(max(v, lo), hi) & 255)


@njit(nogil=True)
def read_row(row: Any, at: int, stride: int, code: int) -> None:
    """Elements `stride` bytes apart, as int32."""
    if code == r.I8:
        _take(row, carray(as_pointer(at), (len(row) - 1) * stride + 1, np.int8), stride)
    elif code == r.U8:
        _take(row, carray(as_pointer(at), (len(row) - 1) * stride + 1, np.uint8), stride)
    elif code == r.I16:
        _take(row, carray(as_pointer(at), (len(row) - 1) * (stride >> 1) + 1, np.int16), stride >> 1)
    else:
        _take(row, carray(as_pointer(at), (len(row) - 1) * (stride >> 1) + 1, np.uint16), stride >> 1)


@njit(nogil=True)
def _take(row: Any, source: Any, stride: int) -> None:
    if stride == 1:
        for i in range(len(row)):
            row[i] = source[i]
    else:
        for i in range(len(row)):
            row[i] = source[i * stride]


@njit(nogil=True)
def _blend(out: Any, a: Any, b: Any, w0: int, w1: int, count: int) -> None:
    for i in range(count):
        out[i] = np.int32(np.int64(a[i]) * w0 + np.int64(b[i]) * w1)


@njit(nogil=True)
def interpolate_chunk(step: Any, chunk: int, pointers: Any) -> None:
    """y[o, i, :] = x[o, index0[i], :] weight0[i] + x[o, index1[i], :] weight1[i], int32.

    M_SHAPE: (outer, count, inner), contiguous; M_INDICES: ref to int64 (4, count): indices and weights.
    """
    shape = carray(as_pointer(address(pointers, step[r.M_SHAPE])), 3, np.int64)
    s = carray(as_pointer(address(pointers, step[r.M_SRC_STRIDES])), 3, np.int64)
    count, inner, code = shape[1], shape[2], step[r.M_DTYPE]
    plan = carray(as_pointer(address(pointers, step[r.M_INDICES])), (4, count), np.int64)
    src, dst = address(pointers, step[r.M_SRC]), address(pointers, step[r.M_DST])
    lines = shape[0] * count
    for line in range(lines * chunk // step[r.CHUNKS], lines * (chunk + 1) // step[r.CHUNKS]):
        o, i = line // count, line % count
        a, b = src + o * s[0] + plan[0, i] * s[1], src + o * s[0] + plan[1, i] * s[1]
        w0, w1 = plan[2, i], plan[3, i]
        out = carray(as_pointer(dst + line * inner * 4), inner, np.int32)
        p, q = as_pointer(a), as_pointer(b)
        if code == 0:
            _blend(out, carray(p, inner, np.uint8), carray(q, inner, np.uint8), w0, w1, inner)
        elif code == 1:
            _blend(out, carray(p, inner, np.int8), carray(q, inner, np.int8), w0, w1, inner)
        elif code == 2:
            _blend(out, carray(p, inner, np.uint16), carray(q, inner, np.uint16), w0, w1, inner)
        elif code == 3:
            _blend(out, carray(p, inner, np.int16), carray(q, inner, np.int16), w0, w1, inner)
        else:
            _blend(out, carray(p, inner, np.int32), carray(q, inner, np.int32), w0, w1, inner)
