"""Transpose, DepthToSpace, SpaceToDepth, Expand and Tile: the elements change places or are repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TypeInferenceError
from ..types import Array, TensorType
from .base import REQUIRED, register
from .movement import Movement, const, first, ints

if TYPE_CHECKING:
    from ..graph import Node


def permutation(attrs: Mapping[str, Any], rank: int) -> list[int]:
    """The axes' order; reversed where `perm` is absent.  Raises TypeInferenceError on no permutation."""
    perm = attrs["perm"]
    order = list(range(rank))[::-1] if perm is None else [int(a) for a in perm]
    if sorted(order) != list(range(rank)):
        raise TypeInferenceError(f"perm {order} does not permute {rank} axes")
    return order


@register
class Transpose(Movement):
    """y's axis i is x's axis perm[i]."""

    name = "Transpose"
    inputs = "x"
    attrs = {"perm": None}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        return [TensorType(x.dtype, tuple(x.shape[a] for a in permutation(attrs, x.rank)))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        return (
            np.ascontiguousarray(np.transpose(x, permutation(attrs, x.ndim))).reshape(
                [x.shape[a] for a in permutation(attrs, x.ndim)]
            ),
        )

    def channel_axis(self, node: Node, axis: int) -> int | None:
        return permutation(node.attrs, node.input(0).type.rank).index(axis)


class _Blocks(Movement):
    """What DepthToSpace and SpaceToDepth share: a reshape to six axes, a transpose, a reshape."""

    def plan(self, attrs: Mapping[str, Any], x: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """(six-axis shape, permutation, output shape)."""
        raise NotImplementedError

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        if x.rank != 4:
            raise TypeInferenceError(f"{x} needs 4 axes")
        return [TensorType(x.dtype, tuple(self.plan(attrs, ints(x.shape))[2]))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        six, perm, shape = self.plan(attrs, x.shape)
        return (x.reshape(six).transpose(perm).reshape(shape),)


@register
class DepthToSpace(_Blocks):
    """Blocks of b*b channels become b x b pixels.

    DCR: y[n, c, h*b + i, w*b + j] = x[n, (i*b + j)*C' + c, h, w];  CRD: x[n, c*b*b + i*b + j, h, w],  C' = C / b^2.
    """

    name = "DepthToSpace"
    inputs = "x"
    attrs = {"blocksize": REQUIRED, "mode": "DCR"}

    def plan(self, attrs: Mapping[str, Any], x: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        n, c, h, w = x
        b = attrs["blocksize"]
        if attrs["mode"] not in ("DCR", "CRD"):
            raise TypeInferenceError(f"mode {attrs['mode']!r} is unknown")
        if b < 1 or c % (b * b):
            raise TypeInferenceError(f"{c} channels are no multiple of {b}^2")
        small = c // (b * b)
        if attrs["mode"] == "DCR":
            return [n, b, b, small, h, w], [0, 3, 4, 1, 5, 2], [n, small, h * b, w * b]
        return [n, small, b, b, h, w], [0, 1, 4, 2, 5, 3], [n, small, h * b, w * b]


@register
class SpaceToDepth(_Blocks):
    """b x b pixels become blocks of channels: y[n, (i*b + j)*C + c, h, w] = x[n, c, h*b + i, w*b + j]."""

    name = "SpaceToDepth"
    inputs = "x"
    attrs = {"blocksize": REQUIRED}

    def plan(self, attrs: Mapping[str, Any], x: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        n, c, h, w = x
        b = attrs["blocksize"]
        if b < 1 or h % b or w % b:
            raise TypeInferenceError(f"{h} x {w} pixels do not divide into blocks of {b}")
        return [n, c, h // b, b, w // b, b], [0, 3, 5, 1, 2, 4], [n, c * b * b, h // b, w // b]


@register
class Expand(Movement):
    """x broadcast with a tensor of shape `shape` (both ways, as NumPy broadcasts)."""

    name = "Expand"
    inputs = "x shape"
    shape_inputs = (1,)

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        target = tuple(int(d) for d in np.reshape(const(consts, 1, "the shape"), -1))
        return [TensorType(x.dtype, np.broadcast_shapes(ints(x.shape), target))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = np.asarray(inputs[0])
        target = tuple(int(d) for d in np.reshape(inputs[1], -1))
        return (np.ascontiguousarray(np.broadcast_to(x, np.broadcast_shapes(x.shape, target))),)


@register
class Tile(Movement):
    """x repeated `repeats` times along each axis."""

    name = "Tile"
    inputs = "x repeats"
    shape_inputs = (1,)

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = first(types)
        repeats = [int(d) for d in np.reshape(const(consts, 1, "repeats"), -1)]
        if len(repeats) != x.rank or any(r < 0 for r in repeats):
            raise TypeInferenceError(f"repeats {repeats} for {x}")
        return [TensorType(x.dtype, tuple(d * r for d, r in zip(ints(x.shape), repeats, strict=True)))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.tile(inputs[0], np.reshape(inputs[1], -1)),)
