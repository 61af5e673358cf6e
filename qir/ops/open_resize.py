"""Resize of axes whose sizes are open: indices and weights are computed from the sizes, on int64.

A coordinate is a fraction: x = n / d with n and d whole, for output position i of `out`, scale s = p / q or out / in:

    asymmetric      i q / p                       or  i in / out
    half_pixel      ((2 i + 1) q - p) / (2 p)     or  ((2 i + 1) in - out) / (2 out)
    align_corners   i (in - 1) / (out - 1)

and its floor, its nearest neighbour and the weight of the next position are divisions of whole numbers.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LoweringError
from ..lowering import Lowering
from ..types import Array, Dim, DType
from .open_axes import GIVE_SIZES, sizes_constant

if TYPE_CHECKING:
    from ..graph import Graph, Node, Value

HALF = ("half_pixel", "pytorch_half_pixel")


class OpenResize:
    """One resized axis of open size; `Value`s here are int64 vectors of `out` elements, or of one."""

    def __init__(self, low: Lowering, node: Node, axis: int, scale: float | None) -> None:
        self.graph: Graph = low.graph
        self.node, self.axis = node, axis
        size, out = node.input(0).shape[axis], node.output.shape[axis]
        self.size, self.out = self._sizes(size), self._sizes(out)
        self.ratio = None if scale is None else Fraction(scale).limit_denominator(1024)
        if self.ratio is not None and np.float32(float(self.ratio)) != np.float32(scale):
            raise LoweringError(f"scales an open size by {scale}", where=str(node), hint=GIVE_SIZES)
        self.numerator, self.divisor = self._coordinate(node.attrs["coordinate_transformation_mode"])

    # -- arithmetic ---------------------------------------------------------------------------
    def _sizes(self, dim: Dim) -> Value:
        return sizes_constant(self.graph, [dim], f"{self.node.name}.size", str(self.node))

    def _op(self, op: str, *inputs: Any, **attrs: Any) -> Value:
        values = [self.number(v) if isinstance(v, int) else v for v in inputs]
        return self.graph.add_node(op, values, attrs, outputs=[f"{self.node.output.name}.at"]).output

    def number(self, n: int) -> Value:
        return self.graph.add_constant(f"{self.node.output.name}.number", np.asarray([n], np.int64))

    def scalar(self, n: int) -> Value:
        return self.graph.add_constant(f"{self.node.output.name}.number", np.asarray(n, np.int64))

    # -- what a Gather or a qir.Interpolate needs -----------------------------------------------
    def _coordinate(self, mode: str) -> tuple[Value, Value]:
        """(numerator, clamped to what the axis has; divisor)"""
        axes = self.number(0)
        position = self._op("Range", self.scalar(0), self._op("Squeeze", self.out, axes), self.scalar(1))
        if mode == "align_corners":
            divisor = self._op("Max", self._op("Sub", self.out, 1), 1)
            numerator = self._op("Mul", position, self._op("Sub", self.size, 1))
        elif mode in ("asymmetric", *HALF):
            ratio = self.ratio
            p, q = (
                (self.out, self.size)
                if ratio is None
                else (self.number(ratio.numerator), self.number(ratio.denominator))
            )
            if mode in HALF:
                odd = self._op("Add", self._op("Mul", position, 2), 1)
                numerator, divisor = self._op("Sub", self._op("Mul", odd, q), p), self._op("Mul", p, 2)
            else:
                numerator, divisor = self._op("Mul", position, q), p
        else:
            raise LoweringError(f"resizes an open size with {mode}", where=str(self.node), hint=GIVE_SIZES)
        end = self._op("Mul", self._op("Sub", self.size, 1), divisor)
        return self._op("Min", self._op("Max", numerator, 0), end), divisor

    def nearest(self, mode: str) -> Value:
        """Index of the nearest position."""
        n, d = self.numerator, self.divisor
        if mode == "ceil":
            n = self._op("Sub", self._op("Add", n, d), 1)
        elif mode != "floor":
            n, d = self._op("Add", self._op("Mul", n, 2), d), self._op("Mul", d, 2)
            if mode == "round_prefer_floor":
                n = self._op("Sub", n, 1)
        return self._op("Div", n, d)

    def linear(self, bits: int) -> tuple[Value, Value, Value, Value]:
        """(first index, second index, weight of the first, weight of the second), weights int32 in [0, 2^bits]."""
        low = self._op("Div", self.numerator, self.divisor)
        high = self._op("Min", self._op("Add", low, 1), self._op("Sub", self.size, 1))
        rest = self._op("Sub", self.numerator, self._op("Mul", low, self.divisor))
        scaled = self._op("Add", self._op("Mul", rest, 2 << bits), self.divisor)
        weight = self._op("Cast", self._op("Div", scaled, self._op("Mul", self.divisor, 2)), to=str(DType.INT32))
        one = self.graph.add_constant(f"{self.node.output.name}.one", np.asarray(1 << bits, np.int32))
        return low, high, self._op("Sub", one, weight), weight


def scale_of(scales: Array | None, axes: list[int], axis: int) -> float | None:
    """The constant scale of an axis, where scales are given."""
    return None if scales is None or not np.size(scales) else float(np.reshape(scales, -1)[axes.index(axis)])
