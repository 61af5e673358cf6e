"""Windows whose taps are addressed one by one: unusual depthwise convolutions, pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from . import record as r
from .intrinsics import as_pointer, carray
from .memory import address
from .vector_ops import depthwise_signed, depthwise_unsigned


@njit(nogil=True)
def _tap_addresses(step: Any, pointers: Any, taps: Any, row: int) -> int:
    """Addresses of the pixels under the window of output pixel `row`; pixels outside point at the pad row."""
    out_h, out_w = step[r.OUT_H], step[r.OUT_W]
    in_h, in_w, stride = step[r.IN_H], step[r.IN_W], step[r.X_STRIDE]
    image = row // (out_h * out_w)
    oh, ow = (row // out_w) % out_h, row % out_w
    top, left = oh * step[r.STRIDE_H] - step[r.PAD_TOP], ow * step[r.STRIDE_W] - step[r.PAD_LEFT]
    x = address(pointers, step[r.X]) + image * in_h * in_w * stride
    pad = address(pointers, step[r.PAD_ROW])
    n = 0
    for i in range(step[r.KERNEL_H]):
        ih = top + i * step[r.DILATION_H]
        for j in range(step[r.KERNEL_W]):
            iw = left + j * step[r.DILATION_W]
            inside = ih >= 0 and ih < in_h and iw >= 0 and iw < in_w
            taps[n] = x + (ih * in_w + iw) * stride if inside else pad
            n += 1
    return n


@njit(nogil=True)
def depthwise_region(step: Any, pointers: Any, scratch: int, r0: int, rn: int, c0: int, cn: int) -> None:
    """sum over taps of x[c] * w[tap, c]; WEIGHTS: int32 (taps, CHANNELS rounded up to 16)."""
    taps_at = scratch + r.AT_TAPS
    taps = carray(as_pointer(taps_at), r.MAX_TAPS, np.int64)
    stride = (step[r.CHANNELS] + 15) // 16 * 16 * 4
    weights = address(pointers, step[r.WEIGHTS]) + 4 * c0
    columns = (cn + 7) // 8 * 8
    for row in range(rn):
        count = _tap_addresses(step, pointers, taps, r0 + row)
        for t in range(count):
            taps[t] += c0
        out = scratch + r.AT_REGISTERS + row * step[r.LD] * 4
        if step[r.X_DTYPE] == r.I8:
            depthwise_signed(taps_at, count, weights, stride, out, columns)
        else:
            depthwise_unsigned(taps_at, count, weights, stride, out, columns)


@njit(nogil=True)
def _accumulate(out: Any, x: Any, count: int, take_max: bool) -> None:
    if take_max:
        for c in range(count):
            out[c] = max(out[c], np.int32(x[c]))
    else:
        for c in range(count):
            out[c] = out[c] + np.int32(x[c])


@njit(nogil=True)
def pool_region(step: Any, pointers: Any, scratch: int, r0: int, rn: int, c0: int, cn: int) -> None:
    """Window sums or maxima of any integer dtype; the pad row holds the padding value."""
    taps = carray(as_pointer(scratch + r.AT_TAPS), r.MAX_TAPS, np.int64)
    code, take_max = step[r.X_DTYPE], step[r.POOL_MAX] != 0
    for row in range(rn):
        count = _tap_addresses(step, pointers, taps, r0 + row)
        out = carray(as_pointer(scratch + r.AT_REGISTERS + row * step[r.LD] * 4), cn, np.int32)
        for c in range(cn):
            out[c] = np.int32(-(1 << 31)) if take_max else np.int32(0)
        for t in range(count):
            at = taps[t]
            if code == 0:
                _accumulate(out, carray(as_pointer(at + c0), cn, np.uint8), cn, take_max)
            elif code == 1:
                _accumulate(out, carray(as_pointer(at + c0), cn, np.int8), cn, take_max)
            elif code == 2:
                _accumulate(out, carray(as_pointer(at + 2 * c0), cn, np.uint16), cn, take_max)
            elif code == 3:
                _accumulate(out, carray(as_pointer(at + 2 * c0), cn, np.int16), cn, take_max)
            else:
                _accumulate(out, carray(as_pointer(at + 4 * c0), cn, np.int32), cn, take_max)
