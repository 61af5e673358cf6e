"""Softmax without division: tables, a reciprocal by one Newton step  [docs/arithmetic.md 9]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..dyadic import round_half_even, rounding_shift
from ..errors import LoweringError, TypeInferenceError
from ..lowering import FREE, Bounds, Deferred, Lowering, Quantized
from ..types import Array, DType, QuantParams, TensorType
from .base import REQUIRED, Op, register
from .movement import axes_of, first
from .requantize import quant_of

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body

OUTPUT_SCALE = 2.0**-8
MAX_ELEMENTS = 2**15
POWERS = np.arange(17, 31, dtype=np.int64)
"""S lies in [2^16, 2^31); how many of these powers it reaches says by how much to normalize it."""


def exp_table(scale: float) -> NDArray[np.int64]:
    """E[k] = round_half_even(2^16 exp(-scale * k)), k = 0..255."""
    return round_half_even(2.0**16 * np.exp(-scale * np.arange(256.0)))


def reciprocal_table() -> NDArray[np.int64]:
    """R[i] = round_half_even(2^39 / (256 + i + 0.5)), i = 0..255."""
    return round_half_even(2.0**39 / (256.5 + np.arange(256.0)))


def output_quant(dtype: DType) -> QuantParams:
    """The grid of a softmax: scale 2^-8, zero point 0 (uint8) or -128 (int8)."""
    return QuantParams((OUTPUT_SCALE,), (-128 if dtype.is_signed else 0,), dtype)


@register
class Softmax(Op):
    """y = exp(x - max(x)) / sum(exp(x - max(x))) along `axis`."""

    name = "Softmax"
    inputs = "x"
    attrs = {"axis": -1}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        axes_of(attrs["axis"], first(types).rank)
        return [TensorType(first(types).dtype, first(types).shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        e = np.exp(x - x.max(axis=attrs["axis"], keepdims=True))
        return ((e / e.sum(axis=attrs["axis"], keepdims=True)).astype(x.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        x = low.quantized(node.input(0))
        q = quant_of(x)
        if q.per_channel or q.dtype.bits > 16:
            raise LoweringError("needs an 8-bit input", where=str(node), hint="insert a QuantizeLinear before it")
        if q.dtype.bits == 16:  # only differences matter: the upper byte of the same range
            narrow = QuantParams.make(
                q.scale[0] * 256, _upper_byte(q), DType.INT8 if q.dtype.is_signed else DType.UINT8
            )
            x = low.requantize(x, narrow, FREE, f"{node.input(0).name}.narrow")
            q = narrow
            low.note("16-bit input of a softmax is narrowed to 8 bits")
        g = low.graph
        size = x.shape[node.attrs["axis"]]
        if isinstance(size, str) or size >= MAX_ELEMENTS:
            raise LoweringError(f"sums {size} exponentials; fewer than 2^15 are exact", where=str(node))

        def build(target: QuantParams, bounds: Bounds, name: str) -> Value:
            dtype = target.dtype if target.dtype.bits == 8 else DType.UINT8
            natural = output_quant(dtype)
            same = natural == target and bounds == FREE
            made = g.add_node(
                "qir.Softmax",
                [
                    x, g.add_constant(f"{name}.exp", exp_table(q.scale[0])),
                    g.add_constant(f"{name}.reciprocal", reciprocal_table()),
                ],
                {"axis": node.attrs["axis"], "zero_point": natural.zero_point[0], "dtype": str(dtype)},
                outputs=[name if same else f"{name}.softmax"], quant=natural,
            ).output  # fmt: skip
            return Quantized(made).emit(low, target, bounds, name)

        low.set(node.output, Deferred(build))


def _upper_byte(q: QuantParams) -> int:
    """The zero point of the 8-bit grid that covers a 16-bit one."""
    return max(min(round(q.zero_point[0] / 256), 127 if q.dtype.is_signed else 255), -128)


@register
class LogSoftmax(Op):
    """y = x - max(x) - log(sum(exp(x - max(x)))) along `axis`.

    No integer form: its order is that of x, and its values serve no integer consumer.
    """

    name = "LogSoftmax"
    inputs = "x"
    attrs = {"axis": -1}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        axes_of(attrs["axis"], first(types).rank)
        return [TensorType(first(types).dtype, first(types).shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        shifted = x - x.max(axis=attrs["axis"], keepdims=True)
        total = np.log(np.exp(shifted).sum(axis=attrs["axis"], keepdims=True))
        return ((shifted - total).astype(x.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        raise LoweringError(
            "has no integer form", where=str(node),
            hint="strip it when it comes last (strip_softmax: logits keep the order), or export a Softmax",
        )  # fmt: skip


@register
class IntegerSoftmax(Op):
    """y = softmax(x) on the grid 2^-8 along an axis of fewer than 2^15 elements   [docs/arithmetic.md 9]

    x: int8/uint8.  exp_table, reciprocal_table: int64 (256,).  With d = max(x) - x, e = E[d], S = sum(e):
    p = #{k in 17..30: S >= 2^k},  u = S << (14 - p),  r0 = R[(u >> 22) & 255],  t = (u r0) >> 30,
    r1 = (r0 (2^32 - t)) >> 31,  y = clamp(((e r1 + 2^(38+p)) >> (39 + p)) + zero_point).
    """

    name = "qir.Softmax"
    inputs = "x exp_table reciprocal_table"
    attrs = {"axis": REQUIRED, "zero_point": REQUIRED, "dtype": REQUIRED}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        (axis,) = axes_of(attrs["axis"], x.rank)
        if x.dtype.bits > 8 or int(x.shape[axis]) >= MAX_ELEMENTS:
            raise TypeInferenceError(f"{x} along axis {axis}: 8 bits and fewer than 2^15 elements are wanted")
        if first(types, 1).shape != (256,) or first(types, 2).shape != (256,):
            raise TypeInferenceError("the tables have 256 entries")
        return [TensorType(DType(attrs["dtype"]), x.shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, exps, reciprocals = (np.asarray(v).astype(np.int64) for v in inputs)
        axis, kind = attrs["axis"], DType(attrs["dtype"])
        e = exps[x.max(axis=axis, keepdims=True) - x]
        total = e.sum(axis=axis, keepdims=True)
        p = (total[..., None] >= (1 << POWERS)).sum(axis=-1).astype(np.int64)
        u = total << (14 - p)
        r0 = reciprocals[(u >> 22) & 255]
        t = (u * r0) >> 30
        r1 = (r0 * ((1 << 32) - t)) >> 31
        y = rounding_shift(e * r1, 39 + p) + attrs["zero_point"]
        return (np.clip(y, kind.lo, kind.hi).astype(kind.numpy),)

    def function_body(self, body: Body, node: Node) -> None:
        attrs = node.attrs
        axis, kind = attrs["axis"] % body.rank("x"), DType(attrs["dtype"])
        wide, along = body.cast("x", DType.INT32), body.int64([axis])
        d = body.op("Sub", body.op("ReduceMax", wide, along, keepdims=1), wide)
        e = body.op("Gather", "exp_table", d, axis=0)
        total = body.op("ReduceSum", e, along, keepdims=1)
        reached = body.op("GreaterOrEqual", body.op("Unsqueeze", total, body.int64([-1])), body.int64(1 << POWERS))
        p = body.op("ReduceSum", body.cast(reached, DType.INT64), body.int64([-1]), keepdims=0)
        u = body.op("Mul", total, body.power_of_two(body.op("Sub", body.int64(14), p)))
        leading = body.op("Sub", body.shift_right(u, body.int64(22)), body.int64(256))  # u >> 22 is in [256, 511]
        r0 = body.op("Gather", "reciprocal_table", leading, axis=0)
        t = body.shift_right(body.op("Mul", u, r0), body.int64(30))
        r1 = body.shift_right(body.op("Mul", r0, body.op("Sub", body.int64(1 << 32), t)), body.int64(31))
        y = body.rounding_shift(body.op("Mul", e, r1), body.op("Add", p, body.int64(39)))
        body.store(y, {"zero_point": attrs["zero_point"], "lo": kind.lo, "hi": kind.hi, "dtype": str(kind)}, 1 << 9)
