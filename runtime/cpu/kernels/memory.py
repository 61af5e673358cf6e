"""Addresses behind references, and rows of any integer dtype to and from int32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .intrinsics import as_pointer, carray
from .record import I8, I16, I32, OFFSET_MASK, U8, U16


@njit(nogil=True, inline="always")
def address(pointers: Any, ref: int) -> int:
    """The address behind a ref."""
    return pointers[ref >> 48] + (ref & OFFSET_MASK)


@njit(nogil=True)
def _copy(d: Any, s: Any) -> None:
    for i in range(d.size):
        d[i] = s[i]


@njit(nogil=True)
def widen(dst: int, src: int, count: int, code: int) -> None:
    """count elements of a dtype as int32."""
    d = carray(as_pointer(dst), count, np.int32)
    if code == U8:
        _copy(d, carray(as_pointer(src), count, np.uint8))
    elif code == I8:
        _copy(d, carray(as_pointer(src), count, np.int8))
    elif code == U16:
        _copy(d, carray(as_pointer(src), count, np.uint16))
    elif code == I16:
        _copy(d, carray(as_pointer(src), count, np.int16))
    else:
        _copy(d, carray(as_pointer(src), count, np.int32))


@njit(nogil=True)
def narrow(dst: int, src: int, count: int, code: int) -> None:
    """count int32 that fit the dtype, as it."""
    s = carray(as_pointer(src), count, np.int32)
    if code <= I8:
        a = carray(as_pointer(dst), count, np.uint8)
        for i in range(count):
            a[i] = np.uint8(s[i] & 255)
    elif code <= I16:
        b = carray(as_pointer(dst), count, np.uint16)
        for i in range(count):
            b[i] = np.uint16(s[i] & 65535)
    else:
        c = carray(as_pointer(dst), count, np.int32)
        for i in range(count):
            c[i] = s[i]


@njit(nogil=True, inline="always")
def element_size(code: int) -> int:
    return 1 if code < U16 else (2 if code < I32 else 4)
