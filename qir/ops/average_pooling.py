"""AveragePool and GlobalAveragePool, and the window sum qir.SumPool that they become."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LoweringError, TypeInferenceError
from ..lowering import Bounds, Deferred, Lowering, Quantized
from ..types import Array, DType, QuantParams, TensorType
from .base import REQUIRED, SIXTEEN_BITS, Interval, Op, register
from .convolution import check_int32
from .intervals import interval, joined, sum_overflow, times
from .max_pooling import slide
from .movement import first, ints
from .open_axes import GIVE_SIZES, at_every_size
from .reductions import lower_sum_over, sum_grid
from .requantize import quant_of
from .windows import PoolGeometry, conv_output, pool_geometry, windows

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body


@register
class AveragePool(Op):
    """y = mean of each window.

    count_include_pad: padding counts as zeros; else each window is divided by the elements it really holds, so
    windows at the border have multipliers of their own  [docs/arithmetic.md 6].
    """

    name = "AveragePool"
    pools = True
    homogeneous = True
    inputs = "x"
    attrs = {
        "auto_pad": "NOTSET", "ceil_mode": 0, "count_include_pad": 0, "dilations": None, "kernel_shape": REQUIRED,
        "pads": None, "strides": None,
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
        sums = window_sums(x, kernel, g, 0)
        counts = np.maximum(g.counts(x.shape[2:], kernel, bool(attrs["count_include_pad"])), 1)
        return ((sums / counts).astype(x.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        x = low.quantized(node.input(0))
        q, attrs, kernel, name = quant_of(x), node.attrs, list(node.attrs["kernel_shape"]), node.output.name
        taps = int(np.prod(kernel))

        def find(spatial: list[int]) -> tuple[PoolGeometry, Array]:
            g = pool_geometry(spatial, kernel, attrs)
            return g, g.counts(spatial, kernel, bool(attrs["count_include_pad"]))

        def of_any_size(spatial: list[int]) -> tuple[PoolGeometry, set[int]]:
            g, counts = find(spatial)
            return replace(g, out=()), {int(c) for c in counts.flat}

        dims = node.input(0).shape[2:]
        if all(isinstance(d, int) for d in dims):
            g, counts = find([int(d) for d in dims])
        else:
            g, kinds = at_every_size(node, dims, of_any_size, "its pads")
            if len(kinds) > 1:
                raise LoweringError("divides by fewer at the edges, and its size is open", where=str(node),
                                    hint=f"export it with count_include_pad=1, or {GIVE_SIZES}")  # fmt: skip
            counts = np.asarray(list(kinds))
        scaled = sum_grid(x, taps, int(counts.flat[0]), str(node))
        uniform = bool((counts == counts.flat[0]).all())
        acc = low.graph.add_node(
            "qir.SumPool", [x],
            {
                "kernel_shape": kernel, "strides": list(g.strides), "dilations": list(g.dilations),
                "pads": [a for a, _ in g.widths] + [b for _, b in g.widths], "pad_value": q.zero_point[0],
            },
            outputs=[f"{name}.acc"], quant=scaled if uniform else None,
        ).output  # fmt: skip
        if uniform:
            low.set(node.output, Quantized(acc))
            return

        def build(target: QuantParams, bounds: Bounds, name: str) -> Value:
            ratio = q.scale[0] / (target.scale[0] * counts.astype(np.float64))
            return low.rescale(acc, ratio, target, bounds, name, q.zero_point[0] * taps)

        low.set(node.output, Deferred(build))


def window_sums(x: Array, kernel: Sequence[int], g: PoolGeometry, fill: int) -> Array:
    """Sum of each window in float64 (exact for integers)."""
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *g.widths], constant_values=fill)
    view = windows(padded, kernel, g.strides, g.dilations)
    cut = (slice(None), slice(None), *(slice(0, n) for n in g.out))
    return np.asarray(view[cut].sum(axis=tuple(range(-len(kernel), 0))))


@register
class SumPool(Op):
    """acc = sum of each window of x, padding holding pad_value; int32        [docs/arithmetic.md 6]

    x: int4..int16 (N, C, *spatial).  The zero point is folded by the requantization that follows.
    """

    name = "qir.SumPool"
    accumulates = True
    inputs = "x"
    operands = {"x": SIXTEEN_BITS}
    attrs = {
        "kernel_shape": REQUIRED, "strides": REQUIRED, "pads": REQUIRED, "dilations": REQUIRED, "pad_value": REQUIRED,
    }  # fmt: skip

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        if not isinstance(attrs["pad_value"], int):
            raise TypeInferenceError(f"pad_value {attrs['pad_value']} is not one number")
        shape = conv_output(ints(x.shape), (1, 1, *attrs["kernel_shape"]), {**attrs, "auto_pad": "NOTSET"})
        return [TensorType(DType.INT32, (*x.shape[:2], *shape[2:]))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        g = pool_geometry(x.shape[2:], attrs["kernel_shape"], attrs)
        sums = window_sums(x, attrs["kernel_shape"], g, attrs["pad_value"])
        return (check_int32(sums.astype(np.int64)),)

    def function_body(self, body: Body, node: Node) -> None:
        attrs, x = node.attrs, body.cast("x", DType.INT32)
        spatial = node.input(0).shape[2:]
        if tuple(attrs["kernel_shape"]) == spatial and not any(attrs["pads"]) and set(attrs["dilations"]) == {1}:
            axes = body.int64(list(range(2, 2 + len(spatial))))
            body.op("ReduceSum", x, axes, keepdims=1, output="y")
            return
        y = slide(body, x, "Add", node, attrs["pad_value"])
        body.op("Identity", y, output="y")

    def accumulator_interval(self, node: Node) -> Interval | None:
        x = joined(interval(node.input(0)), int(node.attrs["pad_value"]))
        taps = math.prod(int(k) for k in node.attrs["kernel_shape"])
        return times(x, (taps, taps))

    def overflows(self, node: Node) -> Iterator[str]:
        yield from sum_overflow(self.accumulator_interval(node))


@register
class GlobalAveragePool(Op):
    """y[n,c] = mean over all spatial positions."""

    name = "GlobalAveragePool"
    pools = True
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
        mean = x.mean(axis=tuple(range(2, x.ndim)), keepdims=True, dtype=np.float64)
        return (mean.astype(x.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        lower_sum_over(low, node, tuple(range(2, node.input(0).type.rank)), keepdims=True, mean=True)
