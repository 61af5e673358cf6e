"""Softmax, with and without a mask, and LogSoftmax: floats; their integer form is qir.Softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LoweringError, TypeInferenceError
from ..lowering import FREE, Bounds, Deferred, Fixed, Lowering, Quantized
from ..types import Array, DType, QuantParams, TensorType
from .base import Op, register
from .integer_softmax import MAX_ELEMENTS, exp_table, reciprocal_table, wide_exp_tables
from .movement import axes_of, first, parameter
from .requantize import quant_of

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body

OUTPUT_SCALE = 2.0**-8

COARSE = 0.5
"""Steps of scores that are larger than this are worth a word: neighbours differ by a factor of exp(0.5)."""


def output_quant(dtype: DType) -> QuantParams:
    """The grid of a softmax: scale 2^-8, zero point 0 (uint8) or -128 (int8)."""
    return QuantParams((OUTPUT_SCALE,), (-128 if dtype.is_signed else 0,), dtype)


def lower_softmax(low: Lowering, node: Node, keep: Value | None = None) -> None:
    """Softmax of input 0 along `axis`; keep: a boolean of the integer graph."""
    x = low.quantized(node.input(0))
    q = quant_of(x)
    if q.per_channel or q.dtype.bits > 16:
        raise LoweringError(
            "needs an input of 8 or 16 bits", where=str(node), hint="insert a QuantizeLinear before it"
        )  # fmt: skip
    if q.scale[0] > COARSE:
        low.note(
            f"reads scores in steps of {q.scale[0]:.3g}: what lies between is lost; is there a mask on their grid?"
        )
    g = low.graph
    size = x.shape[node.attrs["axis"]]
    if not isinstance(size, str) and size >= MAX_ELEMENTS:  # an open one is checked when it is known
        raise LoweringError(f"sums {size} exponentials; fewer than 2^15 are exact", where=str(node))

    def build(target: QuantParams, bounds: Bounds, name: str) -> Value:
        dtype = target.dtype if target.dtype.bits == 8 else DType.UINT8
        natural = output_quant(dtype)
        same = natural == target and bounds == FREE
        inputs: list[Value | None]
        if q.dtype.bits > 8:
            high, low_bytes = wide_exp_tables(q.scale[0])
            inputs = [g.add_constant(f"{name}.exp", high), g.add_constant(f"{name}.reciprocal", reciprocal_table())]
            inputs += [keep, g.add_constant(f"{name}.exp_fine", low_bytes)]
        else:
            inputs = [
                g.add_constant(f"{name}.exp", exp_table(q.scale[0])),
                g.add_constant(f"{name}.reciprocal", reciprocal_table()), *([keep] if keep is not None else []),
            ]  # fmt: skip
        made = g.add_node(
            "qir.Softmax", [x, *inputs],
            {"axis": node.attrs["axis"], "zero_point": natural.zero_point[0], "dtype": str(dtype)},
            outputs=[name if same else f"{name}.softmax"], quant=natural,
        ).output  # fmt: skip
        return Quantized(made).emit(low, target, bounds, name)

    low.set(node.output, Deferred(build))


@register
class Softmax(Op):
    """y = exp(x - max(x)) / sum(exp(x - max(x))) along `axis`."""

    name = "Softmax"
    normalizes = True
    nonnegative = True
    inputs = "x"
    attrs = {"axis": -1}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        axes_of(attrs["axis"], first(types).rank)
        return [TensorType(first(types).dtype, first(types).shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        e = np.exp(x - x.max(axis=attrs["axis"], keepdims=True))
        return ((e / e.sum(axis=attrs["axis"], keepdims=True)).astype(x.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        lower_softmax(low, node)


@register
class MaskedSoftmax(Op):
    """y = softmax of what `keep` (bool, broadcasts to x) keeps along `axis`, 0 elsewhere; rows that keep nothing are 0.

    No operator of ONNX: the form that masks are recognised to (passes.RecogniseMasks). In a file it is a model-local
    function of standard operators.
    """

    name = "MaskedSoftmax"
    inputs = "x keep"
    attrs = {"axis": -1}
    normalizes = True
    nonnegative = True
    standard_since = 1 << 30

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x, keep = first(types), first(types, 1)
        axes_of(attrs["axis"], x.rank)
        shape = tuple(int(d) for d in x.shape)
        if keep.dtype is not DType.BOOL or np.broadcast_shapes(tuple(int(d) for d in keep.shape), shape) != shape:
            raise TypeInferenceError(f"mask {keep} is not boolean, or does not broadcast to {x}")
        return [TensorType(x.dtype, x.shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, keep, axis = np.asarray(inputs[0]), np.asarray(inputs[1]), attrs["axis"]
        x = np.where(keep, x, np.finfo(x.dtype).min)
        e = np.where(keep, np.exp(x - x.max(axis=axis, keepdims=True)), 0)
        total = e.sum(axis=axis, keepdims=True)
        return ((e / np.where(total > 0, total, 1)).astype(x.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        form = low.form(node.input(1))
        everything = isinstance(form, Fixed) and bool(form.data.all())
        lower_softmax(low, node, None if everything else parameter(low, node.input(1)))

    def function_body(self, body: Body, node: Node) -> None:
        """Of floats: the least number in place of what is dropped, then zeros there."""
        kind = str(body.dtype("x"))
        least, zero = (body.constant(np.asarray(v, kind)) for v in (float(np.finfo(kind).min), 0.0))
        y = body.op("Softmax", body.op("Where", "keep", "x", least), axis=node.attrs["axis"])
        body.op("Where", "keep", y, zero, output="y")


@register
class LogSoftmax(Op):
    """y = x - max(x) - log(sum(exp(x - max(x)))) along `axis`.

    No integer form: its order is that of x, and its values serve no integer consumer.
    """

    name = "LogSoftmax"
    inputs = "x"
    attrs = {"axis": -1}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        axes_of(attrs["axis"], first(types).rank)
        return [TensorType(first(types).dtype, first(types).shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        shifted = x - x.max(axis=attrs["axis"], keepdims=True)
        total = np.log(np.exp(shifted).sum(axis=attrs["axis"], keepdims=True))
        return ((shifted - total).astype(x.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        raise LoweringError(
            "has no integer form", where=str(node),
            hint="strip it when it comes last (strip_softmax: logits keep the order), or export a Softmax",
        )  # fmt: skip
