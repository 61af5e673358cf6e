"""What all data-movement operators share: they commute with quantization, so integers move as floats do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TypeInferenceError
from ..lowering import FREE, Bounds, Deferred, Fixed, Form, Lowering, Plain, Quantized
from ..types import Array, QuantParams, TensorType
from .base import Op

if TYPE_CHECKING:
    from ..graph import Node, Value

Move = Callable[["Value", QuantParams | None, "Bounds", str], "Value"]
"""(integer value, its quantization, limits in force, name) -> the moved integer value."""


def first(types: Sequence[TensorType | None], index: int = 0) -> TensorType:
    """A required input's type.  Raises TypeInferenceError where it is absent."""
    kind = types[index] if index < len(types) else None
    if kind is None:
        raise TypeInferenceError(f"input {index} is missing")
    return kind


def ints(shape: Sequence[Any]) -> tuple[int, ...]:
    """A shape inside `infer`, where every size is an int."""
    return tuple(int(d) for d in shape)


def const(consts: Sequence[Array | None], index: int, what: str) -> Array:
    """The data of an input that the shape depends on.  Raises TypeInferenceError where they are unknown."""
    data = consts[index] if index < len(consts) else None
    if data is None:
        raise TypeInferenceError(f"{what} (input {index}) must be constant or computed from shapes")
    return data


def optional_const(types: Sequence[TensorType | None], consts: Sequence[Array | None], index: int, what: str) -> Any:
    """As `const`, or None where the input is absent."""
    if index >= len(types) or types[index] is None:
        return None
    return const(consts, index, what)


def arg(inputs: Sequence[Any], index: int) -> Any:
    """An optional input of `reference`."""
    return inputs[index] if index < len(inputs) else None


def axes_of(given: Any, rank: int) -> tuple[int, ...]:
    """Axes counted from the front, sorted.  Raises TypeInferenceError where one is out of range or repeated."""
    found: list[int] = []
    for axis in np.reshape(np.asarray(given, dtype=np.int64), -1).tolist():
        if not -rank <= axis < rank:
            raise TypeInferenceError(f"axis {axis} of a tensor of rank {rank}")
        found.append(axis % rank)
    if len(set(found)) != len(found):
        raise TypeInferenceError(f"axes {found} are repeated")
    return tuple(sorted(found))


def movable(form: Form) -> bool:
    """Whether the form is an 8- or 16-bit per-tensor integer value, which moves as it is."""
    return isinstance(form, Quantized) and form.value.dtype.bits <= 16 and not form.quant.per_channel


def parameter(low: Lowering, value: Value | None) -> Value | None:
    """A shape, index or axes input of the float graph, brought into the integer graph."""
    if value is None:
        return None
    form = low.form(value)
    if isinstance(form, Plain):
        return form.value
    data = low.real_constant(value)
    return low.graph.add_constant(value.name, data.astype(value.dtype.numpy), value.dtype)


def move_all(low: Lowering, node: Node, count: int, move: Callable[..., Sequence[Value]]) -> None:
    """Record the forms of a node's `count` outputs, each a rearrangement of its first input's elements.

    move(value, quant, bounds, names) builds the moved integer values.  An 8- or 16-bit tensor moves as it is; a
    formula or an accumulator is first emitted on the grid that the output is asked for, then moved.
    """
    source = node.input(0)
    form = low.form(source)
    outputs = node.outputs[:count]
    names = [v.name for v in outputs]
    if isinstance(form, Plain):
        for out, value in zip(outputs, move(form.value, None, FREE, names), strict=True):
            low.set(out, Plain(value))
        return
    if isinstance(form, Quantized) and movable(form):
        for out, value in zip(outputs, move(form.value, form.quant, FREE, names), strict=True):
            low.set(out, Quantized(value))
        return
    done: dict[tuple[QuantParams, Bounds], Sequence[Value]] = {}

    def on_grid(index: int) -> Callable[[QuantParams, Bounds, str], Value]:
        def build(target: QuantParams, bounds: Bounds, name: str) -> Value:
            key = (target, bounds)
            if key not in done:
                done[key] = move(form.emit(low, target, bounds, source.name), target, bounds, names)
            return done[key][index]

        return build

    for i, out in enumerate(outputs):
        low.set(out, Deferred(on_grid(i)))


def fold_constant(low: Lowering, node: Node, op: Op, axis_map: Callable[[int], int | None]) -> bool:
    """A movement of a constant is done now.  Returns False where an input is no constant (a size follows the batch).

    axis_map: channel axis before -> after, None where the channels are torn apart (the integers are given up then).
    """
    form = low.form(node.input(0))
    if not isinstance(form, Fixed) or not all(v is None or low.is_constant(v) for v in node.inputs[1:]):
        return False
    rest = [None if v is None else low.real_constant(v) for v in node.inputs[1:]]
    data = op.reference(node.attrs, form.data, *rest)
    moved: Sequence[Array | None] = [None] * len(data)
    quant = form.quant
    if quant is not None and form.ints is not None:
        axis = None if quant.axis is None else axis_map(quant.axis % np.ndim(form.data))
        if quant.axis is None or axis is not None:
            moved = op.reference(node.attrs, form.ints, *rest)
            quant = QuantParams(quant.scale, quant.zero_point, quant.dtype, axis)
    for out, d, i in zip(node.outputs, data, moved, strict=False):
        low.set(out, Fixed(d, i, quant if i is not None else None))
    return True


class Movement(Op):
    """Base of the operators with one data input and one output that only rearrange elements."""

    moves = True

    def to_integer(self, low: Lowering, node: Node) -> None:
        if fold_constant(low, node, self, lambda axis: self.channel_axis(node, axis)):
            return
        rest = [parameter(low, v) for v in node.inputs[1:]]

        def move(x: Value, quant: QuantParams | None, bounds: Bounds, names: Sequence[str]) -> list[Value]:
            made = low.graph.add_node(node.op, [x, *rest], node.attrs, outputs=names, quant=quant)
            return list(made.outputs)

        move_all(low, node, 1, move)

    def channel_axis(self, node: Node, axis: int) -> int | None:
        """Where a channel axis of a constant goes; None where it does not survive."""
        return None


class ShapedMovement(Movement):
    """A movement that keeps the elements' order (Reshape and its kin); subclasses say the new shape."""

    keeps_order = True

    @abstractmethod
    def shape(self, attrs: Any, x: tuple[int, ...], target: Any) -> tuple[int, ...]:
        """The output's shape from the input's and the second input's data."""

    def infer(self, attrs: Any, types: Sequence[TensorType | None], consts: Sequence[Array | None]) -> list[TensorType]:
        x = first(types)
        target = optional_const(types, consts, 1, "the target shape or axes")
        return [TensorType(x.dtype, self.shape(attrs, ints(x.shape), target))]

    def reference(self, attrs: Any, *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        return (x.reshape(self.shape(attrs, x.shape, arg(inputs, 1))),)

    def channel_axis(self, node: Node, axis: int) -> int | None:
        old, new = node.input(0).shape, node.output.shape
        if any(isinstance(d, str) for d in (*old, *new)):
            return None
        before, size = int(np.prod(ints(old[:axis]))), old[axis]
        for i in range(len(new)):
            if int(np.prod(ints(new[:i]))) == before and new[i] == size:
                return i
        return None
