"""What an integer can be, from the graph as it stands: constants, limits, dtypes.  The proofs of `Op.overflows` use it.

Independent of the proof at lowering (`linear.py`): it knows no scales, only what is in the integer graph.  For

    acc = sum_i (w_i - w_zero) x_i + bias,        x_i in [lo, hi]

the exact interval is [sum of min over the ends, sum of max over the ends]; the sum without the bias must fit too.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..sizes import BATCH, Sizes, dim_at, symbols_of
from ..sizes.fitting import probe
from ..types import Array, Dim, DType
from .base import Interval, op_of
from .probing import known

if TYPE_CHECKING:
    from ..graph import Node, Value

MOST_SUMMANDS = 1 << 15
"""Sizes that are open count as this much, all of a sum's together, in the proof; what is fed is proved again."""

_sizes: ContextVar[Sizes | None] = ContextVar("sizes", default=None)

INT32: Interval = (DType.INT32.lo, DType.INT32.hi)


def interval(value: Value) -> Interval:
    """What an integer value can be: its data, its producer's limits or sum, or its dtype's."""
    if value.data is not None and value.data.size:
        return int(value.data.min()), int(value.data.max())
    node = value.producer
    if node is not None and op_of(node.op).moves and node.op != "Pad":
        return interval(node.input(0))
    if node is not None and node.op == "Clip" and all(v is None or v.is_constant for v in node.inputs[1:]):
        return _clipped(node)
    if node is not None and {"lo", "hi"} <= set(node.attrs):
        return int(node.attrs["lo"]), int(node.attrs["hi"])
    found = None if node is None else op_of(node.op).accumulator_interval(node)
    return found or (value.dtype.lo, value.dtype.hi)


def _clipped(node: Node) -> Interval:
    """The limits of a Clip with constants, inside its input's interval."""
    lo, hi = interval(node.input(0))
    ends = [None if v is None or v.data is None else int(v.data.reshape(-1)[0]) for v in (*node.inputs[1:], None, None)]
    lo = lo if ends[0] is None else max(lo, ends[0])
    hi = hi if ends[1] is None else min(hi, ends[1])
    return min(lo, hi), hi


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


def longest(*dims: Dim) -> int | None:
    """The most summands there are along axes: at the sizes of `at_sizes`, or with open ones as long as MOST_SUMMANDS
    allows; None where they follow the batch, which has no such limit."""
    sizes = _sizes.get()
    if sizes is not None:
        return math.prod(dim_at(d, sizes) for d in dims)
    symbols = {s for d in dims for s in symbols_of(d)}
    if BATCH in symbols:
        return None
    most = int(MOST_SUMMANDS ** (1 / max(len(symbols), 1)) + 1e-9)
    return math.prod(dim_at(d, dict.fromkeys(symbols, most)) for d in dims)


@contextmanager
def at_sizes(sizes: Sizes) -> Generator[None, None, None]:
    """Inside, the proofs are about these sizes of the symbols."""
    token = _sizes.set(sizes)
    try:
        yield
    finally:
        _sizes.reset(token)


def proved_sizes(node: Node) -> Sizes:
    """The sizes that proofs about a node are for: those of `at_sizes`, or some that are possible."""
    return _sizes.get() or probe(node.graph.symbols, 0)


def known_at_sizes(value: Value) -> Array | None:
    """A constant, or what shapes and constants decide at `proved_sizes`; None where it follows what is fed."""
    if value.data is not None or value.producer is None:
        return value.data
    return known(value, proved_sizes(value.producer), {})


def repeated_overflow(dim: Dim, x: Interval) -> Iterator[str]:
    """The proof of a sum of `dim` numbers in x."""
    count = longest(dim)
    if count is None:
        yield "the number of summands depends on the batch"
    elif not fits((x[0] * count, x[1] * count)):
        yield f"{count} summands in {x[0]}..{x[1]} do not fit int32"


def sum_overflow(total: Interval | None) -> Iterator[str]:
    """The proof of an operator that knows its `accumulator_interval`."""
    if total is None:
        yield "the number of summands depends on the batch, or weights are not constants"
    elif not fits(total):
        yield f"a sum in {total[0]}..{total[1]} does not fit int32"
