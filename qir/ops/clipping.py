"""Piecewise linear limits: Relu, Clip, PRelu."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LoweringError
from ..lowering import Bounds, Clamped, Lowering
from ..types import Array, TensorType
from .affine import channel_vector
from .base import register
from .elementwise import Elementwise, broadcast_type
from .table import require_mapped

if TYPE_CHECKING:
    from ..graph import Node, Value


@register
class Relu(Elementwise):
    """y = max(x, 0); on integers it is fused into the requantization before it as lo = zero_point"""

    name = "Relu"
    clamps = True
    homogeneous = True
    nonnegative = True
    pointwise = True
    inputs = "x"

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.maximum(inputs[0], inputs[0].dtype.type(0)),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        low.set(node.output, Clamped(low.form(node.input(0)), Bounds(lo=0.0)))


@register
class Clip(Elementwise):
    """y = min(max(x, lo), hi); on integers fused into the requantization before it; on integer tensors a Clip"""

    name = "Clip"
    clamps = True
    inputs = "x lo? hi?"

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        assert types[0] is not None
        broadcast_type(types)
        return [TensorType(types[0].dtype, types[0].shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = y = inputs[0]
        if len(inputs) > 1 and inputs[1] is not None:
            y = np.maximum(y, inputs[1])
        if len(inputs) > 2 and inputs[2] is not None:
            y = np.minimum(y, inputs[2])
        return (np.asarray(y, dtype=x.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        lo, hi = (_limit(low, node.optional(i), end) for i, end in ((1, -math.inf), (2, math.inf)))
        low.set(node.output, Clamped(low.form(node.input(0)), Bounds(min(lo, hi), hi)))  # min > max: all are max

    def never_negative(self, node: Node) -> bool:
        lo = node.optional(1)
        return lo is not None and lo.data is not None and bool((lo.data >= 0).all())


def _limit(low: Lowering, value: Value | None, default: float) -> float:
    if value is None:
        return default
    data = low.real_constant(value)
    if data.size != 1:
        raise LoweringError("limits are single numbers", where=str(low.node))
    return float(data.reshape(()))


@register
class PRelu(Elementwise):
    """y = x for x >= 0, slope x below; on integers one table, or one a channel"""

    name = "PRelu"
    homogeneous = True
    inputs = "x slope"

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, slope = inputs
        return (np.where(x < 0, x * slope, x).astype(x.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        slope = low.real_constant(node.input(1))
        mapped = require_mapped(low, node, node.input(0))
        way = channel_vector(slope, node.output.type.rank)
        if way is None:
            raise LoweringError("slopes that vary along several axes", where=str(node))
        axis, slopes = way
        if axis >= 0:
            mapped = mapped.per_channel(axis, slopes.size)
            if mapped.axis != axis:
                raise LoweringError("slopes along another axis than the table before", where=str(node))
        low.set(node.output, mapped.map(lambda r: np.where(r < 0, r * slopes.reshape(-1, 1)[: len(r)] if axis >= 0
                                                           else r * float(slopes[0]), r)))  # fmt: skip

    def mixes_channels(self, node: Node) -> str | None:
        return None if node.input(1).is_constant else f"{node} computes its slopes"
