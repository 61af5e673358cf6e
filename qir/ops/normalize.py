"""qir.Normalize: rows centred and divided by their root mean square, without division  [docs/arithmetic.md 9a]."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..dyadic import MAX_SHIFT, MIN_SHIFT, round_half_even, rounding, rounding_shift
from ..errors import LoweringError, TypeInferenceError
from ..lowering import Bounds
from ..types import Array, DType, QuantParams, TensorType
from .base import INT32_CONSTANT, INT64_CONSTANT, REQUIRED, SIXTEEN_BITS, Op, register
from .intervals import interval
from .movement import first

if TYPE_CHECKING:
    from ..graph import Node
    from ..io.functions import Body

FRACTION = 20
"""Fractional bits of a normalized element before gamma and beta."""
MAX_ELEMENTS = 2**14
MOST_EXTRA = 15
"""Rows are normalized with up to this many further pairs of bits, so that nearly constant ones keep theirs."""
POWERS = np.asarray([1 << (2 * j) for j in range(1, 31)], np.int64)
"""4^j: how many of them u reaches says by how much to normalize it."""


@cache
def inverse_root_table() -> NDArray[np.int64]:
    """T[i] = round_half_even(2^16 / sqrt((256 + i + 0.5) / 256)), i = 0..767."""
    table = round_half_even(2.0**16 / np.sqrt((256.5 + np.arange(768.0)) / 256))
    table.flags.writeable = False
    return table


@dataclass(frozen=True)
class NormalizeConstants:
    """What a normalization computes with: attributes of the node, and a multiplier (int32) and an offset (int64)
    that broadcast against x."""

    extra: int
    noise: int
    shift: int
    multiplier_i32: NDArray[np.int32]
    offset_i64: NDArray[np.int64]


def normalize_constants(
    x: QuantParams, n: int, centre: bool, gamma: Array, beta: Array, epsilon: float, target: QuantParams, where: str
) -> NormalizeConstants:
    """Constants of y = gamma (x - mean) / sqrt(variance + epsilon) + beta on the grid `target`, rows of n elements.

    centre: False leaves the mean out and divides by the root mean square.
    Raises LoweringError where the proof of no overflow fails: n, the width or epsilon is too large.
    """
    reach = _reach(x.dtype.lo, x.dtype.hi, x.zero_point[0], centre)
    noise = Fraction(epsilon) / Fraction(x.scale[0]) ** 2 * n * n
    fits = [k for k in range(MOST_EXTRA + 1) if 4**k * (n * n * reach**2 + noise) < (1 << 62) - 2]
    if n > MAX_ELEMENTS or n * (x.dtype.hi - x.dtype.lo) >= 1 << 30 or not fits:
        raise LoweringError(
            f"normalizes {n} elements of {x.dtype} with epsilon {epsilon:g} (scale {x.scale[0]:.4g}): "
            "the squares do not fit 62 bits",
            where=where, hint=f"at most {MAX_ELEMENTS} elements a row are exact",
        )  # fmt: skip
    k = fits[-1]
    scale, zero = target.scale[0], target.zero_point[0]
    slope = np.asarray(gamma, np.float64) / (scale * 2.0**FRACTION)
    start = np.asarray(beta, np.float64) / scale + zero
    top, far = float(np.abs(slope).max(initial=0)), float(np.abs(start).max(initial=0))
    if not (math.isfinite(top) and math.isfinite(far)):
        raise LoweringError("gamma or beta is not finite", where=where)
    shifts = [s for s in range(MIN_SHIFT, MAX_SHIFT + 1) if top * 2.0**s < 2**31 - 1 and far * 2.0**s < 2.0**60]
    if not shifts:
        raise LoweringError(
            f"gamma or beta is too large for an output scale of {scale:.4g}", where=where,
            hint="widen the range of the output",
        )  # fmt: skip
    shift = shifts[-1]
    multiplier = round_half_even(slope * 2.0**shift).astype(np.int32)
    offset = round_half_even(start * 2.0**shift) + rounding(shift)
    return NormalizeConstants(k, round(4**k * noise), shift, multiplier, offset)


def _reach(lo: int, hi: int, zero_point: int, centre: bool) -> Fraction:
    """A bound of |x - mean|, or of |x - zero_point|."""
    return Fraction(hi - lo, 2) if centre else Fraction(max(hi - zero_point, zero_point - lo))


@register
class Normalize(Op):
    """y = clamp((z multiplier + offset) >> shift) for rows of n elements along the last axis  [docs/arithmetic.md 9a]

    x: int8, uint8 or int16.  multiplier: int32, offset: int64, broadcast against x; the output's zero point and the
    rounding constant are inside the offset.  table: `inverse_root_table`.  With q = x, or x - x_zero_point where
    `centre` is 0, S1 = sum q (0 where `centre` is 0), S2 = sum q^2, k = extra:
    d = n q - S1,  u = max(4^k (n S2 - S1^2) + noise, 4^k),  e = #{j in 1..30: u >= 4^j},  v = u 4^(30 - e),
    r0 = T[(v >> 52) - 256],  h = (3 2^61 - (v >> 31) r0^2) >> 31,  r1 = (r0 h) >> 16 = 2^(31 + e) / sqrt(u),
    g = 11 - k + e,  z = (d r1 + 2^(g - 1)) >> g = 2^20 (q - mean) / sqrt(variance).
    """

    name = "qir.Normalize"
    accumulates = True
    inputs = "x multiplier offset table"
    operands = {"x": SIXTEEN_BITS, "multiplier": INT32_CONSTANT, "offset": INT64_CONSTANT, "table": INT64_CONSTANT}
    attrs = {
        "centre": REQUIRED, "x_zero_point": REQUIRED, "extra": REQUIRED, "noise": REQUIRED, "shift": REQUIRED,
        "lo": REQUIRED, "hi": REQUIRED, "dtype": REQUIRED,
    }  # fmt: skip

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        if x.rank < 1 or x.dtype.bits > 16 or x.dtype.is_float:
            raise TypeInferenceError(f"rows of at most 16 bits are normalized, not {x}")
        shape = tuple(int(d) for d in x.shape)
        for i in (1, 2):
            own = tuple(int(d) for d in first(types, i).shape)
            if np.broadcast_shapes(shape, own) != shape:
                raise TypeInferenceError(f"constants of shape {list(own)} do not broadcast against {x}")
        if first(types, 3).shape != (768,):
            raise TypeInferenceError("the table has 768 entries")
        return [TensorType(DType(attrs["dtype"]), x.shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, multiplier, offset, table = (np.asarray(v).astype(np.int64) for v in inputs)
        kind, n, k = DType(attrs["dtype"]), x.shape[-1], attrs["extra"]
        q = x if attrs["centre"] else x - attrs["x_zero_point"]
        s1 = q.sum(axis=-1, keepdims=True) if attrs["centre"] else np.zeros((*q.shape[:-1], 1), np.int64)
        d = n * q - s1
        u = (n * (q * q).sum(axis=-1, keepdims=True) - s1 * s1 << 2 * k) + attrs["noise"]
        u = np.maximum(u, 1 << 2 * k)
        e = (u[..., None] >= POWERS).sum(axis=-1).astype(np.int64)
        v = u << (2 * (30 - e))
        r0 = table[(v >> 52) - 256]
        h = ((3 << 61) - (v >> 31) * (r0 * r0)) >> 31
        r1 = (r0 * h) >> 16
        z = rounding_shift(d * r1, 31 - FRACTION - k + e)
        y = (z * multiplier + offset) >> attrs["shift"]
        return (np.clip(y, attrs["lo"], attrs["hi"]).astype(kind.numpy),)

    def function_body(self, body: Body, node: Node) -> None:
        attrs, n, k = node.attrs, int(node.input(0).shape[-1]), node.attrs["extra"]
        last = body.int64([-1])
        q = body.cast("x", DType.INT64)
        if not attrs["centre"] and attrs["x_zero_point"]:
            q = body.op("Sub", q, body.int64(attrs["x_zero_point"]))
        d = body.op("Mul", q, body.int64(n))
        u = body.op("Mul", body.op("ReduceSum", body.op("Mul", q, q), last, keepdims=1), body.int64(n))
        if attrs["centre"]:
            s1 = body.op("ReduceSum", q, last, keepdims=1)
            d = body.op("Sub", d, s1)
            u = body.op("Sub", u, body.op("Mul", s1, s1))
        least = body.int64(1 << 2 * k)
        u = body.op("Add", body.op("Mul", u, least), body.int64(attrs["noise"]))
        # onnxruntime's Max of int64 is wrong beyond int32 (see `Body.store`)
        u = body.op("Where", body.op("Less", u, least), least, u)
        reached = body.op("GreaterOrEqual", body.op("Unsqueeze", u, last), body.int64(POWERS))
        e = body.op("ReduceSum", body.cast(reached, DType.INT64), last, keepdims=0)
        pairs = body.op("Sub", body.int64(60), body.op("Add", e, e))
        v = body.op("Mul", u, body.power_of_two(pairs))
        leading = body.op("Sub", body.shift_right(v, body.int64(52)), body.int64(256))
        r0 = body.op("Gather", "table", leading, axis=0)
        squared = body.op("Mul", body.shift_right(v, body.int64(31)), body.op("Mul", r0, r0))
        # 3 2^61 - v r0^2 may reach 2^62, beyond what `shift_right` takes; it is never negative
        h = body.shift_right_natural(body.op("Sub", body.int64(3 << 61), squared), 31)
        r1 = body.shift_right(body.op("Mul", r0, h), body.int64(16))
        g = body.op("Add", e, body.int64(31 - FRACTION - k))
        z = body.rounding_shift(body.op("Mul", d, r1), g)
        scaled = body.op("Add", body.op("Mul", z, body.cast("multiplier", DType.INT64)), "offset")
        y = body.shift_right(scaled, body.int64(attrs["shift"]))
        body.store(y, {"zero_point": 0, **{key: attrs[key] for key in ("lo", "hi", "dtype")}}, 1 << 62)

    def overflows(self, node: Node) -> Iterator[str]:
        attrs, x = node.attrs, node.input(0)
        n, k, shift = x.shape[-1], int(attrs["extra"]), int(attrs["shift"])
        multiplier, offset, table = (node.input(i).data for i in (1, 2, 3))
        if multiplier is None or offset is None or table is None:
            yield "its constants are no constants"
            return
        if not np.array_equal(table, inverse_root_table()):
            yield "its table is not that of the inverse square root"
        if not isinstance(n, int) or not 1 <= n <= MAX_ELEMENTS:
            yield f"rows of {n} elements, 1 to {MAX_ELEMENTS} are proven"
            return
        if not (0 <= k <= MOST_EXTRA and MIN_SHIFT <= shift <= MAX_SHIFT and int(attrs["noise"]) >= 0):
            yield f"extra {k}, shift {shift} or noise {attrs['noise']} is out of its range"
            return
        lo, hi = interval(x)
        if not attrs["centre"] and not x.dtype.lo <= attrs["x_zero_point"] <= x.dtype.hi:
            yield f"zero point {attrs['x_zero_point']} is no {x.dtype}"
            return
        reach = _reach(lo, hi, attrs["x_zero_point"], bool(attrs["centre"]))
        if 4**k * n * n * reach**2 + int(attrs["noise"]) >= (1 << 62) - 1:
            yield f"4^{k} times the squares of {n} elements of [{lo}, {hi}] does not fit 62 bits"
        if n * (x.dtype.hi - x.dtype.lo) >= 1 << 30:
            yield f"{n} times a difference of {x.dtype} does not fit 30 bits"
        largest = math.isqrt(n) + 1 << FRACTION + 1
        sizes = np.abs(multiplier.astype(object)).max(initial=0), np.abs(offset.astype(object)).max(initial=0)
        if sizes[0] >= 1 << 31 or int(sizes[0]) * largest + int(sizes[1]) >= 1 << 62:
            yield f"multiplier {sizes[0]} and offset {sizes[1]} leave 62 bits"


def grid_limits(target: QuantParams, bounds: Bounds) -> dict[str, Any]:
    """lo, hi and dtype of a normalization's output."""
    lo, hi = bounds.on(target)
    return {"lo": lo, "hi": hi, "dtype": str(target.dtype)}
