"""Pointwise micro-operations on one region (rows x columns) of a fused layer, in int32 registers that stay in cache.

A layer's head (a GEMM, a window, a load) leaves int32 in register 0; its tail is a list of records that load further
operands, requantize, add, look up and store.  Record fields are named by the constants below; `ref` is an operand's
address as `slot << 48 | offset`.
"""

# Rounding follows qir/dyadic.py: (x + 2^(shift-1)) >> shift, arithmetic.
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .finish import ROWS_EACH, finish
from .intrinsics import as_pointer, carray, prefetch_read, prefetch_write
from .memory import address, element_size, narrow, widen
from .record import (
    ADD,
    ADD_MEMORY,
    CLAMP,
    FINISH,
    GENERIC,
    I8,
    LOAD,
    MUL,
    REQUANTIZE,
    REQUANTIZE_STORE,
    STORE,
    T_DST,
    T_KIND,
    T_OTHER,
    T_SRC,
    TABLE,
    U8,
)
from .vector_ops import make_sum, raised_requantize_bytes, raised_requantize_lanes, requantize_bytes, requantize_lanes

sum_lanes = make_sum("int32", 4)
sum_u8_lanes, sum_u8_bytes = make_sum("uint8", 4), make_sum("uint8", 1)
sum_i8_lanes, sum_i8_bytes = make_sum("int8", 4), make_sum("int8", 1)
sum_i16_lanes, sum_i16_bytes = make_sum("int16", 4), make_sum("int16", 1)


@njit(nogil=True)
def _load(t: Any, pointers: Any, dst: int, ld: int, r0: int, rn: int, c0: int, cn: int) -> None:
    """fields: OTHER ref, 4 row stride in bytes, 5 dtype, 6 row divisor, 7 row modulus (0: none), 8 one column."""
    base, stride, code, divisor, modulus = address(pointers, t[T_OTHER]), t[4], t[5], t[6], t[7]
    size = element_size(code)
    for r in range(rn):
        row = r0 + r
        if divisor != 1:  # divisions are slow
            row = row // divisor
        if modulus:
            row = row % modulus
        line = dst + r * ld * 4
        if t[8]:
            widen(line, base + row * stride, 1, code)
            d = carray(as_pointer(line), cn, np.int32)
            for i in range(1, cn):
                d[i] = d[0]
        else:
            widen(line, base + row * stride + c0 * size, cn, code)


@njit(nogil=True)
def _store(t: Any, pointers: Any, src: int, ld: int, r0: int, rn: int, c0: int, cn: int) -> None:
    base, stride, code = address(pointers, t[T_OTHER]), t[4], t[5]
    size = element_size(code)
    for r in range(rn):
        narrow(base + (r0 + r) * stride + c0 * size, src + r * ld * 4, cn, code)


@njit(nogil=True)
def _requantize(t: Any, pointers: Any, dst: int, src: int, ld: int, r0: int, rn: int, c0: int, cn: int) -> None:
    """fields: OTHER multiplier, 4 constant, 5 shift (refs), 6 zero point, 7 lo, 8 hi, 9 mode, 10 columns of the
    multiplier tensor, 11 its rows: row r uses (r % rows), 14 whether 15 (ref) holds left shifts."""
    m, c, s = address(pointers, t[T_OTHER]), address(pointers, t[4]), address(pointers, t[5])
    if t[9] != GENERIC:
        columns = (cn + 7) // 8 * 8
        at_m, at_c, at_s = m + 4 * c0, c + 8 * c0, s + 4 * c0
        if t[14]:
            up = address(pointers, t[15]) + 4 * c0
            raised_requantize_lanes(src, ld * 4, dst, ld * 4, rn, columns, at_m, at_c, at_s, up, t[6], t[7], t[8])
        else:
            requantize_lanes(src, ld * 4, dst, ld * 4, rn, columns, at_m, at_c, at_s, 0, t[6], t[7], t[8])
        return
    width, period, zero_point, lo, hi = t[10], t[11], t[6], t[7], t[8]
    for r in range(rn):
        at = ((r0 + r) % period) * width
        x = carray(as_pointer(src + r * ld * 4), cn, np.int32)
        y = carray(as_pointer(dst + r * ld * 4), cn, np.int32)
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
def _requantize_store(t: Any, pointers: Any, src: int, ld: int, r0: int, rn: int, c0: int, cn: int) -> None:
    """REQUANTIZE with mode lanes and an 8-bit STORE in one: fields as there, 12 target ref, 13 its row stride."""
    m, c, s = address(pointers, t[T_OTHER]), address(pointers, t[4]), address(pointers, t[5])
    out = address(pointers, t[12]) + r0 * t[13] + c0
    at_m, at_c, at_s = m + 4 * c0, c + 8 * c0, s + 4 * c0
    if t[14]:
        up = address(pointers, t[15]) + 4 * c0
        raised_requantize_bytes(src, ld * 4, out, t[13], rn, cn, at_m, at_c, at_s, up, t[6], t[7], t[8])
    else:
        requantize_bytes(src, ld * 4, out, t[13], rn, cn, at_m, at_c, at_s, 0, t[6], t[7], t[8])


@njit(nogil=True)
def _add(t: Any, dst: int, a: int, b: int, ld: int, rn: int, cn: int) -> None:
    """fields: 4 m_a, 5 m_b, 6 constant, 7 shift, 8 zero point, 9 lo, 10 hi, 11 mode; cn a multiple of 8."""
    if t[11] != GENERIC:
        before, after = max(32 - t[7], 0), max(t[7] - 32, 0)
        sum_lanes(
            a, ld * 4, b, ld * 4, dst, ld * 4, rn, cn, t[4], t[5], t[6] << before, before, after, t[8], t[9], t[10]
        )
        return
    m_a, m_b, c, shift, zero_point, lo, hi = t[4], t[5], t[6], t[7], t[8], t[9], t[10]
    for r in range(rn):
        x = carray(as_pointer(a + r * ld * 4), cn, np.int32)
        z = carray(as_pointer(b + r * ld * 4), cn, np.int32)
        y = carray(as_pointer(dst + r * ld * 4), cn, np.int32)
        for i in range(cn):
            v = ((np.int64(x[i]) * m_a + np.int64(z[i]) * m_b + c) >> shift) + zero_point
            y[i] = np.int32(min(max(v, lo), hi))


@njit(nogil=True)
def _add_memory(t: Any, pointers: Any, dst: int, a: int, ld: int, r0: int, rn: int, c0: int, cn: int) -> None:
    """ADD whose second operand comes from memory: fields as ADD, OTHER ref, 12 its row stride, 13 its dtype, and,
    where 15 is not 0, the 8-bit target 14 with row stride 15 (else the target is the register)."""
    before, after = max(32 - t[7], 0), max(t[7] - 32, 0)
    code = t[13]
    b = address(pointers, t[T_OTHER]) + r0 * t[12] + c0 * element_size(code)
    m_a, m_b, c = t[4], t[5], t[6] << before
    if t[15]:
        out = address(pointers, t[14]) + r0 * t[15] + c0
        if code == U8:
            sum_u8_bytes(a, ld * 4, b, t[12], out, t[15], rn, cn, m_a, m_b, c, before, after, t[8], t[9], t[10])
        elif code == I8:
            sum_i8_bytes(a, ld * 4, b, t[12], out, t[15], rn, cn, m_a, m_b, c, before, after, t[8], t[9], t[10])
        else:
            sum_i16_bytes(a, ld * 4, b, t[12], out, t[15], rn, cn, m_a, m_b, c, before, after, t[8], t[9], t[10])
    elif code == U8:
        sum_u8_lanes(a, ld * 4, b, t[12], dst, ld * 4, rn, cn, m_a, m_b, c, before, after, t[8], t[9], t[10])
    elif code == I8:
        sum_i8_lanes(a, ld * 4, b, t[12], dst, ld * 4, rn, cn, m_a, m_b, c, before, after, t[8], t[9], t[10])
    else:
        sum_i16_lanes(a, ld * 4, b, t[12], dst, ld * 4, rn, cn, m_a, m_b, c, before, after, t[8], t[9], t[10])


@njit(nogil=True)
def _mul(t: Any, dst: int, a: int, b: int, count: int) -> None:
    """fields: 4 multiplier, 5 shift, 6 z_a, 7 z_b, 8 zero point, 9 lo, 10 hi."""
    x = carray(as_pointer(a), count, np.int32)
    z = carray(as_pointer(b), count, np.int32)
    y = carray(as_pointer(dst), count, np.int32)
    m, shift, z_a, z_b, zero_point, lo, hi = t[4], t[5], t[6], t[7], t[8], t[9], t[10]
    half = np.int64(1) << (shift - 1)
    for i in range(count):
        product = (np.int64(x[i]) - z_a) * (np.int64(z[i]) - z_b)
        v = ((product * m + half) >> shift) + zero_point
        y[i] = np.int32(min(max(v, lo), hi))


@njit(nogil=True)
def _table(t: Any, pointers: Any, dst: int, src: int, ld: int, rn: int, c0: int, cn: int) -> None:
    """fields: OTHER table of int32, 4 least input, 5 entries a channel (0: one table for all), 6 entries."""
    table, least, per_channel, size = address(pointers, t[T_OTHER]), t[4], t[5], t[6]
    for r in range(rn):
        x = carray(as_pointer(src + r * ld * 4), cn, np.int32)
        y = carray(as_pointer(dst + r * ld * 4), cn, np.int32)
        if per_channel:
            for i in range(cn):
                row = carray(as_pointer(table + 4 * size * (c0 + i)), size, np.int32)
                y[i] = row[np.uint64(np.int64(x[i]) - least)]
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
    b = carray(as_pointer(address(pointers, t[T_OTHER]) + 4 * c0), cn, np.int32)
    for r in range(rn):
        x = carray(as_pointer(src + r * ld * 4), cn, np.int32)
        y = carray(as_pointer(dst + r * ld * 4), cn, np.int32)
        for i in range(cn):
            y[i] = x[i] + b[i]


@njit(nogil=True, inline="always")
def _in_place(t: Any) -> bool:
    """Whether a FINISH record writes its 16-bit target over its summand (in_place.py)."""
    return t[11] != 0 and t[8] == t[10]


@njit(nogil=True)
def _finish(t: Any, pointers: Any, src: int, ld: int, r0: int, rn: int, c0: int, cn: int) -> None:
    """fields: see finish_plan."""
    m, c, s = address(pointers, t[3]) + 4 * c0, address(pointers, t[4]) + 8 * c0, address(pointers, t[5]) + 4 * c0
    other = address(pointers, t[8]) + r0 * t[9] + 2 * c0
    wide = address(pointers, t[10]) + r0 * t[11] + 2 * c0 if t[11] else 0
    out = address(pointers, t[12]) + r0 * t[13] + c0
    parameters = address(pointers, t[6])
    whole = rn
    if rn < ROWS_EACH or _in_place(t):
        # what is written over its summand cannot be done twice
        whole = rn // ROWS_EACH * ROWS_EACH
    if whole:
        finish(t[7], src, ld * 4, whole, cn, m, c, s, parameters, other, t[9], wide, t[11], out, t[13])
    for r in range(whole, rn):
        finish(
            t[7], src + r * ld * 4, 0, ROWS_EACH, cn, m, c, s, parameters,
            other + r * t[9], 0, wide + r * t[11], 0, out + r * t[13], 0,
        )  # fmt: skip


@njit(nogil=True)
def prefetch_tail(tails: Any, first: int, count: int, pointers: Any, r0: int, rn: int, c0: int, cn: int) -> None:
    """Asks for the memory that FINISH records will read and write, while a head computes."""
    for k in range(first, first + count):
        t = tails[k]
        if t[T_KIND] == FINISH:
            if t[9] and not _in_place(t):
                prefetch_read(address(pointers, t[8]) + r0 * t[9] + 2 * c0, t[9], rn, 2 * cn)
            if t[11]:
                prefetch_write(address(pointers, t[10]) + r0 * t[11] + 2 * c0, t[11], rn, 2 * cn)
            if t[13]:
                prefetch_write(address(pointers, t[12]) + r0 * t[13] + c0, t[13], rn, cn)


@njit(nogil=True)
def run_tail(
    tails: Any, first: int, count: int, pointers: Any, registers: int, register_bytes: int, ld: int,
    r0: int, rn: int, c0: int, cn: int,
) -> None:  # fmt: skip
    """The records [first, first + count) on rows r0.. and columns c0..; ld: int32 elements between rows."""
    block = ((rn - 1) * ld + cn + 7) // 8 * 8
    for k in range(first, first + count):
        t = tails[k]
        kind = t[T_KIND]
        dst, src = registers + t[T_DST] * register_bytes, registers + t[T_SRC] * register_bytes
        if kind == FINISH:
            _finish(t, pointers, src, ld, r0, rn, c0, cn)
        elif kind == LOAD:
            _load(t, pointers, dst, ld, r0, rn, c0, cn)
        elif kind == STORE:
            _store(t, pointers, src, ld, r0, rn, c0, cn)
        elif kind == REQUANTIZE:
            _requantize(t, pointers, dst, src, ld, r0, rn, c0, cn)
        elif kind == ADD:
            _add(t, dst, src, registers + t[T_OTHER] * register_bytes, ld, rn, (cn + 7) // 8 * 8)
        elif kind == REQUANTIZE_STORE:
            _requantize_store(t, pointers, src, ld, r0, rn, c0, cn)
        elif kind == ADD_MEMORY:
            _add_memory(t, pointers, dst, src, ld, r0, rn, c0, cn)
        elif kind == MUL:
            _mul(t, dst, src, registers + t[T_OTHER] * register_bytes, block)
        elif kind == TABLE:
            _table(t, pointers, dst, src, ld, rn, c0, cn)
        elif kind == CLAMP:
            _clamp(dst, src, block, t[4], t[5])
        else:
            _bias(t, pointers, dst, src, ld, rn, c0, cn)
