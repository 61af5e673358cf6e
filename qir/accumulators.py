"""The proof that no accumulator leaves int32, from the graph as it stands: integer weights and input intervals.

Independent of the proof at lowering (`ops.linear`): it knows no scales, only what is in the integer graph.  For

    acc = sum_i (w_i - w_zero) x_i + bias,        x_i in [lo, hi]

the exact interval is [sum of min over the ends, sum of max over the ends]; the sum without the bias must fit too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from .graph import Graph, Node, Value
from .types import Array, DType

Violation = tuple[str, str]
Interval = tuple[int, int]

INT32: Interval = (DType.INT32.lo, DType.INT32.hi)


def interval(value: Value) -> Interval:
    """What an integer value can be: its data, its producer's limits or sum, or its dtype's."""
    if value.data is not None and value.data.size:
        return int(value.data.min()), int(value.data.max())
    node = value.producer
    if node is not None and {"lo", "hi"} <= set(node.attrs):
        return int(node.attrs["lo"]), int(node.attrs["hi"])
    if node is not None and node.op in SUMS:
        return SUMS[node.op](node) or (value.dtype.lo, value.dtype.hi)
    return value.dtype.lo, value.dtype.hi


def minus(x: Interval, zero_point: int) -> Interval:
    return x[0] - zero_point, x[1] - zero_point


def times(a: Interval, b: Interval) -> Interval:
    ends = [p * q for p in a for q in b]
    return min(ends), max(ends)


def _fits(x: Interval, limits: Interval = INT32) -> bool:
    return limits[0] <= x[0] and x[1] <= limits[1]


def _joined(x: Interval, *points: int) -> Interval:
    return min(x[0], *points), max(x[1], *points)


def weighted(w: Array, zero_point: int, axis: int, x: Interval) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Least and greatest sum (w - zero_point) x for each channel of `axis`, int64."""
    centred = np.moveaxis(w.astype(np.int64) - zero_point, axis, 0).reshape(w.shape[axis], -1)
    up = np.maximum(centred, 0).sum(axis=1)
    down = np.minimum(centred, 0).sum(axis=1)
    return up * x[0] + down * x[1], up * x[1] + down * x[0]


def _linear(node: Node, axis: int, x: Interval) -> Iterator[str]:
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


def check_conv(node: Node) -> Iterator[str]:
    x = interval(node.input(0))
    if any(node.attrs["pads"]):
        values = [int(v) for v in node.attrs["pad_value"]]
        kind = node.input(0).dtype
        if not _fits((min(values), max(values)), (kind.lo, kind.hi)):
            yield f"pad value {values} is outside {kind}"
        x = _joined(x, *values)
    yield from _linear(node, 0, x)


def check_matmul(node: Node) -> Iterator[str]:
    yield from _linear(node, 1, interval(node.input(0)))


def check_matmul_activations(node: Node) -> Iterator[str]:
    a, b = node.input(0), node.input(1)
    product = times(
        minus(interval(a), node.attrs["a_zero_point"]), minus(interval(b), node.attrs["b_zero_point"])
    )  # fmt: skip
    yield from _sum_of(a.shape[-1], product)


def pool_sum(node: Node) -> Interval:
    """What a qir.SumPool can reach."""
    x = _joined(interval(node.input(0)), int(node.attrs["pad_value"]))
    taps = math.prod(int(k) for k in node.attrs["kernel_shape"])
    return times(x, (taps, taps))


def axes_sum(node: Node) -> Interval | None:
    """What a qir.ReduceSum can reach; None where the number of summands follows the batch."""
    value = node.input(0)
    sizes = [value.shape[int(a)] for a in node.attrs["axes"]]
    count = math.prod(s for s in sizes if isinstance(s, int))
    return times(interval(value), (count, count)) if all(isinstance(s, int) for s in sizes) else None


def interpolated(node: Node) -> Interval | None:
    """What a qir.Interpolate can reach; None where its weights are not constants."""
    w0, w1 = node.input(3).data, node.input(4).data
    if w0 is None or w1 is None:
        return None
    x = interval(node.input(0))
    reach = int((np.abs(w0.astype(np.int64)) + np.abs(w1.astype(np.int64))).max(initial=0))
    if min(w0.min(initial=0), w1.min(initial=0)) < 0:  # any signs: both ends of the widest
        return _joined((0, 0), *(s * e * reach for s in (-1, 1) for e in x))
    return _joined((0, 0), *(e * reach for e in x))


SUMS: Mapping[str, Callable[[Node], Interval | None]] = {
    "qir.SumPool": pool_sum, "qir.ReduceSum": axes_sum, "qir.Interpolate": interpolated,
}  # fmt: skip
"""Operators whose output's interval follows from their input's."""


def _sum_of(count: object, x: Interval) -> Iterator[str]:
    if not isinstance(count, int):
        yield "the number of summands depends on the batch"
    elif not _fits((x[0] * count, x[1] * count)):
        yield f"{count} summands in {x[0]}..{x[1]} do not fit int32"


def check_sum(node: Node) -> Iterator[str]:
    total = SUMS[node.op](node)
    if total is None:
        yield "the number of summands depends on the batch, or weights are not constants"
    elif not _fits(total):
        yield f"a sum in {total[0]}..{total[1]} does not fit int32"


def check_mul(node: Node) -> Iterator[str]:
    a = minus(interval(node.input(0)), node.attrs["a_zero_point"])
    b = minus(interval(node.input(1)), node.attrs["b_zero_point"])
    if not _fits(times(a, b)):
        yield f"the product of {a[0]}..{a[1]} and {b[0]}..{b[1]} does not fit int32"


def check_requantize(node: Node) -> Iterator[str]:
    x = minus(interval(node.input(0)), node.attrs["x_zero_point"])
    if node.attrs["x_zero_point"] and not _fits(x):
        yield f"x - x_zero_point in {x[0]}..{x[1]} does not fit int32"


def check_add(node: Node) -> Iterator[str]:
    """The int64 sum must leave room for the 2^62 that the opset-21 form of the shift adds."""
    total = [1 << (int(node.attrs["shift"]) - 1)] * 2
    for i, side in enumerate("ab"):
        term = times(
            minus(interval(node.input(i)), node.attrs[f"{side}_zero_point"]), (node.attrs[f"{side}_multiplier"],) * 2
        )  # fmt: skip
        total = [t + e for t, e in zip(total, term, strict=True)]
    if not _fits((total[0], total[1]), (-(1 << 62), (1 << 63) - 1)):
        yield f"the weighted sum in {total[0]}..{total[1]} does not fit int64"


CHECKS: Mapping[str, Callable[[Node], Iterator[str]]] = {
    "qir.Conv": check_conv,
    "qir.MatMul": check_matmul,
    "qir.MatMulActivations": check_matmul_activations,
    "qir.SumPool": check_sum,
    "qir.ReduceSum": check_sum,
    "qir.Mul": check_mul,
    "qir.Requantize": check_requantize,
    "qir.Add": check_add,
    "qir.Interpolate": check_sum,
}
"""Operators that accumulate -> their proof."""


def check_accumulators(graph: Graph) -> Iterator[Violation]:
    """Violations as (where, message)."""
    for node in graph.nodes:
        proof = CHECKS.get(node.op)
        if proof is not None:
            for message in proof(node):
                yield str(node), message
