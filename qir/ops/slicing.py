"""Slice, Split and Gather: parts of a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TypeInferenceError
from ..lowering import Bounds, Lowering
from ..types import Array, QuantParams, TensorType
from .base import Op, register
from .movement import Movement, arg, axes_of, const, first, fold_constant, ints, move_all, optional_const, parameter

if TYPE_CHECKING:
    from ..graph import Node, Value


def resolve_slice(shape: Sequence[int], starts: Any, ends: Any, axes: Any, steps: Any) -> tuple[slice, ...]:
    """Python slices for the ONNX rules: negative bounds count from the end, bounds beyond the axis are clamped."""
    first_, last = (np.reshape(v, -1).tolist() for v in (starts, ends))
    where = list(range(len(first_))) if axes is None else [int(a) for a in np.reshape(axes, -1)]
    stride = [1] * len(first_) if steps is None else [int(s) for s in np.reshape(steps, -1)]
    if not len(first_) == len(last) == len(where) == len(stride):
        raise TypeInferenceError("starts, ends, axes and steps differ in length")
    axes_of(where, len(shape))
    cuts = [slice(None)] * len(shape)
    for start, end, axis, step in zip(first_, last, where, stride, strict=True):
        size = shape[axis]
        if step == 0:
            raise TypeInferenceError("a step is 0")
        low, high = (0, size) if step > 0 else (-1, size - 1)
        begin = min(max(start + size if start < 0 else start, max(low, 0)), high)
        stop = min(max(end + size if end < 0 else end, low), high)
        cuts[axis] = slice(max(begin, 0), None if stop < 0 else stop, step)
        if step < 0 and begin < 0:
            cuts[axis] = slice(0, 0)
    return tuple(cuts)


@register
class Slice(Movement):
    """y = x[start:end:step] along each of `axes`."""

    name = "Slice"
    inputs = "x starts ends axes? steps?"
    shape_inputs = (1, 2, 3, 4)

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        bounds = [const(consts, 1, "starts"), const(consts, 2, "ends")]
        rest = [optional_const(types, consts, i, n) for i, n in ((3, "axes"), (4, "steps"))]
        cuts = resolve_slice(ints(x.shape), *bounds, *rest)
        sizes = [len(range(*c.indices(d))) for c, d in zip(cuts, ints(x.shape), strict=True)]
        return [TensorType(x.dtype, tuple(sizes))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        cuts = resolve_slice(x.shape, inputs[1], inputs[2], arg(inputs, 3), arg(inputs, 4))
        return (np.ascontiguousarray(x[cuts]),)


def split_sizes(attrs: Mapping[str, Any], size: int, split: Any) -> list[int]:
    """Sizes of the parts: given, or `num_outputs` equal ones with a smaller last."""
    if split is not None:
        parts = [int(p) for p in np.reshape(split, -1)]
    else:
        count = attrs["num_outputs"]
        if count is None or count < 1:
            raise TypeInferenceError("neither split sizes nor num_outputs given")
        chunk = -(-size // count)
        parts = [chunk] * (count - 1) + [size - chunk * (count - 1)]
    if any(p < 0 for p in parts) or sum(parts) != size:
        raise TypeInferenceError(f"parts {parts} of an axis of {size}")
    return parts


@register
class Split(Op):
    """x cut along `axis` into parts of the sizes `split`, or into `num_outputs` equal parts."""

    name = "Split"
    moves = True
    inputs = "x split?"
    outputs = "y*"
    attrs = {"axis": 0, "num_outputs": None}
    shape_inputs = (1,)

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        (axis,) = axes_of(attrs["axis"], x.rank)
        parts = split_sizes(attrs, int(x.shape[axis]), optional_const(types, consts, 1, "split"))
        return [TensorType(x.dtype, (*x.shape[:axis], p, *x.shape[axis + 1 :])) for p in parts]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        parts = split_sizes(attrs, x.shape[attrs["axis"]], arg(inputs, 1))
        ends = np.cumsum(parts)[:-1]
        return tuple(np.ascontiguousarray(p) for p in np.split(x, ends, axis=attrs["axis"]))

    def to_integer(self, low: Lowering, node: Node) -> None:
        axis = node.attrs["axis"] % node.input(0).type.rank
        if fold_constant(low, node, self, lambda channel: None if channel == axis else channel):
            return
        rest = [parameter(low, v) for v in node.inputs[1:]]

        def move(x: Value, quant: QuantParams | None, bounds: Bounds, names: Sequence[str]) -> list[Value]:
            shapes = [v.shape for v in node.outputs]
            made = low.graph.add_node("Split", [x, *rest], node.attrs, outputs=names)
            for value, shape in zip(made.outputs, shapes, strict=True):
                value.type = TensorType(x.dtype, shape, quant)
            return list(made.outputs)

        move_all(low, node, len(node.outputs), move)


@register
class Gather(Movement):
    """y = x taken at `indices` along `axis`; negative indices count from the end."""

    name = "Gather"
    inputs = "x indices"
    attrs = {"axis": 0}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x, indices = first(types), first(types, 1)
        (axis,) = axes_of(attrs["axis"], x.rank)
        data, size = consts[1], int(x.shape[axis])
        if data is not None and data.size and not (-size <= data.min() and data.max() < size):
            raise TypeInferenceError(f"indices {data.min()}..{data.max()} of an axis of {size}")
        return [TensorType(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.asarray(np.take(inputs[0], np.asarray(inputs[1]), axis=attrs["axis"])),)

    def channel_axis(self, node: Node, axis: int) -> int | None:
        along, rank = node.attrs["axis"] % node.input(0).type.rank, node.input(1).type.rank
        return None if axis == along else axis if axis < along else axis + rank - 1
