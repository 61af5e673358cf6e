"""ArgMax, ArgMin and TopK: exact on integers, because quantization keeps the order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import LoweringError, TypeInferenceError
from ..lowering import Lowering, Plain, Quantized
from ..types import Array, DType, TensorType
from .base import Op, register
from .movement import axes_of, const, first, parameter
from .reductions import reduced_shape
from .requantize import quant_of

if TYPE_CHECKING:
    from ..graph import Node, Value


def ordered(low: Lowering, node: Node) -> Value:
    """The integer tensor behind the input, one scale for all of it (or the order would be lost)."""
    x = low.quantized(node.input(0))
    if quant_of(x).per_channel:
        raise LoweringError(
            "orders values of different scales", where=str(node), hint="insert a per-tensor QuantizeLinear before it"
        )
    return x


class _ArgExtremum(Op):
    """Index of an extremum along `axis`, int64; of equal ones the first (or the last: select_last_index)."""

    orders = True
    flat = True
    inputs = "x"
    attrs = {"axis": 0, "keepdims": 1, "select_last_index": 0}
    function: ClassVar[Any]

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        axes = axes_of(attrs["axis"], x.rank)
        return [TensorType(DType.INT64, reduced_shape(x.shape, axes, bool(attrs["keepdims"])))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, axis = np.asarray(inputs[0]), attrs["axis"]
        if attrs["select_last_index"]:
            index = x.shape[axis] - 1 - type(self).function(np.flip(x, axis), axis=axis)
        else:
            index = type(self).function(x, axis=axis)
        return (np.asarray(np.expand_dims(index, axis) if attrs["keepdims"] else index).astype(np.int64),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        made = low.graph.add_node(node.op, [ordered(low, node)], node.attrs, outputs=[node.output.name])
        low.set(node.output, Plain(made.output))


@register
class ArgMax(_ArgExtremum):
    """Index of the maximum along `axis`, int64; of equal ones the first (or the last: select_last_index)."""

    name = "ArgMax"
    function = np.argmax


@register
class ArgMin(_ArgExtremum):
    """Index of the minimum along `axis`, int64; of equal ones the first (or the last: select_last_index)."""

    name = "ArgMin"
    function = np.argmin


@register
class TopK(Op):
    """The k largest (or smallest) elements along `axis` and their indices, in order; of equal ones the first first."""

    name = "TopK"
    chooses = True
    inputs = "x k"
    outputs = "values indices"
    attrs = {"axis": -1, "largest": 1, "sorted": 1}
    shape_inputs = (1,)

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x, k = first(types), int(np.reshape(const(consts, 1, "k"), -1)[0])
        (axis,) = axes_of(attrs["axis"], x.rank)
        if not 0 <= k <= int(x.shape[axis]):
            raise TypeInferenceError(f"k = {k} of {x.shape[axis]} elements")
        shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
        return [TensorType(x.dtype, shape), TensorType(DType.INT64, shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, k, axis = np.asarray(inputs[0]), int(np.reshape(inputs[1], -1)[0]), attrs["axis"]
        key = x.astype(np.int64) if x.dtype.kind in "iu" else x
        order = np.argsort(-key if attrs["largest"] else key, axis=axis, kind="stable")
        index = np.take(order, np.arange(k), axis=axis)
        return (np.take_along_axis(x, index, axis=axis), index.astype(np.int64))

    def to_integer(self, low: Lowering, node: Node) -> None:
        x = ordered(low, node)
        names = [v.name for v in node.outputs]
        inputs = [x, parameter(low, node.input(1))]
        attrs = {**node.attrs, "sorted": 1}  # unsorted means any order, and then runtimes differ
        made = low.graph.add_node("TopK", inputs, attrs, outputs=names, quant=quant_of(x))
        low.set(node.outputs[0], Quantized(made.outputs[0]))
        if len(names) > 1:
            low.set(node.outputs[1], Plain(made.outputs[1]))
