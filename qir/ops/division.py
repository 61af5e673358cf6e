"""qir.Div: a quotient of two integer tensors by a reciprocal of tables and one Newton step  [docs/arithmetic.md 9]."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dyadic import round_half_even, rounding_shift
from ..errors import LoweringError
from ..lowering import Bounds, Deferred, Fixed, Form, Lowering
from ..types import Array, DType, QuantParams, TensorType
from .base import INT64_CONSTANT, INTEGER, REQUIRED, Op, register
from .intervals import interval, minus
from .movement import first, ints
from .reals import real_interval
from .requantize import output_grid, quant_of
from .softmax import reciprocal_table

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body

POWERS = np.arange(1, 31, dtype=np.int64)
"""The divisor lies in [1, 2^31): how many of these powers it reaches says by how much to normalize it."""


def bits_of(value: Value, zero_point: int) -> int:
    """Bits of |x - zero_point|."""
    lo, hi = minus(interval(value), zero_point)
    return max(abs(lo), abs(hi)).bit_length()


@register
class IntegerDiv(Op):
    """y = clamp(((t m + 2^(w-1)) >> w) + zero_point, lo, hi),  t = ((a - z_a) r1) >> (bits + 2),  w = shift + e

    a, b: int8..int32, broadcast together.  d = max(b - z_b, least) in [1, 2^31),  e = #{k in 1..30: d >= 2^k},
    u = d << (30 - e),  r0 = R[(u >> 22) & 255],  v = (u r0) >> 30,  r1 = (r0 (2^32 - v)) >> 31 = 2^61 / u within 2^-18.
    y = 0 before the zero point where w > 62: the quotient is below half a step there.  |a - z_a| < 2^bits, bits <= 30,
    m < 2^31 and w >= 1, so that |(a - z_a) r1| < 2^62, |t| < 2^30 and |t m| < 2^61.
    (a - z_a) / d = (a - z_a) r1 2^-(31+e), so m 2^(29 - bits - shift) is s_a / (s_b s_y).
    """

    name = "qir.Div"
    accumulates = True
    inputs = "a b reciprocal_table"
    operands = {"a": INTEGER, "b": INTEGER, "reciprocal_table": INT64_CONSTANT}
    attrs = {
        "a_zero_point": 0, "b_zero_point": 0, "least": 1, "bits": REQUIRED, "multiplier": REQUIRED, "shift": REQUIRED,
        "zero_point": 0, "lo": REQUIRED, "hi": REQUIRED, "dtype": REQUIRED,
    }  # fmt: skip

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        shape = np.broadcast_shapes(ints(first(types).shape), ints(first(types, 1).shape))
        return [TensorType(DType(attrs["dtype"]), tuple(shape))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        a, b, table = (np.asarray(v).astype(np.int64) for v in inputs)
        n, d = a - attrs["a_zero_point"], np.maximum(b - attrs["b_zero_point"], attrs["least"])
        e = (d[..., None] >= (1 << POWERS)).sum(axis=-1).astype(np.int64)
        u = d << (30 - e)
        r0 = table[(u >> 22) & 255]
        r1 = (r0 * ((1 << 32) - ((u * r0) >> 30))) >> 31
        t, w = (n * r1) >> (attrs["bits"] + 2), np.asarray(e + attrs["shift"])
        t = np.where(w > 62, 0, t)
        y = rounding_shift(t * attrs["multiplier"], np.broadcast_to(np.minimum(w, 62), t.shape)) + attrs["zero_point"]
        return (np.clip(y, attrs["lo"], attrs["hi"]).astype(DType(attrs["dtype"]).numpy),)

    def function_body(self, body: Body, node: Node) -> None:
        at = node.attrs
        n = body.op("Sub", body.cast("a", DType.INT64), body.int64(at["a_zero_point"]))
        d = body.op("Sub", body.cast("b", DType.INT64), body.int64(at["b_zero_point"]))
        least = body.int64(at["least"])
        d = body.op("Where", body.op("Less", d, least), least, d)
        reached = body.op("GreaterOrEqual", body.op("Unsqueeze", d, body.int64([-1])), body.int64(1 << POWERS))
        e = body.op("ReduceSum", body.cast(reached, DType.INT64), body.int64([-1]), keepdims=0)
        u = body.op("Mul", d, body.power_of_two(body.op("Sub", body.int64(30), e)))
        leading = body.op("Sub", body.shift_right(u, body.int64(22)), body.int64(256))
        r0 = body.op("Gather", "reciprocal_table", leading, axis=0)
        v = body.shift_right(body.op("Mul", u, r0), body.int64(30))
        r1 = body.shift_right(body.op("Mul", r0, body.op("Sub", body.int64(1 << 32), v)), body.int64(31))
        t = body.shift_right(body.op("Mul", n, r1), body.int64(at["bits"] + 2))
        w = body.op("Add", e, body.int64(at["shift"]))
        beyond = body.op("Greater", w, body.int64(62))
        t = body.op("Where", beyond, body.int64(0), t)
        w = body.op("Where", beyond, body.int64(62), w)
        y = body.rounding_shift(body.op("Mul", t, body.int64(at["multiplier"])), w)
        body.store(y, at, 1 << 61)

    def overflows(self, node: Node) -> Iterator[str]:
        at = node.attrs
        table = node.input(2).data
        if table is None or table.shape != (256,) or table.min() < 0 or table.max() >= 1 << 31:
            yield "the table is not that of reciprocals"
        if bits_of(node.input(0), at["a_zero_point"]) > at["bits"] or not 1 <= at["bits"] <= 30:
            yield f"the dividend has more than {at['bits']} bits"
        if not 0 <= at["multiplier"] < 1 << 31:
            yield f"the multiplier {at['multiplier']} is not below 2^31"
        hi = minus(interval(node.input(1)), at["b_zero_point"])[1]
        if not 1 <= at["least"] < 1 << 31 or hi >= 1 << 31:
            yield "the divisor leaves [1, 2^31)"
        if at["shift"] + int(at["least"]).bit_length() - 1 < 1:
            yield f"the shift {at['shift']} has no bit left for a divisor of {at['least']}"


def emit_quotient(
    low: Lowering, a: Value, b: Value, floor: float, target: QuantParams, bounds: Bounds, name: str
) -> Value:
    """a / b on the grid `target`, b at least `floor` >= 0 in reals: one qir.Div.  Raises LoweringError."""
    qa, qb = quant_of(a), quant_of(b)
    bits = max(bits_of(a, qa.zero_point[0]), 1)
    ratio = qa.scale[0] / (qb.scale[0] * target.scale[0])
    mantissa, exponent = math.frexp(ratio)
    multiplier = int(round_half_even(np.asarray(mantissa * 2.0**31)))
    if multiplier == 1 << 31:
        multiplier, exponent = 1 << 30, exponent + 1
    shift = 60 - exponent - bits
    least = max(1, math.floor(floor / qb.scale[0]), 1 << max(0, 1 - shift))
    if least >= 1 << 30 or bits > 30:
        raise LoweringError(f"the quotient of {a.name!r} and {b.name!r} is out of reach", where=str(low.node or name))
    table = low.graph.add_constant(f"{name}.reciprocal", reciprocal_table())
    lo, hi = bounds.on(target)
    attrs: dict[str, Any] = {
        "a_zero_point": qa.zero_point[0], "b_zero_point": qb.zero_point[0], "least": least, "bits": bits,
        "multiplier": multiplier, "shift": shift, **output_grid(target, lo, hi),
    }  # fmt: skip
    return low.graph.add_node("qir.Div", [a, b, table], attrs, outputs=[name], quant=target).output


def quotient(low: Lowering, node: Node, a: Value | None, b: Value) -> Form:
    """The form of a / b, or of 1 / b where `a` is None.

    Raises LoweringError where b may be zero or negative, as far as the operators before it tell.
    """
    lo, hi = real_interval(b)
    if lo < 0 or hi <= 0:
        raise LoweringError(
            f"divides by {b.name!r}, which may be anything from {lo:g} to {hi:g}", where=str(node),
            hint="a divisor must be provably positive: squares, exponentials, sigmoids, or a Clip or Max before it",
        )  # fmt: skip
    divisor = low.quantized(b)
    if quant_of(divisor).per_channel:
        raise LoweringError(f"divides by {b.name!r}, which has a scale for each channel", where=str(node))
    form = None if a is None else low.form(a)
    constant = np.ones(()) if a is None else form.data if isinstance(form, Fixed) else None
    if constant is None and a is not None:
        dividend = low.quantized(a)
        if quant_of(dividend).per_channel:
            raise LoweringError(f"divides {a.name!r}, which has a scale for each channel", where=str(node))
        return Deferred(lambda target, bounds, name: emit_quotient(low, dividend, divisor, lo, target, bounds, name))
    top = float(np.abs(constant).max(initial=0)) or 1.0 if constant is not None else 1.0
    grid = QuantParams((top / DType.INT16.hi,), (0,), DType.INT16)
    ints_i16 = grid.quantize(np.asarray(constant))

    def build(target: QuantParams, bounds: Bounds, name: str) -> Value:
        numerator = low.graph.add_constant(f"{name}.dividend", ints_i16, grid.dtype, grid)
        return emit_quotient(low, numerator, divisor, lo, target, bounds, name)

    return Deferred(build)
