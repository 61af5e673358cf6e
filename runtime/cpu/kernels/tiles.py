"""The tile kernels by number of rows and vectors."""

from __future__ import annotations

from numba import njit

from .intrinsics import MAX_ROWS, VECTORS, make_tile

_t12, _t22, _t32, _t42, _t52, _t62 = (make_tile(r, VECTORS) for r in range(1, MAX_ROWS + 1))
_t11, _t21, _t31, _t41, _t51, _t61 = (make_tile(r, 1) for r in range(1, MAX_ROWS + 1))


@njit(nogil=True)
def tile(
    rows: int, vectors: int, a: int, offsets: int, segments: int, count: int, groups: int, b: int, out: int, stride: int
) -> None:
    """The tile kernel for `rows` rows (1..6) and one or two vectors."""
    if vectors == 2:
        if rows == 6:
            _t62(a, offsets, segments, count, groups, b, out, stride)
        elif rows == 5:
            _t52(a, offsets, segments, count, groups, b, out, stride)
        elif rows == 4:
            _t42(a, offsets, segments, count, groups, b, out, stride)
        elif rows == 3:
            _t32(a, offsets, segments, count, groups, b, out, stride)
        elif rows == 2:
            _t22(a, offsets, segments, count, groups, b, out, stride)
        else:
            _t12(a, offsets, segments, count, groups, b, out, stride)
    elif rows == 6:
        _t61(a, offsets, segments, count, groups, b, out, stride)
    elif rows == 5:
        _t51(a, offsets, segments, count, groups, b, out, stride)
    elif rows == 4:
        _t41(a, offsets, segments, count, groups, b, out, stride)
    elif rows == 3:
        _t31(a, offsets, segments, count, groups, b, out, stride)
    elif rows == 2:
        _t21(a, offsets, segments, count, groups, b, out, stride)
    else:
        _t11(a, offsets, segments, count, groups, b, out, stride)
