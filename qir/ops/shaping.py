"""Operators of shape subgraphs: what they compute is folded to constants before anything is quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LoweringError, TypeInferenceError
from ..lowering import Fixed, Lowering, Plain, Quantized, Real
from ..types import Array, DType, QuantParams, TensorType
from .base import REQUIRED, Op, op_of, register
from .movement import const, first, ints, parameter
from .open_axes import GIVE_SIZES

if TYPE_CHECKING:
    from ..graph import Node


@register
class Shape(Op):
    """y = x.shape[start:end], int64."""

    name = "Shape"
    flat = True
    inputs = "x"
    attrs = {"start": 0, "end": None}
    reads_shape_only = True

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        return [TensorType(DType.INT64, (len(first(types).shape[attrs["start"] : attrs["end"]]),))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.asarray(np.shape(inputs[0])[attrs["start"] : attrs["end"]], dtype=np.int64),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        read_shape(low, node)


@register
class Size(Op):
    """y = number of elements of x, int64 scalar."""

    name = "Size"
    flat = True
    inputs = "x"
    reads_shape_only = True

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        return [TensorType(DType.INT64, ())]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.asarray(np.size(inputs[0]), dtype=np.int64),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        read_shape(low, node)


def read_shape(low: Lowering, node: Node) -> None:
    """Shape or Size of the integer tensor behind the input.  Raises LoweringError where there is none yet."""
    form = low.form(node.input(0))
    if not isinstance(form, (Quantized, Plain, Real)):
        raise LoweringError("shape of a value without a grid", where=str(node), hint="insert a QuantizeLinear on it")
    made = low.graph.add_node(node.op, [form.value], node.attrs, outputs=[node.output.name])
    low.set(node.output, Plain(made.output))


@register
class ConstantOfShape(Op):
    """y = a tensor of the given shape, filled with `value` (one element; default float32 0)."""

    name = "ConstantOfShape"
    flat = True
    inputs = "shape"
    attrs = {"value": None}
    shape_inputs = (0,)

    @staticmethod
    def fill(attrs: Mapping[str, Any]) -> Array:
        value = attrs["value"]
        return np.zeros((), np.float32) if value is None else np.reshape(np.asarray(value), -1)[0]

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        shape = tuple(int(d) for d in np.reshape(const(consts, 0, "the shape"), -1))
        if any(d < 0 for d in shape):
            raise TypeInferenceError(f"{list(shape)} is no shape")
        return [TensorType(DType.of(self.fill(attrs).dtype), shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        value = self.fill(attrs)
        return (np.full(ints(np.reshape(inputs[0], -1).tolist()), value, dtype=value.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        plain(low, node)


@register
class Range(Op):
    """y = start, start + delta, ... while before limit."""

    name = "Range"
    flat = True
    inputs = "start limit delta"
    shape_inputs = (0, 1, 2)

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        start, limit, delta = (np.reshape(const(consts, i, "a bound"), ()).item() for i in range(3))
        if delta == 0:
            raise TypeInferenceError("delta is 0")
        count = max(int(np.ceil((limit - start) / delta)), 0)
        return [TensorType(first(types).dtype, (count,))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        start, limit, delta = (np.reshape(v, ()).item() for v in inputs)
        count = max(int(np.ceil((limit - start) / delta)), 0)
        kind = np.asarray(inputs[0]).dtype
        return ((start + np.arange(count) * delta).astype(kind),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        plain(low, node)


@register
class Cast(Op):
    """y = x as the dtype `to` (toward zero from float to integer).

    Between float types it is the identity on integers; integers and booleans cast to float are integers of scale 1.
    """

    name = "Cast"
    flat = True
    inputs = "x"
    attrs = {"to": REQUIRED, "saturate": 1}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        return [TensorType(DType(attrs["to"]), first(types).shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.asarray(inputs[0]).astype(DType(attrs["to"]).numpy),)

    def to_integer(self, low: Lowering, node: Node) -> None:

        form, to = low.form(node.input(0)), DType(node.attrs["to"])
        if isinstance(form, Fixed):
            low.set(
                node.output,
                Fixed(self.reference(node.attrs, form.data)[0].astype(np.float64 if to.is_float else to.numpy)),
            )
        elif not isinstance(form, Plain):
            if not (to.is_float and node.input(0).dtype.is_float):
                raise LoweringError("casts quantized reals to integers", where=str(node))
            low.set(node.output, form)
        elif not to.is_float:
            low.set(
                node.output,
                Plain(low.graph.add_node("Cast", [form.value], {"to": str(to)}, outputs=[node.output.name]).output),
            )
        else:  # beyond int32 there is no real number that a grid of activations holds
            kind = {DType.BOOL: DType.UINT8}.get(form.value.dtype, form.value.dtype)
            kind = kind if kind in (DType.UINT8, DType.INT8, DType.INT16) else DType.INT32
            quant = QuantParams((1.0,), (0,), kind)
            made = low.graph.add_node("Cast", [form.value], {"to": str(kind)}, outputs=[node.output.name], quant=quant)
            low.set(node.output, Quantized(made.output))


def plain(low: Lowering, node: Node) -> None:
    """The same operator on plain integers in the integer graph, or done now where all inputs are constants."""
    forms = [low.form(v) for v in node.inputs if v is not None]
    if all(isinstance(f, Fixed) for f in forms):
        args = [None if v is None else low.real_constant(v).astype(v.dtype.numpy) for v in node.inputs]
        data = op_of(node.op).reference(node.attrs, *args)[0]
        low.set(node.output, Fixed(data.astype(np.float64) if node.output.dtype.is_float else data))
        return
    if node.output.dtype.is_float:
        raise LoweringError("computes reals at run time and has no integer form", where=str(node), hint=GIVE_SIZES)
    for value, form in zip((v for v in node.inputs if v is not None), forms, strict=True):
        if not isinstance(form, (Fixed, Plain)):
            raise LoweringError(f"input {value.name!r} holds reals", where=str(node))
    made = low.graph.add_node(node.op, [parameter(low, v) for v in node.inputs], node.attrs, outputs=[node.output.name])
    low.set(node.output, Plain(made.output))
