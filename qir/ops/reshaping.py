"""Reshape and its kin: the elements keep their order, the shape changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TypeInferenceError
from ..types import DType, TensorType
from .base import register
from .movement import ShapedMovement, arg, axes_of, first, ints

if TYPE_CHECKING:
    from ..graph import Node, Value


@register
class Reshape(ShapedMovement):
    """y has x's elements in x's order and the shape `shape`: -1 is inferred, 0 copies x's size (unless allowzero)."""

    name = "Reshape"
    homogeneous = True
    inputs = "x shape"
    attrs = {"allowzero": 0}
    shape_inputs = (1,)

    def shape(self, attrs: Mapping[str, Any], x: tuple[int, ...], target: Any) -> tuple[int, ...]:
        wanted = [int(d) for d in np.reshape(target, -1)]
        if not attrs["allowzero"]:
            wanted = [x[i] if d == 0 else d for i, d in enumerate(wanted)]
        if wanted.count(-1) > 1 or any(d < -1 for d in wanted):
            raise TypeInferenceError(f"target shape {wanted} is no shape")
        size = int(np.prod(x, dtype=np.int64))
        if -1 in wanted:
            rest = int(np.prod([d for d in wanted if d != -1], dtype=np.int64))
            if rest == 0 or size % rest:
                raise TypeInferenceError(f"{list(x)} does not fit into {wanted}")
            wanted[wanted.index(-1)] = size // rest
        if int(np.prod(wanted, dtype=np.int64)) != size:
            raise TypeInferenceError(f"{list(x)} does not fit into {wanted}")
        return tuple(wanted)

    def mixes_channels(self, node: Node) -> str | None:
        return None if keeps_channels(node.input(0), node.output) else f"{node} moves channels"


@register
class Flatten(ShapedMovement):
    """y is x as a matrix: the axes before `axis` become its rows."""

    name = "Flatten"
    homogeneous = True
    inputs = "x"
    attrs = {"axis": 1}

    def shape(self, attrs: Mapping[str, Any], x: tuple[int, ...], target: Any) -> tuple[int, ...]:
        axis = attrs["axis"]
        if not -len(x) <= axis <= len(x):
            raise TypeInferenceError(f"axis {axis} of a tensor of rank {len(x)}")
        axis = axis + len(x) if axis < 0 else axis
        return (int(np.prod(x[:axis], dtype=np.int64)), int(np.prod(x[axis:], dtype=np.int64)))

    def mixes_channels(self, node: Node) -> str | None:
        return None if keeps_channels(node.input(0), node.output) else f"{node} moves channels"


@register
class Squeeze(ShapedMovement):
    """x without the axes `axes`, each of size 1 (without `axes`: all of size 1)."""

    name = "Squeeze"
    homogeneous = True
    inputs = "x axes?"
    shape_inputs = (1,)

    def shape(self, attrs: Mapping[str, Any], x: tuple[int, ...], target: Any) -> tuple[int, ...]:
        axes = tuple(i for i, d in enumerate(x) if d == 1) if target is None else axes_of(target, len(x))
        for axis in axes:
            if x[axis] != 1:
                raise TypeInferenceError(f"axis {axis} of {list(x)} is not 1")
        return tuple(d for i, d in enumerate(x) if i not in axes)

    def mixes_channels(self, node: Node) -> str | None:
        return None if keeps_channels(node.input(0), node.output) else f"{node} moves channels"


@register
class Unsqueeze(ShapedMovement):
    """x with new axes of size 1 at `axes` (counted in the output)."""

    name = "Unsqueeze"
    inputs = "x axes"
    shape_inputs = (1,)

    def shape(self, attrs: Mapping[str, Any], x: tuple[int, ...], target: Any) -> tuple[int, ...]:
        axes = axes_of(target, len(x) + np.size(target))
        rest = iter(x)
        return tuple(1 if i in axes else next(rest) for i in range(len(x) + len(axes)))


@register
class Identity(ShapedMovement):
    """y = x."""

    name = "Identity"
    homogeneous = True
    pointwise = True
    inputs = "x"

    def shape(self, attrs: Mapping[str, Any], x: tuple[int, ...], target: Any) -> tuple[int, ...]:
        return x


@register
class Dropout(ShapedMovement):
    """Inference: y = x, and a mask of ones where it is asked for.  A training_mode that is true is not supported."""

    name = "Dropout"
    homogeneous = True
    inputs = "x ratio? training_mode?"
    outputs = "y mask?"
    attrs = {"seed": None}
    shape_inputs = (2,)

    def shape(self, attrs: Mapping[str, Any], x: tuple[int, ...], target: Any) -> tuple[int, ...]:
        return x

    def infer(self, attrs: Any, types: Any, consts: Any) -> list[TensorType]:
        x, training = first(types), arg(consts, 2)
        if training is not None and bool(np.all(training)):
            raise TypeInferenceError("training mode is not supported")
        return [TensorType(x.dtype, x.shape), TensorType(DType.BOOL, ints(x.shape))]

    def reference(self, attrs: Any, *inputs: Any) -> Any:
        return (np.asarray(inputs[0]), np.ones(np.shape(inputs[0]), bool))

    def to_integer(self, low: Any, node: Any) -> None:
        low.set(node.output, low.form(node.input(0)))


def keeps_channels(x: Value, y: Value) -> bool:
    """Whether a reshape leaves (N, C, ...) as (N, C, ...) or as (N, C * everything else)."""
    if x.type.rank < 2 or y.type.rank < 2 or x.shape[0] != y.shape[0]:
        return False
    if y.shape[1] == x.shape[1]:
        return True
    sizes = [d for d in x.shape[1:] if isinstance(d, int)]
    return y.type.rank == 2 and len(sizes) == x.type.rank - 1 and y.shape[1] == math.prod(sizes)
