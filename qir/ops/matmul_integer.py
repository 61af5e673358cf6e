"""qir.MatMul and qir.MatMulActivations: matrix products of narrow integers into int32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TypeInferenceError
from ..types import Array, DType, TensorType
from .base import EIGHT_BITS, INT32_CONSTANT, WEIGHTS, Op, dim_at, elements, register
from .convolution import check_bias, check_int32
from .exact_product import exact_pair, operand
from .gemm import matmul_shape
from .intervals import interval, minus, repeated_overflow, times, weighted_overflow

if TYPE_CHECKING:
    from ..graph import Node
    from ..io.functions import Body


@register
class IntegerMatMul(Op):
    """acc = sum_k x[..., k] (w[k, n] - weight_zero_point) + bias[n]        [HAWQ-V3 eq. 5, docs/arithmetic.md 3]

    x: int8/uint8/int4/uint4 (..., K).  w: the same dtypes, (K, N).  bias: int32 (N,), -z_x sum(w - z_w) folded in.
    acc: int32; overflow is excluded by proof when it is lowered.
    """

    name = "qir.MatMul"
    accumulates = True
    linear = True
    weights = 1
    inputs = "x w bias?"
    operands = {"x": EIGHT_BITS, "w": WEIGHTS, "bias": INT32_CONSTANT}
    outputs = "acc"
    attrs = {"weight_zero_point": 0}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        w = types[1]
        assert w is not None
        if w.rank != 2:
            raise TypeInferenceError(f"w {w} is not a matrix")
        check_bias(types, int(w.shape[1]))
        return [TensorType(DType.INT32, matmul_shape(types[0], w))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, w, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
        # float64 holds every partial sum exactly, and BLAS does the work
        centred = w.astype(np.float64) - attrs["weight_zero_point"]
        acc = np.matmul(x.astype(np.float64), centred).astype(np.int64)
        return (check_int32(acc if bias is None else acc + bias),)

    def function_body(self, body: Body, node: Node) -> None:
        x, w = exact_pair(
            body,
            operand(body, "x", body.dtype("x"), 0),
            operand(body, "w", body.dtype("w"), node.attrs["weight_zero_point"]),
        )
        biased = body.has("bias")
        acc = body.op(
            "MatMulInteger", x.name, w.name, x.zero(body), w.zero(body), output=None if biased else "acc"
        )  # fmt: skip
        if biased:
            body.op("Add", acc, "bias", output="acc")

    def macs(self, node: Node) -> int:
        return elements(node.output) * dim_at(node.input(0).shape[-1], 1)

    def overflows(self, node: Node) -> Iterator[str]:
        yield from weighted_overflow(node, 1, interval(node.input(0)))


@register
class IntegerMatMulActivations(Op):
    """acc = sum_k (a[..., m, k] - a_zero_point)(b[..., k, n] - b_zero_point)        [docs/arithmetic.md 3]

    a, b: int8/uint8/int4/uint4, batched as NumPy's matmul.  acc: int32.
    """

    name = "qir.MatMulActivations"
    accumulates = True
    linear = True
    inputs = "a b"
    operands = {"a": EIGHT_BITS, "b": EIGHT_BITS}
    outputs = "acc"
    attrs = {"a_zero_point": 0, "b_zero_point": 0}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        return [TensorType(DType.INT32, matmul_shape(types[0], types[1]))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        a = inputs[0].astype(np.float64) - attrs["a_zero_point"]
        b = inputs[1].astype(np.float64) - attrs["b_zero_point"]
        return (check_int32(np.matmul(a, b).astype(np.int64)),)

    def function_body(self, body: Body, node: Node) -> None:
        a, b = exact_pair(
            body,
            operand(body, "a", body.dtype("a"), node.attrs["a_zero_point"]),
            operand(body, "b", body.dtype("b"), node.attrs["b_zero_point"]),
        )
        body.op("MatMulInteger", a.name, b.name, a.zero(body), b.zero(body), output="acc")

    def macs(self, node: Node) -> int:
        return elements(node.output) * dim_at(node.input(0).shape[-1], 1)

    def overflows(self, node: Node) -> Iterator[str]:
        a, b = (minus(interval(node.input(i)), node.attrs[f"{side}_zero_point"]) for i, side in enumerate("ab"))
        yield from repeated_overflow(node.input(0).shape[-1], times(a, b))
