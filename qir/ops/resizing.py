"""Resize: nearest as Gather, linear as integer interpolation (qir.Interpolate)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dyadic import round_half_even
from ..errors import LoweringError, TypeInferenceError
from ..lowering import Bounds, Lowering, Quantized
from ..sizes import dim_at
from ..types import Array, DType, QuantParams, TensorType
from .base import INT32_CONSTANT, INT64_CONSTANT, INTEGER, REQUIRED, Interval, Op, register
from .convolution import check_int32
from .intervals import fits, interval, joined, known_at_sizes, proved_sizes, sum_overflow
from .movement import arg, axes_of, first, ints, move_all, optional_const
from .open_axes import GIVE_SIZES
from .open_resize import OpenResize, scale_of
from .requantize import quant_of
from .resampling import by_matrix, linear_taps, nearest_index, outside, resize_matrix, resized_axes

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body

WEIGHT_BITS = 11
"""Fractional bits of a linear weight; fewer where the input is wide or several axes are interpolated."""


@register
class Resize(Op):
    """x resampled along `axes` to `sizes`, or by `scales`.

    mode: "nearest" (all nearest modes), "linear" or "cubic" (separable), the latter two antialiased or not.  All
    coordinate transformations of ONNX.  Cubic and antialiased ones are products of matrices once they are simplified.
    """

    name = "Resize"
    homogeneous = True
    inputs = "x roi? scales? sizes?"
    attrs = {
        "antialias": 0, "axes": None, "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.75,
        "exclude_outside": 0, "extrapolation_value": 0.0, "keep_aspect_ratio_policy": "stretch", "mode": "nearest",
        "nearest_mode": "round_prefer_floor",
    }  # fmt: skip
    shape_inputs = (1, 2, 3)

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        rest = [optional_const(types, consts, i, n) for i, n in ((1, "roi"), (2, "scales"), (3, "sizes"))]
        shape = list(ints(x.shape))
        for axis in resized_axes(attrs, shape, *rest):
            shape[axis.index] = axis.out
        return [TensorType(x.dtype, tuple(shape))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = y = np.asarray(inputs[0])
        beyond = np.zeros((), dtype=bool)
        for axis in resized_axes(attrs, x.shape, arg(inputs, 1), arg(inputs, 2), arg(inputs, 3)):
            along = [1] * x.ndim
            along[axis.index] = -1
            beyond = beyond | outside(attrs, axis).reshape(along)
            if attrs["mode"] == "nearest":
                y = np.take(y, nearest_index(attrs, axis), axis=axis.index)
            elif by_matrix(attrs):
                if axis.size != axis.out or axis.scale != 1:
                    y = np.moveaxis(np.moveaxis(y, axis.index, -1) @ resize_matrix(attrs, axis).T, -1, axis.index)
            elif axis.size != axis.out or axis.scale != 1 or axis.roi != (0.0, 1.0):
                low, high, weight = linear_taps(attrs, axis)
                w = weight.reshape(along).astype(y.dtype)
                y = np.take(y, low, axis=axis.index) * (1 - w) + np.take(y, high, axis=axis.index) * w
        if beyond.any():
            y = np.where(beyond, np.asarray(attrs["extrapolation_value"], y.dtype), y)
        return (np.asarray(y).astype(x.dtype, copy=False),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        x = node.input(0)
        sizes = node.optional(3)
        computed = 3 if sizes is not None and not low.is_constant(sizes) else None
        rest = [
            None if v is None or i == computed else low.real_constant(v) for i in (1, 2, 3) for v in (node.optional(i),)
        ]
        if any(isinstance(d, str) for d in x.shape[1:]):
            self._of_open_sizes(low, node, rest[1])
            return
        # the batch axis is never resized: a stand-in for its size gives it scale 1
        shape = [d if isinstance(d, int) else 1 for d in x.shape]
        if rest[2] is not None and isinstance(x.shape[0], str) and node.attrs["axes"] is None and rest[2].size:
            raise LoweringError("names the batch in its sizes", where=str(node), hint="run qir.shapes.fold_shapes")
        axes = [a for a in resized_axes(node.attrs, shape, *rest) if not isinstance(x.shape[a.index], str)]
        if any(outside(node.attrs, a).any() for a in axes):
            raise LoweringError("extrapolates beyond its input", where=str(node))
        if by_matrix(node.attrs):
            raise LoweringError("is cubic or antialiased and no product of matrices yet", where=str(node),
                                hint="run passes.Simplify")  # fmt: skip
        if node.attrs["mode"] == "nearest":
            picks = [(a.index, nearest_index(node.attrs, a), a.size) for a in axes]
            _gather(low, node, [(i, p) for i, p, size in picks if not np.array_equal(p, np.arange(size))])
        else:
            taps = [(a.index, a.size, linear_taps(node.attrs, a)) for a in axes]
            moved = [(i, t) for i, size, t in taps if t[2].any() or not np.array_equal(t[0], np.arange(size))]
            _interpolate(low, node, moved)

    def _of_open_sizes(self, low: Lowering, node: Node, scales: Array | None) -> None:
        x, y, attrs = node.input(0).shape, node.output.shape, node.attrs
        axes = list(range(len(x))) if attrs["axes"] is None else [int(a) % len(x) for a in attrs["axes"]]
        changed = [i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b]
        opened = {i: OpenResize(low, node, i, scale_of(scales, axes, i)) for i in changed if isinstance(x[i], str)}
        fixed = [
            a for a in resized_axes(attrs, [1 if isinstance(d, str) else d for d in x], None, scales, None)
            if a.index in changed and a.index not in opened
        ] if len(opened) < len(changed) else []  # fmt: skip
        if attrs["mode"] == "nearest":
            picks: list[tuple[int, Array | Value]] = [(a.index, nearest_index(attrs, a)) for a in fixed]
            _gather(low, node, picks + [(i, a.nearest(attrs["nearest_mode"])) for i, a in opened.items()])
        elif fixed:
            raise LoweringError("interpolates along open and fixed axes", where=str(node), hint=GIVE_SIZES)
        else:
            _interpolate(low, node, list(opened.items()))

    def mixes_channels(self, node: Node) -> str | None:
        return f"{node} resizes channels" if node.input(0).shape[1] != node.output.shape[1] else None


def _gather(low: Lowering, node: Node, picks: Sequence[tuple[int, Array | Value]]) -> None:
    """Nearest neighbours: one Gather for each axis that changes, its indices constant or computed from sizes."""
    if not picks:
        low.set(node.output, low.form(node.input(0)))
        return

    def move(x: Value, quant: QuantParams | None, bounds: Bounds, names: Sequence[str]) -> list[Value]:
        g, name = low.graph, names[0]
        for i, (axis, index) in enumerate(picks):
            indices = (
                g.add_constant(f"{name}.index{axis}", index.astype(np.int64))
                if isinstance(index, np.ndarray)
                else index
            )
            last = i == len(picks) - 1
            x = g.add_node(
                "Gather", [x, indices], {"axis": axis}, outputs=[name if last else f"{name}.axis{axis}"], quant=quant
            ).output
        return [x]

    move_all(low, node, 1, move)


Taps = tuple[Array, Array, Array]
"""First index, second index and weight of the second, for each output position."""


def _interpolate(low: Lowering, node: Node, taps: Sequence[tuple[int, Taps | OpenResize]]) -> None:
    """Linear: one qir.Interpolate for each axis that changes, then the scale 2^(-bits) each is the requantization's."""
    x = low.quantized(node.input(0))
    q = quant_of(x)
    if not taps:
        low.set(node.output, Quantized(x))
        return
    if q.per_channel or q.dtype.bits > 16:
        raise LoweringError(f"interpolates {q.dtype}", where=str(node), hint="insert a QuantizeLinear on its input")
    bits = min(WEIGHT_BITS, (30 - q.dtype.bits) // len(taps))
    g, name = low.graph, node.output.name
    zero = q.zero_point[0]
    for i, (axis, tap) in enumerate(taps):
        zero <<= bits
        quant = QuantParams((q.scale[0] / (1 << (bits * (i + 1))),), (zero,), DType.INT32)
        values = tap.linear(bits) if isinstance(tap, OpenResize) else _constant_taps(low, name, axis, bits, tap)
        last = i == len(taps) - 1
        x = g.add_node(
            "qir.Interpolate", [x, *values], {"axis": axis},
            outputs=[f"{name}.acc" if last else f"{name}.axis{axis}"], quant=quant,
        ).output  # fmt: skip
    low.set(node.output, Quantized(x))


def _constant_taps(low: Lowering, name: str, axis: int, bits: int, taps: Taps) -> list[Value]:
    index0, index1, weight = taps
    w1 = round_half_even(weight.astype(np.float64) * (1 << bits)).astype(np.int32)
    return [
        low.graph.add_constant(f"{name}.{what}{axis}", data)
        for what, data in (
            ("index0_", index0), ("index1_", index1), ("weight0_", np.int32(1 << bits) - w1), ("weight1_", w1),
        )
    ]  # fmt: skip


@register
class Interpolate(Op):
    """acc = x[index0] * weight0 + x[index1] * weight1 along `axis`, int32

    x: int4..int32.  index0, index1: int64 (n,), weight0, weight1: int32 (n,), weight0 + weight1 = 2^bits.  The
    lowering chooses bits so that |acc| < 2^31; the requantization that follows divides by 2^bits.
    """

    name = "qir.Interpolate"
    accumulates = True
    inputs = "x index0 index1 weight0 weight1"
    operands = {
        "x": INTEGER,
        "index0": INT64_CONSTANT,
        "index1": INT64_CONSTANT,
        "weight0": INT32_CONSTANT,
        "weight1": INT32_CONSTANT,
    }
    attrs = {"axis": REQUIRED}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        (axis,) = axes_of(attrs["axis"], x.rank)
        lengths = {ints(first(types, i).shape) for i in range(1, 5)}
        if len(lengths) != 1 or len(next(iter(lengths))) != 1:
            raise TypeInferenceError("indices and weights are vectors of one length")
        (n,) = lengths.pop()
        return [TensorType(DType.INT32, (*x.shape[:axis], n, *x.shape[axis + 1 :]))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, axis = np.asarray(inputs[0]).astype(np.int64), attrs["axis"]
        along = [1] * x.ndim
        along[axis] = -1
        parts = [
            np.take(x, np.asarray(inputs[i]), axis=axis) * np.asarray(inputs[i + 2]).astype(np.int64).reshape(along)
            for i in (1, 2)
        ]
        return (check_int32(parts[0] + parts[1]),)

    def function_body(self, body: Body, node: Node) -> None:
        axis, rank = node.attrs["axis"], body.rank("x")
        wide = body.cast("x", DType.INT32)
        shape = body.int64([-1] + [1] * (rank - 1 - axis % rank))
        parts = [
            body.op("Mul", body.op("Gather", wide, f"index{i}", axis=axis), body.op("Reshape", f"weight{i}", shape))
            for i in (0, 1)
        ]
        body.op("Add", *parts, output="y")

    def accumulator_interval(self, node: Node) -> Interval | None:
        """None where the weights follow what is fed."""
        w0, w1 = known_at_sizes(node.input(3)), known_at_sizes(node.input(4))
        if w0 is None or w1 is None:
            return None
        x = interval(node.input(0))
        reach = int((np.abs(w0.astype(np.int64)) + np.abs(w1.astype(np.int64))).max(initial=0))
        if min(w0.min(initial=0), w1.min(initial=0)) < 0:  # any signs: both ends of the widest
            return joined((0, 0), *(s * e * reach for s in (-1, 1) for e in x))
        return joined((0, 0), *(e * reach for e in x))

    def overflows(self, node: Node) -> Iterator[str]:
        dim = node.input(0).shape[node.attrs["axis"]]
        size = dim_at(dim, proved_sizes(node))
        for index in (known_at_sizes(node.input(1)), known_at_sizes(node.input(2))):
            if index is None or not fits(joined((0, 0), *index.tolist()), (0, size - 1)):
                yield f"indices along an axis of {size} are not all inside"
        yield from sum_overflow(self.accumulator_interval(node))
