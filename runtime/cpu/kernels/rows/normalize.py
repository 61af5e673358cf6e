"""qir.Normalize: rows centred and divided by their root mean square  [docs/arithmetic.md 9a]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .. import record as r
from ..intrinsics import as_pointer, carray
from ..memory import address
from ..movement import line_offset, lines_of


@njit(nogil=True)
def _row(x: Any, y: Any, n: int, m: Any, c: Any, table: Any, step: Any) -> None:
    """One contiguous row; m, c: multipliers and offsets of its elements, or one of each (N_STEP 0)."""
    zero, extra, shift = np.int32(0), step[r.N_EXTRA], step[r.N_SHIFT]
    if not step[r.N_CENTRE]:
        zero = np.int32(step[r.M_ZERO_POINT])
    s1, s2 = np.int64(0), np.int64(0)
    for i in range(n):
        q = np.int32(np.int32(x[i]) - zero)
        s1 += q
        s2 += np.int64(q) * np.int64(q)
    if not step[r.N_CENTRE]:
        s1 = np.int64(0)
    least = np.int64(1) << (2 * extra)
    u = max((n * s2 - s1 * s1) * least + step[r.N_EPSILON], least)
    e = np.int64(0)
    while e < 30 and u >= np.int64(1) << (2 * e + 2):
        e += 1
    v = u << (60 - 2 * e)
    r0 = table[(v >> 52) - 256]
    h = ((np.int64(3) << 61) - (v >> 31) * (r0 * r0)) >> 31
    r1 = np.int32((r0 * h) >> 16)
    g = 11 - extra + e
    half = np.int64(1) << (g - 1)
    lo, hi, count, total = step[r.M_LO], step[r.M_HI], np.int32(n), np.int32(s1)
    if step[r.N_STEP]:
        for i in range(n):
            d = np.int32(count * np.int32(np.int32(x[i]) - zero) - total)
            z = np.int32((np.int64(d) * np.int64(r1) + half) >> g)
            t = (np.int64(z) * np.int64(m[i]) + c[i]) >> shift
            y[i] = min(max(t, lo), hi)
    else:
        for i in range(n):
            d = np.int32(count * np.int32(np.int32(x[i]) - zero) - total)
            z = np.int32((np.int64(d) * np.int64(r1) + half) >> g)
            t = (np.int64(z) * np.int64(m[0]) + c[0]) >> shift
            y[i] = min(max(t, lo), hi)


@njit(nogil=True)
def _from(x: Any, y_at: int, n: int, m: Any, c: Any, table: Any, step: Any) -> None:
    out = step[r.N_OUT]
    if out == 0:
        _row(x, carray(as_pointer(y_at), n, np.uint8), n, m, c, table, step)
    elif out == 1:
        _row(x, carray(as_pointer(y_at), n, np.int8), n, m, c, table, step)
    elif out == 2:
        _row(x, carray(as_pointer(y_at), n, np.uint16), n, m, c, table, step)
    elif out == 3:
        _row(x, carray(as_pointer(y_at), n, np.int16), n, m, c, table, step)
    else:
        _row(x, carray(as_pointer(y_at), n, np.int32), n, m, c, table, step)


@njit(nogil=True)
def normalize_chunk(step: Any, chunk: int, pointers: Any) -> None:
    """Contiguous rows; M_SCALE, M_INDICES: multipliers (int32) and offsets (int64) of N_PERIOD rows, M_OTHER: table."""
    rank = step[r.RANK]
    lines = lines_of(step, pointers)
    n = carray(as_pointer(address(pointers, step[r.M_SHAPE])), rank, np.int64)[rank - 1]
    per, period = n if step[r.N_STEP] else 1, step[r.N_PERIOD]
    multipliers = carray(as_pointer(address(pointers, step[r.M_SCALE])), (period, per), np.int32)
    offsets = carray(as_pointer(address(pointers, step[r.M_INDICES])), (period, per), np.int64)
    table = carray(as_pointer(address(pointers, step[r.M_OTHER])), 768, np.int64)
    src, dst, code = address(pointers, step[r.M_SRC]), address(pointers, step[r.M_DST]), step[r.M_DTYPE]
    for line in range(lines * chunk // step[r.CHUNKS], lines * (chunk + 1) // step[r.CHUNKS]):
        x_at = src + line_offset(step, pointers, line, r.M_SRC_STRIDES)
        y_at = dst + line_offset(step, pointers, line, r.M_DST_STRIDES)
        m, c = multipliers[line % period], offsets[line % period]
        if code == 0:
            _from(carray(as_pointer(x_at), n, np.uint8), y_at, n, m, c, table, step)
        elif code == 1:
            _from(carray(as_pointer(x_at), n, np.int8), y_at, n, m, c, table, step)
        else:
            _from(carray(as_pointer(x_at), n, np.int16), y_at, n, m, c, table, step)
