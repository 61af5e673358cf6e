"""Layer, RMS, instance, group and L2 normalization on their way to qir.Normalize."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LoweringError, TypeInferenceError
from ..lowering import Bounds, Deferred, Lowering
from ..types import Array, QuantParams, TensorType
from .base import REQUIRED, Op, register
from .movement import arg, axes_of, first
from .normalize import grid_limits, inverse_root_table, normalize_constants
from .requantize import quant_of

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body

Reals = NDArray[np.float64]


def rows_of(axis: int) -> list[int]:
    """Reshape's argument that joins all axes from `axis` on; leading sizes are copied, whatever they are."""
    return [0] * axis + [-1]


def lower_normalize(
    low: Lowering, node: Node, gamma: Reals, beta: Reals, *, centre: bool, rows: Sequence[int] | None = None
) -> None:
    """Record gamma (x - mean) / sqrt(variance + epsilon) + beta as the form of the node's output.

    rows: the shape of x in which a row is the last axis (Reshape's argument), where it is another; gamma and beta
    broadcast against that.
    Raises LoweringError: x is not quantized with one scale to at most 16 bits, or the proof of no overflow fails.
    """
    g, x = low.graph, low.quantized(node.input(0))
    q = quant_of(x)
    if q.per_channel or q.dtype.bits > 16:
        raise LoweringError(
            f"{x.name!r} is {x.type}; it is normalized from 8 or 16 bits with one scale", where=str(node),
            hint="insert a QuantizeLinear/DequantizeLinear pair before it (passes.InsertQdq does)",
        )  # fmt: skip
    if any(v.use_count or v.is_output for v in node.outputs[1:]):
        raise LoweringError("its mean or deviation is used, which has no integer form", where=str(node))

    def build(target: QuantParams, bounds: Bounds, name: str) -> Value:
        flat = x
        if rows is not None:
            shape = g.add_constant(f"{name}.rows", np.asarray(rows, np.int64))
            flat = g.add_node("Reshape", [x, shape], outputs=[f"{name}.x"], quant=q).output
        n = flat.shape[-1]
        if not isinstance(n, int):
            raise LoweringError(f"normalizes {n} elements; the size of a row must be fixed", where=str(node))
        epsilon = float(node.attrs.get("epsilon", 0.0))
        if target.per_channel:
            raise LoweringError("activations are quantized per tensor", where=str(node))
        c = normalize_constants(q, n, centre, gamma, beta, epsilon, target, str(node))
        table = low.shared("normalize.table", inverse_root_table())
        y = g.add_node(
            "qir.Normalize",
            [
                flat, g.add_constant(f"{name}.multiplier", c.multiplier_i32),
                g.add_constant(f"{name}.offset", c.offset_i64), table,
            ],
            {
                "centre": int(centre), "x_zero_point": q.zero_point[0], "extra": c.extra, "noise": c.noise,
                "shift": c.shift, **grid_limits(target, bounds),
            },
            outputs=[name if rows is None else f"{name}.y"], quant=target,
        ).output  # fmt: skip
        if rows is None:
            return y
        back = [d if isinstance(d, int) and i else 0 for i, d in enumerate(node.output.shape)]
        shape = g.add_constant(f"{name}.shape", np.asarray(back, np.int64))
        return g.add_node("Reshape", [y, shape], outputs=[name], quant=target).output

    low.set(node.output, Deferred(build))


def _constants(low: Lowering, node: Node, bias: int | None) -> tuple[Reals, Reals]:
    """gamma and beta (0 where absent).  Raises LoweringError where they are no constants."""
    gamma = low.real_constant(node.input(1)).astype(np.float64)
    value = node.optional(bias) if bias is not None else None
    beta = np.zeros(1) if value is None else low.real_constant(value).astype(np.float64)
    return gamma, beta


def _statistics(x: Array, axes: tuple[int, ...], centre: bool) -> tuple[Array, Array]:
    """(x - mean, variance) along axes; float32 sums are done in float64."""
    wide = x.astype(np.float64)
    d = wide - wide.mean(axis=axes, keepdims=True) if centre else wide
    return d, (d * d).mean(axis=axes, keepdims=True)


def _normalized(x: Array, axes: tuple[int, ...], centre: bool, epsilon: float) -> Array:
    d, variance = _statistics(x, axes, centre)
    with np.errstate(divide="ignore", invalid="ignore"):
        return d / np.sqrt(variance + epsilon)


class _RowNormalization(Op):
    """Normalization of the axes from `axis` on, gamma (and beta) along them."""

    attrs = {"axis": -1, "epsilon": 1e-5, "stash_type": 1}
    normalizes = True
    centre = True

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        (axis,) = axes_of(attrs["axis"], x.rank)
        tail = tuple(x.shape[axis:])
        for kind in types[1:]:
            if kind is not None and np.broadcast_shapes(tail, tuple(kind.shape)) != tail:  # type: ignore[arg-type]
                raise TypeInferenceError(f"scale or bias {kind} does not broadcast to the normalized sizes {tail}")
        reduced = (*x.shape[:axis], *[1] * (x.rank - axis))
        return [TensorType(x.dtype, x.shape), *[TensorType(x.dtype, reduced)] * (len(self.outputs.split()) - 1)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, gamma, beta = np.asarray(inputs[0]), inputs[1], arg(inputs, 2)
        axes = tuple(range(attrs["axis"] % x.ndim, x.ndim))
        d, variance = _statistics(x, axes, self.centre)
        deviation = np.sqrt(variance + attrs["epsilon"])
        with np.errstate(divide="ignore", invalid="ignore"):
            y = d / deviation * gamma
        y = (y if beta is None else y + beta).astype(x.dtype)
        if not self.centre:
            return (y,)
        mean = x.astype(np.float64).mean(axis=axes, keepdims=True)
        return y, mean.astype(x.dtype), (1 / deviation).astype(x.dtype)

    def to_integer(self, low: Lowering, node: Node) -> None:
        rank = node.input(0).type.rank
        axis = node.attrs["axis"] % rank
        gamma, beta = _constants(low, node, 2 if self.centre else None)
        tail = node.input(0).shape[axis:]
        if any(isinstance(d, str) for d in tail):
            raise LoweringError(f"normalizes {tail}; the size of a row must be fixed", where=str(node))
        gamma, beta = (
            v if v.size == 1 else np.broadcast_to(v, tuple(int(d) for d in tail)).reshape(-1) for v in (gamma, beta)
        )
        last = axis == rank - 1
        rows = None if last else rows_of(axis)
        lower_normalize(low, node, gamma.reshape(-1), beta.reshape(-1), centre=self.centre, rows=rows)


@register
class LayerNormalization(_RowNormalization):
    """y = scale (x - mean) / sqrt(variance + epsilon) + bias, over the axes from `axis` on."""

    name = "LayerNormalization"
    inputs = "x scale bias?"
    outputs = "y mean? inverse_deviation?"


@register
class RMSNormalization(_RowNormalization):
    """y = scale x / sqrt(mean of x^2 + epsilon), over the axes from `axis` on.  Standard from opset 23 on."""

    name = "RMSNormalization"
    inputs = "x scale"
    standard_since = 23
    centre = False

    def function_body(self, body: Body, node: Node) -> None:
        rank, kind = body.rank("x"), body.dtype("x").numpy
        axes = body.int64(list(range(node.attrs["axis"] % rank, rank)))
        mean = body.op("ReduceMean", body.op("Mul", "x", "x"), axes, keepdims=1)
        noisy = body.op("Add", mean, body.constant(np.asarray(node.attrs["epsilon"], kind)))
        body.op("Mul", body.op("Div", "x", body.op("Sqrt", noisy)), "scale", output="y")


@register
class LpNormalization(Op):
    """y = x / (sum of |x|^p)^(1/p) along one axis."""

    name = "LpNormalization"
    inputs = "x"
    attrs = {"axis": -1, "p": 2}
    normalizes = True

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        axes_of(attrs["axis"], x.rank)
        if attrs["p"] not in (1, 2):
            raise TypeInferenceError(f"p is {attrs['p']}, not 1 or 2")
        return [TensorType(x.dtype, x.shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        size = np.linalg.norm(x.astype(np.float64), attrs["p"], axis=attrs["axis"], keepdims=True)
        return (np.divide(x, size, out=np.zeros(x.shape), where=size != 0).astype(x.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        n, rank = node.input(0).shape[node.attrs["axis"]], node.input(0).type.rank
        if node.attrs["p"] != 2 or not isinstance(n, int) or node.attrs["axis"] % rank != rank - 1:
            raise LoweringError(
                "is lowered with p = 2 along the last axis, of a fixed size", where=str(node),
                hint="put a Transpose before and after it",
            )  # fmt: skip
        lower_normalize(low, node, np.full(1, 1 / math.sqrt(n)), np.zeros(1), centre=False)


class _ChannelNormalization(Op):
    """Normalization over the spatial axes (and channels of a group); gamma and beta for each channel (axis 1)."""

    normalizes = True
    inputs = "x scale bias"

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        if x.rank < 3:
            raise TypeInferenceError(f"{x} has no spatial axes")
        channels = int(x.shape[1])
        for i in (1, 2):
            if first(types, i).shape != (channels,):
                raise TypeInferenceError(f"{channels} scales and biases are wanted, {first(types, i)} is given")
        if channels % self.groups(attrs, channels):
            raise TypeInferenceError(f"{channels} channels in {self.groups(attrs, channels)} groups")
        return [TensorType(x.dtype, x.shape)]

    def groups(self, attrs: Mapping[str, Any], channels: int) -> int:
        """How many sets of channels have statistics of their own."""
        return channels

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, gamma, beta = (np.asarray(v) for v in inputs)
        shape, per = x.shape, (-1, *[1] * (x.ndim - 2))
        rows = x.reshape(shape[0], self.groups(attrs, shape[1]), -1)
        y = _normalized(rows, (2,), True, attrs["epsilon"]).reshape(shape)
        return ((y * gamma.reshape(per) + beta.reshape(per)).astype(x.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        shape = node.input(0).shape
        if any(isinstance(d, str) for d in shape[1:]):
            raise LoweringError(f"normalizes {shape[2:]}; the size of a row must be fixed", where=str(node))
        channels, area = int(shape[1]), math.prod(int(d) for d in shape[2:])
        groups = self.groups(node.attrs, channels)
        gamma, beta = _constants(low, node, 2)
        if groups == channels:
            gamma, beta = gamma.reshape(-1, 1), beta.reshape(-1, 1)
        else:
            gamma, beta = (np.repeat(v, area).reshape(groups, -1) for v in (gamma, beta))
        lower_normalize(low, node, gamma, beta, centre=True, rows=[0, groups, -1])


@register
class InstanceNormalization(_ChannelNormalization):
    """y = scale (x - mean) / sqrt(variance + epsilon) + bias, over the spatial axes of each channel."""

    name = "InstanceNormalization"
    attrs = {"epsilon": 1e-5}


@register
class GroupNormalization(_ChannelNormalization):
    """y = scale (x - mean) / sqrt(variance + epsilon) + bias, over each group of channels and the spatial axes."""

    name = "GroupNormalization"
    attrs = {"num_groups": REQUIRED, "epsilon": 1e-5, "stash_type": 1}

    def groups(self, attrs: Mapping[str, Any], channels: int) -> int:
        return int(attrs["num_groups"])
