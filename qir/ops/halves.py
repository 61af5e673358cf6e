"""16-bit operands of linear layers, as two products of bytes.

    x = 256 h + l,  h = x >> 8,  l = x mod 256 (uint8)
    sum w (x - z) = 256 sum w (h - z_h) + sum w (l - z_l),   z = 256 z_h + z_l
Both sums are accumulators of their own in int32; they meet in 256/2^k h + l/2^k, with the least k that fits int32: the
bits that are lost lie below the accumulator's 31 bits.  Where every sum fits, k = 0 and the result is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..dyadic import round_half_even, rounding
from ..graph import Value
from ..lowering import Lowering
from ..types import Array, DType, QuantParams
from .intervals import interval, weighted
from .linear import LinearWeights, fold
from .requantize import quant_of

BYTE = 8
BASE = 1 << BYTE

Emit = Callable[[Value, LinearWeights, str], Value]
"""(half of x, its folded weights, name) -> accumulator."""


def is_wide(x: Value) -> bool:
    """Whether a linear layer takes a quantized tensor by its halves."""
    return x.dtype in (DType.INT16, DType.UINT16)


def halves(low: Lowering, x: Value) -> tuple[Value, Value]:
    """(h, l) of a 16-bit tensor with one scale: h keeps its sign, l is uint8; made once for each tensor."""
    if x not in low.halves:
        low.halves[x] = _split(low, x)
    return low.halves[x]


def _split(low: Lowering, x: Value) -> tuple[Value, Value]:
    q, g = quant_of(x), low.graph
    scale, (top, bottom) = q.scale[0], divmod(q.zero_point[0], BASE)
    kind = DType.INT8 if x.dtype.is_signed else DType.UINT8
    multiplier, shift = (np.asarray(v, np.int32) for v in (1, BYTE))
    if x.type.rank:
        multiplier, shift = multiplier.reshape([1] * x.type.rank), shift.reshape([1] * x.type.rank)
    # the rounding of qir.Requantize adds a half, its x_zero_point takes it away again: x >> 8
    attrs = {"x_zero_point": rounding(BYTE), "zero_point": 0, "lo": kind.lo, "hi": kind.hi, "dtype": str(kind)}
    constants = [g.add_constant(f"{x.name}.high.{n}", v) for n, v in (("multiplier", multiplier), ("shift", shift))]
    grid = QuantParams((scale * BASE,), (top,), kind)
    high = g.add_node("qir.Requantize", [x, *constants], attrs, outputs=[f"{x.name}.high"], quant=grid).output
    attrs = {
        "a_multiplier": 4, "b_multiplier": -4 * BASE, "shift": 2, "zero_point": 0, "lo": 0, "hi": BASE - 1,
        "dtype": str(DType.UINT8),
    }  # fmt: skip
    grid = QuantParams((scale,), (bottom,), DType.UINT8)
    return high, g.add_node("qir.Add", [x, high], attrs, outputs=[f"{x.name}.low"], quant=grid).output


def linear_in_halves(
    low: Lowering, x: Value, ints: Array, quant: QuantParams, bias: NDArray[np.float64], axis: int, acc_axis: int,
    where: str, name: str, emit: Emit,
) -> Value:  # fmt: skip
    """The accumulator of a layer whose input has 16 bits.

    axis: that of the weights' output channels; acc_axis: that of the accumulator's.  The high half takes the bias, the
    low half what its rounding left.  Raises OverflowProofError.
    """
    high, bottom = halves(low, x)
    q_high, q_low = quant_of(high), quant_of(bottom)
    first = fold(low, ints, quant, bias, q_high, axis, where)
    step = np.asarray(first.quant.scale) * q_high.scale[0]
    rest = bias - round_half_even(bias / step) * step
    second = fold(low, first.ints, first.quant, rest, q_low, axis, where)
    accs = [emit(v, w, f"{name}.{s}") for v, w, s in ((high, first, "high"), (bottom, second, "low"))]
    bounds = [_reach(w, v, axis) for w, v in ((first, high), (second, bottom))]
    grids = [low.accumulator_quant(q, w.quant, acc_axis) for q, w in ((q_high, first), (q_low, second))]
    return joined_halves(low, accs, grids, bounds, name)[0]


def _reach(w: LinearWeights, x: Value, axis: int) -> int:
    """A bound of |accumulator|."""
    lo, hi = weighted(w.ints, w.zero_point, axis, interval(x))
    bias = np.zeros(1, np.int64) if w.bias is None else w.bias.astype(np.int64)
    return int(np.maximum(np.abs(lo + bias), np.abs(hi + bias)).max(initial=0))


def joined_halves(
    low: Lowering, accs: list[Value], grids: list[QuantParams], bounds: list[int], name: str
) -> tuple[Value, int]:
    """(the accumulator of both halves, a bound of its size).

    accs: int32, on `grids` whose scales have one ratio for all channels, a power of two.
    """
    ratio = round(grids[0].scale[0] / grids[1].scale[0])
    bits = ratio.bit_length() - 1
    drop = 0
    while (bounds[0] * ratio + bounds[1] >> drop) + 1 > DType.INT32.hi:
        drop += 1
    drop = min(drop, bits)
    scale = tuple(s * (1 << drop) for s in grids[1].scale)
    quant = replace(grids[1], scale=scale, zero_point=(0,) * len(scale))
    attrs = {
        "a_multiplier": ratio << 2, "b_multiplier": 4, "shift": drop + 2, "zero_point": 0, "lo": DType.INT32.lo,
        "hi": DType.INT32.hi, "dtype": str(DType.INT32),
    }  # fmt: skip
    made = low.graph.add_node("qir.Add", accs, attrs, outputs=[f"{name}.acc"], quant=quant).output
    return made, (bounds[0] * ratio + bounds[1] >> drop) + 1
