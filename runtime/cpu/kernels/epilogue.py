"""Micro-operations on one region (rows x columns) of a fused layer, in int32 registers that stay in cache.

A layer's head (a GEMM, a window, a load) leaves int32 in register 0; its epilogue is a list of records, one for each
micro-operation (runtime/compile/micro_operations.py says what they mean).  record.py names their numbers; an address is
`slot << 48 | offset`.  `t` is a record; rows begin at r0, columns at c0; ld: int32 elements between rows of a register.
"""

# Rounding follows qir/dyadic.py: (x + 2^(shift-1)) >> shift, arithmetic.
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from . import record as r
from .finish import ROWS_EACH, finish
from .intrinsics import as_pointer, carray, prefetch_read, prefetch_write
from .memory import address, element_size, narrow, widen
from .vector_ops import (
    make_sum,
    pre_shifted_requantize_bytes,
    pre_shifted_requantize_int32,
    requantize_bytes,
    requantize_int32,
)

sum_int32 = make_sum("int32", 4)
sum_u8_int32, sum_u8_bytes = make_sum("uint8", 4), make_sum("uint8", 1)
sum_i8_int32, sum_i8_bytes = make_sum("int8", 4), make_sum("int8", 1)
sum_i16_int32, sum_i16_bytes = make_sum("int16", 4), make_sum("int16", 1)


@njit(nogil=True)
def _load(t: Any, pointers: Any, dst: int, ld: int, r0: int, rn: int, c0: int, cn: int) -> None:
    base, stride, code = address(pointers, t[r.OPERAND]), t[r.STRIDE], t[r.DTYPE]
    divisor, modulus = t[r.DIVISOR], t[r.MODULUS]
    size = element_size(code)
    for i in range(rn):
        row = r0 + i
        if divisor != 1:  # divisions are slow
            row = row // divisor
        if modulus:
            row = row % modulus
        line = dst + i * ld * 4
        if t[r.ONE_COLUMN]:
            widen(line, base + row * stride, 1, code)
            d = carray(as_pointer(line), cn, np.int32)
            for k in range(1, cn):
                d[k] = d[0]
        else:
            widen(line, base + row * stride + c0 * size, cn, code)


@njit(nogil=True)
def _store(t: Any, pointers: Any, src: int, ld: int, r0: int, rn: int, c0: int, cn: int) -> None:
    base, stride, code = address(pointers, t[r.OPERAND]), t[r.STRIDE], t[r.DTYPE]
    size = element_size(code)
    for row in range(rn):
        narrow(base + (r0 + row) * stride + c0 * size, src + row * ld * 4, cn, code)


@njit(nogil=True)
def _rescale(t: Any, pointers: Any, dst: int, src: int, ld: int, r0: int, rn: int, c0: int, cn: int) -> None:
    """By high words where the mode is not GENERIC.  Constants that follow the rows are taken in turn."""
    m, c, s = address(pointers, t[r.OPERAND]), address(pointers, t[r.CONSTANT]), address(pointers, t[r.SHIFT])
    zero_point, lo, hi = t[r.ZERO_POINT], t[r.LO], t[r.HI]
    if t[r.MODE] != r.GENERIC:
        columns = (cn + 7) // 8 * 8
        at_m, at_c, at_s = m + 4 * c0, c + 8 * c0, s + 4 * c0
        if t[r.PRE_SHIFTED]:
            up = address(pointers, t[r.PRE_SHIFT]) + 4 * c0
            pre_shifted_requantize_int32(
                src, ld * 4, dst, ld * 4, rn, columns, at_m, at_c, at_s, up, zero_point, lo, hi
            )
        else:
            requantize_int32(src, ld * 4, dst, ld * 4, rn, columns, at_m, at_c, at_s, 0, zero_point, lo, hi)
        return
    width, period = t[r.COLUMNS_GIVEN], t[r.ROWS_GIVEN]
    for row in range(rn):
        at = ((r0 + row) % period) * width
        x = carray(as_pointer(src + row * ld * 4), cn, np.int32)
        y = carray(as_pointer(dst + row * ld * 4), cn, np.int32)
        if width == 1:  # one number for the whole row
            m0 = np.int64(carray(as_pointer(m + 4 * at), 1, np.int32)[0])
            c0_i64 = carray(as_pointer(c + 8 * at), 1, np.int64)[0]
            s0 = np.int64(carray(as_pointer(s + 4 * at), 1, np.int32)[0])
            for i in range(cn):
                v = ((np.int64(x[i]) * m0 + c0_i64) >> s0) + zero_point
                y[i] = np.int32(min(max(v, lo), hi))
        else:
            ms = carray(as_pointer(m + 4 * (at + c0)), cn, np.int32)
            cs = carray(as_pointer(c + 8 * (at + c0)), cn, np.int64)
            ss = carray(as_pointer(s + 4 * (at + c0)), cn, np.int32)
            for i in range(cn):
                v = ((np.int64(x[i]) * np.int64(ms[i]) + cs[i]) >> np.int64(ss[i])) + zero_point
                y[i] = np.int32(min(max(v, lo), hi))


@njit(nogil=True)
def _rescale_store(t: Any, pointers: Any, src: int, ld: int, r0: int, rn: int, c0: int, cn: int) -> None:
    """A rescaling by high words, stored in 8 bits."""
    m, c, s = address(pointers, t[r.OPERAND]), address(pointers, t[r.CONSTANT]), address(pointers, t[r.SHIFT])
    zero_point, lo, hi, stride = t[r.ZERO_POINT], t[r.LO], t[r.HI], t[r.BYTES_STRIDE]
    out = address(pointers, t[r.BYTES]) + r0 * stride + c0
    at_m, at_c, at_s = m + 4 * c0, c + 8 * c0, s + 4 * c0
    if t[r.PRE_SHIFTED]:
        up = address(pointers, t[r.PRE_SHIFT]) + 4 * c0
        pre_shifted_requantize_bytes(src, ld * 4, out, stride, rn, cn, at_m, at_c, at_s, up, zero_point, lo, hi)
    else:
        requantize_bytes(src, ld * 4, out, stride, rn, cn, at_m, at_c, at_s, 0, zero_point, lo, hi)


@njit(nogil=True)
def _add(t: Any, dst: int, a: int, b: int, ld: int, rn: int, cn: int) -> None:
    """cn: a multiple of 8."""
    m_a, m_b, c, shift = t[r.A_MULTIPLIER], t[r.B_MULTIPLIER], t[r.SUM_CONSTANT], t[r.SUM_SHIFT]
    zero_point, lo, hi = t[r.SUM_ZERO_POINT], t[r.SUM_LO], t[r.SUM_HI]
    if t[r.SUM_MODE] != r.GENERIC:
        before, after = max(32 - shift, 0), max(shift - 32, 0)
        sum_int32(
            a, ld * 4, b, ld * 4, dst, ld * 4, rn, cn, m_a, m_b, c << before, before, after, zero_point, lo, hi
        )  # fmt: skip
        return
    for row in range(rn):
        x = carray(as_pointer(a + row * ld * 4), cn, np.int32)
        z = carray(as_pointer(b + row * ld * 4), cn, np.int32)
        y = carray(as_pointer(dst + row * ld * 4), cn, np.int32)
        for i in range(cn):
            v = ((np.int64(x[i]) * m_a + np.int64(z[i]) * m_b + c) >> shift) + zero_point
            y[i] = np.int32(min(max(v, lo), hi))


@njit(nogil=True)
def _add_memory(t: Any, pointers: Any, dst: int, a: int, ld: int, r0: int, rn: int, c0: int, cn: int) -> None:
    """A sum by high words whose second operand comes from memory; it goes to 8 bits where those have a stride."""
    shift, code, stride = t[r.SUM_SHIFT], t[r.SUMMAND_DTYPE], t[r.SUMMAND_STRIDE]
    before, after = max(32 - shift, 0), max(shift - 32, 0)
    b = address(pointers, t[r.OPERAND]) + r0 * stride + c0 * element_size(code)
    m_a, m_b, c = t[r.A_MULTIPLIER], t[r.B_MULTIPLIER], t[r.SUM_CONSTANT] << before
    zero, lo, hi, to = t[r.SUM_ZERO_POINT], t[r.SUM_LO], t[r.SUM_HI], t[r.SUM_BYTES_STRIDE]
    if to:
        out = address(pointers, t[r.SUM_BYTES]) + r0 * to + c0
        if code == r.U8:
            sum_u8_bytes(a, ld * 4, b, stride, out, to, rn, cn, m_a, m_b, c, before, after, zero, lo, hi)
        elif code == r.I8:
            sum_i8_bytes(a, ld * 4, b, stride, out, to, rn, cn, m_a, m_b, c, before, after, zero, lo, hi)
        else:
            sum_i16_bytes(a, ld * 4, b, stride, out, to, rn, cn, m_a, m_b, c, before, after, zero, lo, hi)
    elif code == r.U8:
        sum_u8_int32(a, ld * 4, b, stride, dst, ld * 4, rn, cn, m_a, m_b, c, before, after, zero, lo, hi)
    elif code == r.I8:
        sum_i8_int32(a, ld * 4, b, stride, dst, ld * 4, rn, cn, m_a, m_b, c, before, after, zero, lo, hi)
    else:
        sum_i16_int32(a, ld * 4, b, stride, dst, ld * 4, rn, cn, m_a, m_b, c, before, after, zero, lo, hi)


@njit(nogil=True)
def _multiply(t: Any, dst: int, a: int, b: int, count: int) -> None:
    x = carray(as_pointer(a), count, np.int32)
    z = carray(as_pointer(b), count, np.int32)
    y = carray(as_pointer(dst), count, np.int32)
    m, shift, z_a, z_b = t[r.MULTIPLIER], t[r.PRODUCT_SHIFT], t[r.A_ZERO_POINT], t[r.B_ZERO_POINT]
    zero_point, lo, hi = t[r.PRODUCT_ZERO_POINT], t[r.PRODUCT_LO], t[r.PRODUCT_HI]
    half = np.int64(1) << (shift - 1)
    for i in range(count):
        product = (np.int64(x[i]) - z_a) * (np.int64(z[i]) - z_b)
        v = ((product * m + half) >> shift) + zero_point
        y[i] = np.int32(min(max(v, lo), hi))


@njit(nogil=True)
def _lookup(t: Any, pointers: Any, dst: int, src: int, ld: int, rn: int, c0: int, cn: int) -> None:
    table, least, size = address(pointers, t[r.OPERAND]), t[r.LEAST], t[r.ENTRIES]
    for row in range(rn):
        x = carray(as_pointer(src + row * ld * 4), cn, np.int32)
        y = carray(as_pointer(dst + row * ld * 4), cn, np.int32)
        if t[r.PER_COLUMN]:
            for i in range(cn):
                line = carray(as_pointer(table + 4 * size * (c0 + i)), size, np.int32)
                y[i] = line[np.uint64(np.int64(x[i]) - least)]
        else:
            entries = carray(as_pointer(table), size, np.int32)
            for i in range(cn):
                y[i] = entries[np.uint64(np.int64(x[i]) - least)]


@njit(nogil=True)
def _clamp(dst: int, src: int, count: int, lo: int, hi: int) -> None:
    x = carray(as_pointer(src), count, np.int32)
    y = carray(as_pointer(dst), count, np.int32)
    for i in range(count):
        y[i] = np.int32(min(max(np.int64(x[i]), lo), hi))


@njit(nogil=True)
def _bias(t: Any, pointers: Any, dst: int, src: int, ld: int, rn: int, c0: int, cn: int) -> None:
    b = carray(as_pointer(address(pointers, t[r.OPERAND]) + 4 * c0), cn, np.int32)
    for row in range(rn):
        x = carray(as_pointer(src + row * ld * 4), cn, np.int32)
        y = carray(as_pointer(dst + row * ld * 4), cn, np.int32)
        for i in range(cn):
            y[i] = x[i] + b[i]


@njit(nogil=True, inline="always")
def _in_place(t: Any) -> bool:
    """Whether a FINISH record writes its 16-bit target over its summand (planner/in_place.py)."""
    return t[r.WIDE_STRIDE] != 0 and t[r.SUMMAND] == t[r.WIDE]


@njit(nogil=True)
def _finish(t: Any, pointers: Any, src: int, ld: int, r0: int, rn: int, c0: int, cn: int) -> None:
    m, c, s = address(pointers, t[r.OPERAND]), address(pointers, t[r.CONSTANT]), address(pointers, t[r.SHIFT])
    at_m, at_c, at_s, parameters = m + 4 * c0, c + 8 * c0, s + 4 * c0, address(pointers, t[r.PARAMETERS])
    other_stride, wide_stride, stride = t[r.SUMMAND_16_STRIDE], t[r.WIDE_STRIDE], t[r.NARROW_STRIDE]
    other = address(pointers, t[r.SUMMAND]) + r0 * other_stride + 2 * c0
    wide = address(pointers, t[r.WIDE]) + r0 * wide_stride + 2 * c0 if wide_stride else 0
    out = address(pointers, t[r.NARROW]) + r0 * stride + c0
    whole = rn
    if rn < ROWS_EACH or _in_place(t):
        # what is written over its summand cannot be done twice
        whole = rn // ROWS_EACH * ROWS_EACH
    if whole:
        finish(
            t[r.ENDING], src, ld * 4, whole, cn, at_m, at_c, at_s, parameters, other, other_stride, wide, wide_stride,
            out, stride,
        )  # fmt: skip
    for row in range(whole, rn):
        finish(
            t[r.ENDING], src + row * ld * 4, 0, ROWS_EACH, cn, at_m, at_c, at_s, parameters,
            other + row * other_stride, 0, wide + row * wide_stride, 0, out + row * stride, 0,
        )  # fmt: skip


@njit(nogil=True)
def prefetch_epilogue(
    records: Any, first: int, count: int, pointers: Any, r0: int, rn: int, c0: int, cn: int
) -> None:  # fmt: skip
    """Asks for the memory that FINISH records will read and write, while a head computes."""
    for k in range(first, first + count):
        t = records[k]
        if t[r.KIND] == r.FINISH:
            other_stride, wide_stride, stride = t[r.SUMMAND_16_STRIDE], t[r.WIDE_STRIDE], t[r.NARROW_STRIDE]
            if other_stride and not _in_place(t):
                prefetch_read(
                    address(pointers, t[r.SUMMAND]) + r0 * other_stride + 2 * c0, other_stride, rn, 2 * cn
                )  # fmt: skip
            if wide_stride:
                prefetch_write(address(pointers, t[r.WIDE]) + r0 * wide_stride + 2 * c0, wide_stride, rn, 2 * cn)
            if stride:
                prefetch_write(address(pointers, t[r.NARROW]) + r0 * stride + c0, stride, rn, cn)


@njit(nogil=True)
def run_epilogue(
    records: Any, first: int, count: int, pointers: Any, registers: int, register_bytes: int, ld: int,
    r0: int, rn: int, c0: int, cn: int,
) -> None:  # fmt: skip
    """The records [first, first + count) on rows r0.. and columns c0..; ld: int32 elements between rows."""
    block = ((rn - 1) * ld + cn + 7) // 8 * 8
    for k in range(first, first + count):
        t = records[k]
        kind = t[r.KIND]
        dst, src = registers + t[r.TARGET] * register_bytes, registers + t[r.SOURCE] * register_bytes
        if kind == r.FINISH:
            _finish(t, pointers, src, ld, r0, rn, c0, cn)
        elif kind == r.LOAD:
            _load(t, pointers, dst, ld, r0, rn, c0, cn)
        elif kind == r.STORE:
            _store(t, pointers, src, ld, r0, rn, c0, cn)
        elif kind == r.RESCALE:
            _rescale(t, pointers, dst, src, ld, r0, rn, c0, cn)
        elif kind == r.ADD:
            _add(t, dst, src, registers + t[r.OPERAND] * register_bytes, ld, rn, (cn + 7) // 8 * 8)
        elif kind == r.RESCALE_STORE:
            _rescale_store(t, pointers, src, ld, r0, rn, c0, cn)
        elif kind == r.ADD_MEMORY:
            _add_memory(t, pointers, dst, src, ld, r0, rn, c0, cn)
        elif kind == r.MULTIPLY:
            _multiply(t, dst, src, registers + t[r.OPERAND] * register_bytes, block)
        elif kind == r.LOOKUP:
            _lookup(t, pointers, dst, src, ld, rn, c0, cn)
        elif kind == r.CLAMP:
            _clamp(dst, src, block, t[r.CLAMP_LO], t[r.CLAMP_HI])
        else:
            _bias(t, pointers, dst, src, ld, rn, c0, cn)
