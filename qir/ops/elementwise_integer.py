"""Sums and clamps: Add, Relu and the integer form qir.Add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dyadic import common_dyadic, rounding_shift
from ..errors import LoweringError
from ..types import Array, DType, QuantParams, TensorType
from .base import REQUIRED, Op, register
from .requantize import output_grid, quant_of

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body
    from ..lowering import Bounds, Lowering


@register
class Relu(Op):
    """y = max(x, 0); on integers it is fused into the requantization before it as lo = zero_point."""

    name = "Relu"
    inputs = "x"

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        assert types[0] is not None
        return [TensorType(types[0].dtype, types[0].shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.maximum(inputs[0], 0),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        from ..lowering import Bounds, Clamped

        low.set(node.output, Clamped(low.form(node.input(0)), Bounds(lo=0.0)))


def lower_sum(low: Lowering, node: Node, sign: int) -> None:
    """a + sign*b as a form that waits for its output grid."""
    from ..lowering import Deferred

    a, b = low.quantized(node.input(0)), low.quantized(node.input(1))
    qa, qb = quant_of(a), quant_of(b)
    if qa.per_channel or qb.per_channel:
        raise LoweringError("operands of a sum are quantized per tensor", where=str(node))

    def build(target: QuantParams, bounds: Bounds, name: str) -> Value:
        s = target.scale[0]
        (m_a, m_b), shift = common_dyadic([qa.scale[0] / s, sign * qb.scale[0] / s], where=str(node))
        lo, hi = bounds.on(target)
        g = low.graph
        return g.add_node(
            "qir.Add", [a, b],
            {
                "a_multiplier": m_a, "b_multiplier": m_b, "shift": shift, "a_zero_point": qa.zero_point[0],
                "b_zero_point": qb.zero_point[0], **output_grid(target, lo, hi),
            },
            outputs=[name], quant=target,
        ).output  # fmt: skip

    low.set(node.output, Deferred(build))


@register
class Add(Op):
    """y = a + b, with NumPy broadcasting."""

    name = "Add"
    inputs = "a b"

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        a, b = types[0], types[1]
        assert a is not None and b is not None
        return [TensorType(a.dtype, np.broadcast_shapes(a.shape, b.shape))]  # type: ignore[arg-type]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.add(inputs[0], inputs[1]),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        lower_sum(low, node, 1)


@register
class IntegerAdd(Op):
    """y = clamp(((a*m_a + b*m_b + c) >> shift) + zero_point, lo, hi)          [HAWQ-V3 eq. 9, ARITHMETIC 4]

    c = 2^(shift-1) - z_a m_a - z_b m_b.  a, b: int4..int32, broadcast together.  |m| < 2^30, so int64 is enough.
    """

    name = "qir.Add"
    inputs = "a b"
    attrs = {
        "a_multiplier": REQUIRED, "b_multiplier": REQUIRED, "shift": REQUIRED, "a_zero_point": 0, "b_zero_point": 0,
        "zero_point": 0, "lo": REQUIRED, "hi": REQUIRED, "dtype": REQUIRED,
    }  # fmt: skip

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        a, b = types[0], types[1]
        assert a is not None and b is not None
        return [TensorType(DType(attrs["dtype"]), np.broadcast_shapes(a.shape, b.shape))]  # type: ignore[arg-type]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        a, b = inputs
        total = (a.astype(np.int64) - attrs["a_zero_point"]) * attrs["a_multiplier"]
        total = total + (b.astype(np.int64) - attrs["b_zero_point"]) * attrs["b_multiplier"]
        y = rounding_shift(total, np.int64(attrs["shift"])) + attrs["zero_point"]  # type: ignore[arg-type]
        return (np.clip(y, attrs["lo"], attrs["hi"]).astype(DType(attrs["dtype"]).numpy),)

    def function_body(self, body: Body, node: Node) -> None:
        attrs = node.attrs
        m_a, m_b, shift = attrs["a_multiplier"], attrs["b_multiplier"], attrs["shift"]
        c = (1 << (shift - 1)) - attrs["a_zero_point"] * m_a - attrs["b_zero_point"] * m_b
        a = body.op("Mul", body.cast("a", DType.INT64), body.int64(m_a))
        b = body.op("Mul", body.cast("b", DType.INT64), body.int64(m_b))
        total = body.op("Add", body.op("Add", a, b), body.int64(c))
        body.store(body.shift_right(total, body.int64(shift)), attrs)
