"""MaxPool and GlobalMaxPool: on integers they stay on their grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LoweringError, TypeInferenceError, UnsupportedError
from ..lowering import Bounds, Lowering
from ..types import Array, Dim, DType, QuantParams, TensorType
from .base import REQUIRED, Op, register
from .movement import first, ints, move_all
from .open_axes import GIVE_SIZES, at_every_size
from .windows import PoolGeometry, pool_geometry, windows

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body


INT64_MAX = 2**63 - 1
"""An end that is that of the axis."""


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
        kernel = node.attrs["kernel_shape"]
        asked = at_every_size(
            node, node.input(0).shape[2:], lambda spatial: pool_geometry(spatial, kernel, node.attrs).asked, "its pads"
        )
        pads = [a for a, _ in asked] + [b for _, b in asked]
        attrs = {**node.attrs, "auto_pad": "NOTSET", "pads": pads}

        def move(x: Value, quant: QuantParams | None, bounds: Bounds, names: Sequence[str]) -> list[Value]:
            return [low.graph.add_node("MaxPool", [x], attrs, outputs=names, quant=quant).output]

        move_all(low, node, 1, move)

    def needs_function(self, node: Node, opset: int) -> bool:
        return node.input(0).dtype.is_integer and node.input(0).dtype.bits != 8  # runtimes have 8-bit kernels only

    def function_body(self, body: Body, node: Node) -> None:
        """Pad with the minimum, then strided slices: the maximum along one axis after the other, in int32."""
        kind = body.dtype("x")
        y = slide(body, body.cast("x", DType.INT32), "Max", node, kind.lo)
        body.op("Cast", y, output="y", to=body.result_type(kind))


def slide(body: Body, x: str, combine: str, node: Node, fill: int) -> str:
    """A separable window function on an int32 (N, C, *spatial): padded, then strided slices combined axis by axis."""
    kernel, dims = node.attrs["kernel_shape"], node.input(0).shape[2:]
    g, ends = window_ends(node, dims, kernel)
    if any(a or b for a, b in g.widths):
        pads = body.int64([0, 0, *(a for a, _ in g.widths), 0, 0, *(b for _, b in g.widths)])
        x = body.op("Pad", x, pads, body.constant(np.asarray(fill, np.int32)))
    for i in reversed(range(len(kernel))):
        axis = body.int64([2 + i])
        parts: list[str] = []
        for k in range(kernel[i]):
            start, end = k * g.dilations[i], ends[i][k]
            parts.append(body.op("Slice", x, body.int64([start]), body.int64([end]), axis, body.int64([g.strides[i]])))
        x = parts[0]
        for part in parts[1:]:
            x = body.op(combine, x, part)
    return x


def window_ends(node: Node, dims: Sequence[Dim], kernel: Sequence[int]) -> tuple[PoolGeometry, list[list[int]]]:
    """(geometry, end of each tap's strided slice on each axis); ends count from behind where a size is open."""
    if all(isinstance(d, int) for d in dims):
        g = pool_geometry(ints(dims), kernel, node.attrs)
        return g, [
            [k * d + (n - 1) * s + 1 for k in range(size)]
            for size, d, n, s in zip(kernel, g.dilations, g.out, g.strides, strict=True)
        ]
    plain = {**node.attrs, "ceil_mode": 0}
    g = at_every_size(node, dims, lambda sizes: replace(pool_geometry(sizes, kernel, plain), out=()), "its pads")
    ends: list[list[int]] = []
    widths: list[tuple[int, int]] = []
    for size, d, s, (begin, end) in zip(kernel, g.dilations, g.strides, g.asked, strict=True):
        span = (size - 1) * d + 1
        if node.attrs.get("ceil_mode"):  # a stride's room less one: floor counts what ceil does
            if s + end > span:
                raise LoweringError("its last windows follow an open size", where=str(node), hint=GIVE_SIZES)
            end += s - 1
        widths.append((begin, end))
        ends.append([-(span - 1 - k * d) or INT64_MAX for k in range(size)])
    return replace(g, widths=tuple(widths)), ends


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
