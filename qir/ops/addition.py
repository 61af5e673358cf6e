"""qir.Add: the sum of two tensors on different grids, rounded once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dyadic import rounding, rounding_shift
from ..types import Array, DType, TensorType
from .base import INTEGER, REQUIRED, Op, register
from .intervals import fits, interval, minus, times

if TYPE_CHECKING:
    from ..graph import Node
    from ..io.functions import Body


def addition_constant(attrs: Mapping[str, Any]) -> int:
    """c = 2^(shift-1) - z_a m_a - z_b m_b: what a qir.Add adds to a*m_a + b*m_b before the shift."""
    zeros = sum(int(attrs[f"{k}_zero_point"]) * int(attrs[f"{k}_multiplier"]) for k in ("a", "b"))
    return rounding(int(attrs["shift"])) - zeros


@register
class IntegerAdd(Op):
    """y = clamp(((a*m_a + b*m_b + c) >> shift) + zero_point, lo, hi)          [HAWQ-V3 eq. 9, docs/arithmetic.md 4]

    c: `addition_constant`.  a, b: int4..int32, broadcast together.  |m| < 2^30, so int64 is enough.
    """

    name = "qir.Add"
    accumulates = True
    inputs = "a b"
    operands = {"a": INTEGER, "b": INTEGER}
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
        a = body.op("Mul", body.cast("a", DType.INT64), body.int64(m_a))
        b = body.op("Mul", body.cast("b", DType.INT64), body.int64(m_b))
        total = body.op("Add", body.op("Add", a, b), body.int64(addition_constant(attrs)))
        reach = sum(body.reach(k, attrs[f"{k}_zero_point"]) * abs(attrs[f"{k}_multiplier"]) for k in ("a", "b"))
        body.store(body.shift_right(total, body.int64(shift)), attrs, (reach >> shift) + 1)

    def overflows(self, node: Node) -> Iterator[str]:
        """The int64 sum must leave room for the 2^62 that the opset-21 form of the shift adds."""
        total = [rounding(int(node.attrs["shift"]))] * 2
        for i, side in enumerate("ab"):
            x = minus(interval(node.input(i)), node.attrs[f"{side}_zero_point"])
            term = times(x, (node.attrs[f"{side}_multiplier"],) * 2)
            total = [t + e for t, e in zip(total, term, strict=True)]
        if not fits((total[0], total[1]), (-(1 << 62), (1 << 63) - 1)):
            yield f"the weighted sum in {total[0]}..{total[1]} does not fit int64"
