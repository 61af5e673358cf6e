"""Comparisons and boolean operators: exact on integers of one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import LoweringError
from ..lowering import FREE, Bounds, Deferred, Fixed, Lowering, Plain, Quantized
from ..types import Array, DType, QuantParams, TensorType
from .base import Op, register
from .concatenation import common_grid
from .movement import first, ints, parameter
from .shaping import plain

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body


class Logical(Op):
    """A NumPy function with broadcasting and a boolean result."""

    flat = True
    function: ClassVar[Any]

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        shapes = [ints(first(types, i).shape) for i in range(len(types))]
        return [TensorType(DType.BOOL, np.broadcast_shapes(*shapes))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.asarray(type(self).function(*inputs), dtype=bool),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        operands = [v for v in node.inputs if v is not None]
        forms = [low.form(v) for v in operands]
        if not any(isinstance(f, Quantized) for f in forms):
            plain(low, node)
            return
        grid = common_grid(forms)
        if grid is None:
            grid = next(f for f in forms if isinstance(f, Quantized)).quant
            low.note("compares tensors of different grids, after rounding them to the first one's")
        values = [f.emit(low, grid, FREE, v.name) for f, v in zip(forms, operands, strict=True)]
        low.set(node.output, Plain(low.graph.add_node(node.op, values, node.attrs, outputs=[node.output.name]).output))


@register
class Equal(Logical):
    """y = (a == b)."""

    name = "Equal"
    inputs = "a b"
    function = np.equal


@register
class Less(Logical):
    """y = (a < b)."""

    name = "Less"
    inputs = "a b"
    function = np.less


@register
class LessOrEqual(Logical):
    """y = (a <= b)."""

    name = "LessOrEqual"
    inputs = "a b"
    function = np.less_equal


@register
class Greater(Logical):
    """y = (a > b)."""

    name = "Greater"
    inputs = "a b"
    function = np.greater


@register
class GreaterOrEqual(Logical):
    """y = (a >= b)."""

    name = "GreaterOrEqual"
    inputs = "a b"
    function = np.greater_equal


@register
class IsNaN(Logical):
    """y = x is no number. No integer is that: what tests for it behind a softmax is dropped (passes.RecogniseMasks)."""

    name = "IsNaN"
    inputs = "x"
    function = np.isnan
    float_only = True

    def to_integer(self, low: Lowering, node: Node) -> None:
        raise LoweringError(
            "has no integer form", where=str(node), hint="integers are numbers: leave out the test and what it guards"
        )


@register
class Not(Logical):
    """y = not x."""

    name = "Not"
    inputs = "x"
    function = np.logical_not


@register
class And(Logical):
    """y = a and b."""

    name = "And"
    inputs = "a b"
    function = np.logical_and


@register
class Or(Logical):
    """y = a or b."""

    name = "Or"
    inputs = "a b"
    function = np.logical_or


@register
class Where(Op):
    """y = x where condition, else y; all three broadcast.  On integers both branches are on the output's grid."""

    name = "Where"
    inputs = "condition x other"

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        shapes = [ints(first(types, i).shape) for i in range(3)]
        return [TensorType(first(types, 1).dtype, np.broadcast_shapes(*shapes))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.where(inputs[0], inputs[1], inputs[2]),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        branches = [node.input(1), node.input(2)]
        forms = [low.form(v) for v in branches]
        if all(isinstance(f, (Plain, Fixed)) for f in forms) and (
            not node.output.dtype.is_float or isinstance(low.form(node.input(0)), Fixed)
        ):
            plain(low, node)
            return
        condition = parameter(low, node.input(0))

        def build(target: QuantParams, bounds: Bounds, name: str) -> Value:
            a, b = (f.emit(low, target, bounds, v.name) for f, v in zip(forms, branches, strict=True))
            return low.graph.add_node("Where", [condition, a, b], outputs=[name], quant=target).output

        low.set(node.output, Deferred(build))

    def needs_function(self, node: Node, opset: int) -> bool:
        return node.output.dtype.is_integer and node.output.dtype not in (
            DType.UINT8,
            DType.INT64,
        )  # what runtimes have

    def function_body(self, body: Body, node: Node) -> None:
        a, b = body.cast("x", DType.INT64), body.cast("other", DType.INT64)
        picked = body.op("Where", "condition", a, b)
        body.op("Cast", picked, output="y", to=body.result_type(node.output.dtype))
