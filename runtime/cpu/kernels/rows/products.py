"""qir.MatMulActivations: batched products of two 8-bit tensors, any strides."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .. import record as r
from ..intrinsics import as_pointer, carray
from ..memory import address

BLOCK_COLUMNS = 64
BLOCK_DEPTH = 512
"""What of the second operand is widened at once: 128 KiB of a thread's scratch, in its second-level cache."""


@njit(nogil=True)
def _widen(at: int, signed: bool, zero: int, steps: Any, block: Any, depth: int, columns: int) -> None:
    """block[k, j] = b[k, j] - zero, int32, rows of BLOCK_COLUMNS."""
    z = np.int32(zero)
    for k in range(depth):
        start = at + k * steps[0]
        extent = (columns - 1) * steps[1] + 1
        if signed:
            x = carray(as_pointer(start), extent, np.int8)
            for j in range(columns):
                block[k * BLOCK_COLUMNS + j] = np.int32(x[j * steps[1]]) - z
        else:
            y = carray(as_pointer(start), extent, np.uint8)
            for j in range(columns):
                block[k * BLOCK_COLUMNS + j] = np.int32(y[j * steps[1]]) - z


@njit(nogil=True)
def _row(a: Any, step: int, zero: int, block: Any, depth: int, out: Any, columns: int, first: bool) -> None:
    """out[j] (+)= sum of (a[k] - zero) block[k, j]."""
    if first:
        for j in range(columns):
            out[j] = 0
    for k in range(depth):
        factor = np.int32(np.int32(a[k * step]) - np.int32(zero))
        if factor == 0:  # what a mask dropped
            continue
        line = block[k * BLOCK_COLUMNS : k * BLOCK_COLUMNS + columns]
        for j in range(columns):
            out[j] += factor * line[j]


@njit(nogil=True)
def product_chunk(step: Any, chunk: int, pointers: Any, scratch: int) -> None:
    """M_SHAPE (batches..., rows, depth, columns) with the strides of a, b and the output.

    M_DTYPE: 1 where a is signed, plus 2 where b is; M_ZERO_POINT, M_LO: zero points of a and b.
    """
    rank = step[r.RANK]
    shape = carray(as_pointer(address(pointers, step[r.M_SHAPE])), rank, np.int64)
    sa = carray(as_pointer(address(pointers, step[r.M_SRC_STRIDES])), rank, np.int64)
    sb = carray(as_pointer(address(pointers, step[r.M_OTHER_STRIDES])), rank, np.int64)
    sd = carray(as_pointer(address(pointers, step[r.M_DST_STRIDES])), rank, np.int64)
    a, b, d = address(pointers, step[r.M_SRC]), address(pointers, step[r.M_OTHER]), address(pointers, step[r.M_DST])
    rows, depth, columns = shape[rank - 3], shape[rank - 2], shape[rank - 1]
    a_signed, b_signed = step[r.M_DTYPE] & 1 != 0, step[r.M_DTYPE] & 2 != 0
    za, zb = step[r.M_ZERO_POINT], step[r.M_LO]
    block = carray(as_pointer(scratch + r.AT_REGISTERS), BLOCK_COLUMNS * BLOCK_DEPTH, np.int32)
    lines = rows
    for i in range(rank - 3):
        lines *= shape[i]
    line, end = lines * chunk // step[r.CHUNKS], lines * (chunk + 1) // step[r.CHUNKS]
    while line < end:
        r0, batch = line % rows, line // rows
        r1 = min(rows, r0 + end - line)
        line += r1 - r0
        a_at, b_at, d_at = a, b, d
        for i in range(rank - 4, -1, -1):
            at = batch % shape[i]
            a_at, b_at, d_at = a_at + at * sa[i], b_at + at * sb[i], d_at + at * sd[i]
            batch //= shape[i]
        for c0 in range(0, columns, BLOCK_COLUMNS):
            cn = min(BLOCK_COLUMNS, columns - c0)
            for k0 in range(0, depth, BLOCK_DEPTH):
                kn = min(BLOCK_DEPTH, depth - k0)
                _widen(b_at + k0 * sb[rank - 2] + c0 * sb[rank - 1], b_signed, zb, sb[rank - 2 :], block, kn, cn)
                for row in range(r0, r1):
                    out = carray(as_pointer(d_at + row * sd[rank - 3] + 4 * c0), cn, np.int32)
                    start = a_at + row * sa[rank - 3] + k0 * sa[rank - 2]
                    extent = (kn - 1) * sa[rank - 2] + 1
                    if a_signed:
                        x = carray(as_pointer(start), extent, np.int8)
                        _row(x, sa[rank - 2], za, block, kn, out, cn, k0 == 0)
                    else:
                        y = carray(as_pointer(start), extent, np.uint8)
                        _row(y, sa[rank - 2], za, block, kn, out, cn, k0 == 0)
