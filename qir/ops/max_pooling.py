"""MaxPool and GlobalMaxPool: on integers they stay on their grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TypeInferenceError, UnsupportedError
from ..lowering import Bounds, Lowering
from ..types import Array, DType, QuantParams, TensorType
from .base import REQUIRED, Op, register
from .movement import first, ints, move_all
from .windows import pool_geometry, windows

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body


def lowest(dtype: np.dtype[Any]) -> Any:
    """What padding of a maximum holds."""
    return -np.inf if dtype.kind == "f" else DType.of(dtype).lo


@register
class MaxPool(Op):
    """y = the maximum of each window; padding never wins (it holds the dtype's minimum)."""

    name = "MaxPool"
    chooses = True
    homogeneous = True
    inputs = "x"
    attrs = {
        "auto_pad": "NOTSET", "ceil_mode": 0, "dilations": None, "kernel_shape": REQUIRED, "pads": None,
        "storage_order": 0, "strides": None,
    }  # fmt: skip

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        if x.rank < 3:
            raise TypeInferenceError(f"{x} has no spatial axes")
        geometry = pool_geometry(ints(x.shape[2:]), attrs["kernel_shape"], attrs)
        return [TensorType(x.dtype, (*x.shape[:2], *geometry.out))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        kernel = attrs["kernel_shape"]
        g = pool_geometry(x.shape[2:], kernel, attrs)
        padded = np.pad(x, [(0, 0), (0, 0), *g.widths], constant_values=lowest(x.dtype))
        view = windows(padded, kernel, g.strides, g.dilations)
        cut = (slice(None), slice(None), *(slice(0, n) for n in g.out))
        return (np.asarray(view[cut].max(axis=tuple(range(-len(kernel), 0)))),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        if len(node.outputs) > 1:
            raise UnsupportedError("indices of the maxima are not supported", where=str(node))
        # explicit pads: runtimes disagree on auto_pad with dilations
        g = pool_geometry(ints(node.input(0).shape[2:]), node.attrs["kernel_shape"], node.attrs)
        pads = [a for a, _ in g.asked] + [b for _, b in g.asked]
        attrs = {**node.attrs, "auto_pad": "NOTSET", "pads": pads}

        def move(x: Value, quant: QuantParams | None, bounds: Bounds, names: Sequence[str]) -> list[Value]:
            return [low.graph.add_node("MaxPool", [x], attrs, outputs=names, quant=quant).output]

        move_all(low, node, 1, move)

    def needs_function(self, node: Node, opset: int) -> bool:
        return node.input(0).dtype.is_integer and node.input(0).dtype.bits != 8  # runtimes have 8-bit kernels only

    def function_body(self, body: Body, node: Node) -> None:
        """Pad with the minimum, then strided slices: the maximum along one axis after the other, in int32."""
        kernel = node.attrs["kernel_shape"]
        kind = body.dtype("x")
        g = pool_geometry(ints(node.input(0).shape[2:]), kernel, node.attrs)
        y = slide(body, body.cast("x", DType.INT32), "Max", kernel, g.strides, g.dilations, g.out, g.widths, kind.lo)
        body.op("Cast", y, output="y", to=body.result_type(kind))


def slide(
    body: Body, x: str, combine: str, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    out: Sequence[int], widths: Sequence[tuple[int, int]], fill: int,
) -> str:  # fmt: skip
    """A separable window function on an int32 (N, C, *spatial): padded, then strided slices combined axis by axis."""
    if any(a or b for a, b in widths):
        pads = body.int64([0, 0, *(a for a, _ in widths), 0, 0, *(b for _, b in widths)])
        x = body.op("Pad", x, pads, body.constant(np.asarray(fill, np.int32)))
    for i in reversed(range(len(kernel))):
        axis = body.int64([2 + i])
        parts: list[str] = []
        for k in range(kernel[i]):
            start = k * dilations[i]
            end = start + (out[i] - 1) * strides[i] + 1
            parts.append(body.op("Slice", x, body.int64([start]), body.int64([end]), axis, body.int64([strides[i]])))
        x = parts[0]
        for part in parts[1:]:
            x = body.op(combine, x, part)
    return x


@register
class GlobalMaxPool(Op):
    """y[n,c] = the maximum over all spatial positions; on integers a ReduceMax."""

    name = "GlobalMaxPool"
    chooses = True
    homogeneous = True
    inputs = "x"

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        if x.rank < 3:
            raise TypeInferenceError(f"{x} has no spatial axes")
        return [TensorType(x.dtype, (*x.shape[:2], *[1] * (x.rank - 2)))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        axes = np.arange(2, node.input(0).type.rank, dtype=np.int64)

        def move(x: Value, quant: QuantParams | None, bounds: Bounds, names: Sequence[str]) -> list[Value]:
            where = low.graph.add_constant(f"{names[0]}.axes", axes)
            return [low.graph.add_node("ReduceMax", [x, where], outputs=names, quant=quant).output]

        move_all(low, node, 1, move)
