"""qir.Mul: products of two integer tensors; qir.Max and qir.Min of tensors on one grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dyadic import rounding_shift
from ..types import Array, DType, TensorType
from .base import INTEGER, REQUIRED, Op, register
from .convolution import check_int32
from .elementwise import Elementwise, broadcast_type
from .intervals import fits, interval, minus, times

if TYPE_CHECKING:
    from ..graph import Node
    from ..io.functions import Body


@register
class IntegerMul(Op):
    """y = clamp((((a - z_a)(b - z_b) multiplier + 2^(shift-1)) >> shift) + zero_point, lo, hi)   [docs/arithmetic.md 7]

    a, b: int4..int32, broadcast together (squeeze-and-excite: b is (N, C, 1, 1)).  (a - z_a)(b - z_b) fits int32,
    which is proved when it is lowered; multiplier, shift: one dyadic number.
    """

    name = "qir.Mul"
    accumulates = True
    inputs = "a b"
    operands = {"a": INTEGER, "b": INTEGER}
    attrs = {
        "multiplier": REQUIRED, "shift": REQUIRED, "a_zero_point": 0, "b_zero_point": 0, "zero_point": 0,
        "lo": REQUIRED, "hi": REQUIRED, "dtype": REQUIRED,
    }  # fmt: skip

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        a, b = types[0], types[1]
        assert a is not None and b is not None
        shape = np.broadcast_shapes(tuple(int(d) for d in a.shape), tuple(int(d) for d in b.shape))
        return [TensorType(DType(attrs["dtype"]), shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        a = inputs[0].astype(np.int64) - attrs["a_zero_point"]
        b = inputs[1].astype(np.int64) - attrs["b_zero_point"]
        product = check_int32(a * b).astype(np.int64) * attrs["multiplier"]
        y = rounding_shift(product, np.int64(attrs["shift"])) + attrs["zero_point"]  # type: ignore[arg-type]
        return (np.clip(y, attrs["lo"], attrs["hi"]).astype(DType(attrs["dtype"]).numpy),)

    def function_body(self, body: Body, node: Node) -> None:
        attrs = node.attrs
        factors: list[str] = []
        for name in ("a", "b"):
            x = body.cast(name, DType.INT64)
            zero = attrs[f"{name}_zero_point"]
            factors.append(body.op("Sub", x, body.int64(zero)) if zero else x)
        product = body.op("Mul", body.op("Mul", *factors), body.int64(attrs["multiplier"]))
        reach = min(body.reach("a", attrs["a_zero_point"]) * body.reach("b", attrs["b_zero_point"]), 1 << 31)
        reach = (reach * abs(attrs["multiplier"]) >> attrs["shift"]) + 1
        body.store(body.rounding_shift(product, body.int64(attrs["shift"])), attrs, reach)

    def overflows(self, node: Node) -> Iterator[str]:
        a, b = (minus(interval(node.input(i)), node.attrs[f"{side}_zero_point"]) for i, side in enumerate("ab"))
        if not fits(times(a, b)):
            yield f"the product of {a[0]}..{a[1]} and {b[0]}..{b[1]} does not fit int32"


class _IntegerExtremum(Elementwise):
    """Larger or smaller of two tensors that share dtype, scale and zero point."""

    inputs = "a b"
    operands = {"a": INTEGER, "b": INTEGER}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        return [broadcast_type(types)]

    def function_body(self, body: Body, node: Node) -> None:
        # runtimes have Max and Min for 32-bit integers, not for narrower ones
        wide = [body.cast(name, DType.INT32) for name in ("a", "b")]
        best = body.op(self.name.removeprefix("qir."), *wide)
        body.op("Cast", best, output="y", to=body.result_type(body.dtype("a")))


@register
class IntegerMax(_IntegerExtremum):
    """y = max(a, b), both on the output's grid"""

    name = "qir.Max"

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.maximum(inputs[0], inputs[1]),)


@register
class IntegerMin(_IntegerExtremum):
    """y = min(a, b), both on the output's grid"""

    name = "qir.Min"

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.minimum(inputs[0], inputs[1]),)
