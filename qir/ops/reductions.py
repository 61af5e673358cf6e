"""Reductions along axes: ReduceMean and ReduceSum become an integer sum, ReduceMax and ReduceMin stay on their grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import LoweringError, OverflowProofError
from ..lowering import Bounds, Fixed, Lowering, Plain, Quantized
from ..types import Array, DType, QuantParams, TensorType
from .base import REQUIRED, SIXTEEN_BITS, Interval, Op, register
from .convolution import check_int32
from .intervals import interval, longest, sum_overflow, times
from .movement import arg, axes_of, first, ints, move_all, optional_const
from .open_mean import lower_open_sum
from .requantize import quant_of
from .shaping import plain

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body


def reduced_axes(attrs: Mapping[str, Any], rank: int, axes: Any) -> tuple[int, ...]:
    """The axes that are reduced: all of them where none are named, unless noop_with_empty_axes."""
    if axes is None or np.size(axes) == 0:
        return () if attrs["noop_with_empty_axes"] else tuple(range(rank))
    return axes_of(axes, rank)


def reduced_shape(shape: Sequence[Any], axes: Sequence[int], keepdims: bool) -> tuple[Any, ...]:
    return tuple(1 if i in axes else d for i, d in enumerate(shape) if keepdims or i not in axes)


class _Reduce(Op):
    """A NumPy reduction; subclasses say which, and how it leaves the float world."""

    inputs = "x axes?"
    attrs = {"keepdims": 1, "noop_with_empty_axes": 0}
    shape_inputs = (1,)
    function: ClassVar[Any]

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        axes = reduced_axes(attrs, x.rank, optional_const(types, consts, 1, "axes"))
        return [TensorType(x.dtype, reduced_shape(x.shape, axes, bool(attrs["keepdims"])))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        axes = reduced_axes(attrs, x.ndim, arg(inputs, 1))
        y = type(self).function(x, axis=axes, keepdims=bool(attrs["keepdims"])) if axes else x
        return (np.asarray(y).astype(x.dtype, copy=False),)

    def axes(self, low: Lowering, node: Node) -> tuple[int, ...]:
        """The reduced axes of a node being lowered.  Raises LoweringError where they are no constant."""
        given = node.optional(1)
        data = None if given is None else low.real_constant(given)
        return reduced_axes(node.attrs, node.input(0).type.rank, data)

    def mixes_channels(self, node: Node) -> str | None:
        axes, rank = node.optional(1), node.input(0).type.rank
        if axes is None or axes.data is None or any(int(a) % rank < 2 for a in axes.data.reshape(-1)):
            return f"{node} mixes channels"
        return None


class _ReduceExtremum(_Reduce):
    """Monotone, so it stays on its grid."""

    chooses = True

    def to_integer(self, low: Lowering, node: Node) -> None:
        if isinstance(low.form(node.input(0)), (Fixed, Plain)):
            plain(low, node)
            return
        axes = np.asarray(self.axes(low, node), dtype=np.int64)

        def move(x: Value, quant: QuantParams | None, bounds: Bounds, names: Sequence[str]) -> list[Value]:
            where = low.graph.add_constant(f"{names[0]}.axes", axes)
            attrs = {"keepdims": node.attrs["keepdims"], "noop_with_empty_axes": 1}
            return [low.graph.add_node(node.op, [x, where], attrs, outputs=names, quant=quant).output]

        move_all(low, node, 1, move)


@register
class ReduceMax(_ReduceExtremum):
    """y = maximum over the axes."""

    name = "ReduceMax"
    homogeneous = True
    function = np.max


@register
class ReduceMin(_ReduceExtremum):
    """y = minimum over the axes."""

    name = "ReduceMin"
    function = np.min


@register
class ReduceProd(_Reduce):
    """y = product over the axes (of shapes; reals have no integer form)."""

    name = "ReduceProd"
    function = np.prod

    def to_integer(self, low: Lowering, node: Node) -> None:
        plain(low, node)


def _float64(function: Any) -> Any:
    """A NumPy reduction that sums floats in float64."""

    def run(x: Array, axis: Any, keepdims: bool) -> Array:
        return function(x, axis=axis, keepdims=keepdims, dtype=np.float64 if x.dtype.kind == "f" else x.dtype)

    return staticmethod(run)


@register
class ReduceSum(_Reduce):
    """y = sum over the axes."""

    name = "ReduceSum"
    pools = True
    homogeneous = True
    function = _float64(np.sum)

    def to_integer(self, low: Lowering, node: Node) -> None:
        _lower(low, node, self.axes(low, node), mean=False)


@register
class ReduceL2(_Reduce):
    """y = sqrt(sum of x^2 over the axes)."""

    name = "ReduceL2"
    homogeneous = True
    nonnegative = True
    function = staticmethod(lambda x, axis, keepdims: np.sqrt((x.astype(np.float64) ** 2).sum(axis, keepdims=keepdims)))

    def to_integer(self, low: Lowering, node: Node) -> None:
        raise LoweringError(
            "has no integer form by itself", where=str(node),
            hint="an L2 normalization x / ||x|| is recognised; a norm alone is not",
        )  # fmt: skip


@register
class ReduceMean(_Reduce):
    """y = mean over the axes."""

    name = "ReduceMean"
    pools = True
    homogeneous = True
    function = _float64(np.mean)

    def to_integer(self, low: Lowering, node: Node) -> None:
        _lower(low, node, self.axes(low, node), mean=True)


def _lower(low: Lowering, node: Node, axes: tuple[int, ...], mean: bool) -> None:
    form = low.form(node.input(0))
    if isinstance(form, (Fixed, Plain)):
        plain(low, node)
    elif not axes:
        low.set(node.output, form)
    else:
        lower_sum_over(low, node, axes, keepdims=bool(node.attrs["keepdims"]), mean=mean)


def lower_sum_over(low: Lowering, node: Node, axes: tuple[int, ...], *, keepdims: bool, mean: bool) -> None:
    """The output as an int32 sum; a mean has scale s_x / count, and z_x * count is folded [docs/arithmetic.md 6]."""
    x = low.quantized(node.input(0))
    sizes = [x.shape[a] for a in axes]
    if any(isinstance(d, str) for d in sizes):
        low.set(node.output, lower_open_sum(low, node, axes, keepdims=keepdims, mean=mean))
        return
    count = int(np.prod(ints(sizes), dtype=np.int64))
    quant = sum_grid(x, count, count if mean else 1, str(node))
    acc = low.graph.add_node(
        "qir.ReduceSum", [x], {"axes": list(axes), "keepdims": int(keepdims)}, outputs=[f"{node.output.name}.acc"],
        quant=quant,
    ).output  # fmt: skip
    low.set(node.output, Quantized(acc))


def sum_grid(x: Value, taps: int, count: int, where: str) -> QuantParams:
    """Quantization of a sum of `taps` elements that stands for their sum over `count`: scale / count, z * taps.

    Raises OverflowProofError where the sum, or its distance from the zero point, could leave int32.
    """
    q = quant_of(x)
    reach = max(abs(q.dtype.lo), abs(q.dtype.hi), q.dtype.hi - q.dtype.lo)
    if taps * reach >= 2**31 or q.per_channel:
        raise OverflowProofError(
            f"a sum of {taps} {q.dtype} elements does not fit int32", where=where,
            hint="quantize its input to fewer bits, per tensor",
        )  # fmt: skip
    return QuantParams((q.scale[0] / count,), (q.zero_point[0] * taps,), DType.INT32)


@register
class IntegerReduceSum(Op):
    """acc = sum of x over the axes, int32        [docs/arithmetic.md 6]

    x: int4..int16.  The zero point is folded by the requantization that follows.
    """

    name = "qir.ReduceSum"
    accumulates = True
    inputs = "x"
    operands = {"x": SIXTEEN_BITS}
    attrs = {"axes": REQUIRED, "keepdims": 1}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        axes = axes_of(attrs["axes"], x.rank)
        return [TensorType(DType.INT32, reduced_shape(x.shape, axes, bool(attrs["keepdims"])))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        return (
            check_int32(x.sum(axis=axes_of(attrs["axes"], x.ndim), keepdims=bool(attrs["keepdims"]), dtype=np.int64)),
        )

    def function_body(self, body: Body, node: Node) -> None:
        axes = body.int64(node.attrs["axes"])
        body.op("ReduceSum", body.cast("x", DType.INT32), axes, keepdims=node.attrs["keepdims"], output="y")

    def accumulator_interval(self, node: Node) -> Interval | None:
        """None where the number of summands follows the batch."""
        value = node.input(0)
        sizes = [value.shape[int(a)] for a in node.attrs["axes"]]
        count = longest(*sizes)
        return None if count is None else times(interval(value), (count, count))

    def overflows(self, node: Node) -> Iterator[str]:
        yield from sum_overflow(self.accumulator_interval(node))
