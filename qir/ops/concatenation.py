"""Concat: all branches on the output's grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LoweringError, TypeInferenceError
from ..lowering import FREE, Bounds, Deferred, Fixed, Form, Lowering, Plain, Quantized
from ..types import Array, QuantParams, TensorType
from .base import REQUIRED, Op, register
from .movement import axes_of, first, ints, movable, parameter

if TYPE_CHECKING:
    from ..graph import Node, Value


@register
class Concat(Op):
    """The inputs one after the other along `axis`.

    On integers every branch is brought to the output's scale and zero point, by its own requantization where it
    has one  [HAWQ-V3 eq. 10, docs/arithmetic.md 5].
    """

    name = "Concat"
    inputs = "xs*"
    attrs = {"axis": REQUIRED}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        head = first(types)
        (axis,) = axes_of(attrs["axis"], head.rank)
        total = 0
        for i in range(len(types)):
            x = first(types, i)
            if x.dtype is not head.dtype or _without(x.shape, axis) != _without(head.shape, axis):
                raise TypeInferenceError(f"{x} does not continue {head} along axis {axis}")
            total += ints(x.shape)[axis]
        return [TensorType(head.dtype, (*head.shape[:axis], total, *head.shape[axis + 1 :]))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.concatenate(inputs, axis=attrs["axis"]),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        values = [node.input(i) for i in range(len(node.inputs))]
        forms = [low.form(v) for v in values]
        g = low.graph
        if all(isinstance(f, Fixed) for f in forms):
            low.set(node.output, Fixed(np.concatenate([low.real_constant(v) for v in values], node.attrs["axis"])))
            return
        if any(isinstance(f, Plain) for f in forms):
            if not all(isinstance(f, (Plain, Fixed)) for f in forms):
                raise LoweringError("joins plain integers with reals", where=str(node))
            made = g.add_node("Concat", [parameter(low, v) for v in values], node.attrs, outputs=[node.output.name])
            low.set(node.output, Plain(made.output))
            return

        def build(target: QuantParams, bounds: Bounds, name: str) -> Value:
            branches = [f.emit(low, target, bounds, v.name) for f, v in zip(forms, values, strict=True)]
            return g.add_node("Concat", branches, node.attrs, outputs=[node.output.name], quant=target).output

        shared = common_grid(forms)
        if shared is not None:
            low.set(node.output, Quantized(build(shared, FREE, node.output.name)))
        else:
            low.set(node.output, Deferred(build))


def _without(shape: Sequence[Any], axis: int) -> tuple[Any, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def common_grid(forms: Sequence[Form]) -> QuantParams | None:
    """The grid that all forms are on already, or None; a constant is on any grid that holds it."""
    constants = [f for f in forms if isinstance(f, Fixed) and f.quant is None]
    others = [f for f in forms if not any(f is c for c in constants)]
    grids = {f.quant if isinstance(f, Quantized) and movable(f) else None for f in others}
    grid = grids.pop() if len(grids) == 1 else None
    if grid is None or not constants:
        return grid
    ends = grid.dequantize(np.asarray([grid.dtype.lo, grid.dtype.hi]))
    reach = [float(end(f.data)) for f in constants if f.data.size for end in (np.min, np.max)]
    step = grid.scale[0] / 2
    return grid if all(ends[0] - step <= v <= ends[1] + step for v in reach) else None
