"""What an integer can be, from the graph as it stands: constants, limits, dtypes.  The proofs of `Op.overflows` use it.

Independent of the proof at lowering (`linear.py`): it knows no scales, only what is in the integer graph.  For

    acc = sum_i (w_i - w_zero) x_i + bias,        x_i in [lo, hi]

the exact interval is [sum of min over the ends, sum of max over the ends]; the sum without the bias must fit too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..types import Array, DType
from .base import Interval, op_of

if TYPE_CHECKING:
    from ..graph import Node, Value

INT32: Interval = (DType.INT32.lo, DType.INT32.hi)


def interval(value: Value) -> Interval:
    """What an integer value can be: its data, its producer's limits or sum, or its dtype's."""
    if value.data is not None and value.data.size:
        return int(value.data.min()), int(value.data.max())
    node = value.producer
    if node is not None and {"lo", "hi"} <= set(node.attrs):
        return int(node.attrs["lo"]), int(node.attrs["hi"])
    found = None if node is None else op_of(node.op).accumulator_interval(node)
    return found or (value.dtype.lo, value.dtype.hi)


def minus(x: Interval, zero_point: int) -> Interval:
    return x[0] - zero_point, x[1] - zero_point


def times(a: Interval, b: Interval) -> Interval:
    ends = [p * q for p in a for q in b]
    return min(ends), max(ends)


def joined(x: Interval, *points: int) -> Interval:
    """The least interval that holds x and the points."""
    return min(x[0], *points), max(x[1], *points)


def fits(x: Interval, limits: Interval = INT32) -> bool:
    return limits[0] <= x[0] and x[1] <= limits[1]


def weighted(w: Array, zero_point: int, axis: int, x: Interval) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Least and greatest sum (w - zero_point) x for each channel of `axis`, int64."""
    centred = np.moveaxis(w.astype(np.int64) - zero_point, axis, 0).reshape(w.shape[axis], -1)
    up = np.maximum(centred, 0).sum(axis=1)
    down = np.minimum(centred, 0).sum(axis=1)
    return up * x[0] + down * x[1], up * x[1] + down * x[0]


def weighted_overflow(node: Node, axis: int, x: Interval) -> Iterator[str]:
    """The proof of a linear operator whose weights have their output channels along `axis`; x: what its input is."""
    w, bias = node.input(1).data, node.optional(2)
    if w is None:
        yield "weights are not a constant"
        return
    low, high = weighted(w, int(node.attrs["weight_zero_point"]), axis, x)
    added = np.zeros(1, np.int64) if bias is None or bias.data is None else bias.data.astype(np.int64)
    if bias is not None and bias.data is None:
        yield "bias is not a constant"
    worst_low, worst_high = np.minimum(low, low + added), np.maximum(high, high + added)
    bad = (worst_low < INT32[0]) | (worst_high > INT32[1])
    if bad.any():
        channel = int(np.argmax(bad))
        yield f"channel {channel} can reach {int(worst_low[channel])}..{int(worst_high[channel])}"


def repeated_overflow(count: object, x: Interval) -> Iterator[str]:
    """The proof of a sum of `count` numbers in x."""
    if not isinstance(count, int):
        yield "the number of summands depends on the batch"
    elif not fits((x[0] * count, x[1] * count)):
        yield f"{count} summands in {x[0]}..{x[1]} do not fit int32"


def sum_overflow(total: Interval | None) -> Iterator[str]:
    """The proof of an operator that knows its `accumulator_interval`."""
    if total is None:
        yield "the number of summands depends on the batch, or weights are not constants"
    elif not fits(total):
        yield f"a sum in {total[0]}..{total[1]} does not fit int32"
