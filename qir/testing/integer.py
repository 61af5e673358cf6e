"""Random integer graphs under construction, for the tests of runtimes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dyadic import dyadic
from ..graph import Graph, Stage, Value
from ..types import Array, DType, TensorType


class IntegerCase:
    """A random integer graph under construction, and its feeds."""

    def __init__(self, seed: int, batch: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph(stage=Stage.INTEGER)
        self.feeds: dict[str, Array] = {}
        self.batch = batch

    def ints(self, dtype: DType, shape: tuple[int, ...], span: int | None = None) -> Array:
        lo, hi = (dtype.lo, dtype.hi) if span is None else (max(dtype.lo, -span), min(dtype.hi, span))
        return self.rng.integers(lo, hi + 1, shape).astype(dtype.numpy)

    def input(self, dtype: DType, *shape: int, span: int | None = None) -> Value:
        """A graph input with a symbolic batch."""
        name = f"x{len(self.feeds)}"
        self.feeds[name] = self.ints(dtype, (self.batch, *shape), span)
        return self.graph.add_input(name, TensorType(dtype, ("N", *shape)))

    def constant(self, data: Any, dtype: Any = np.int64) -> Value:
        return self.graph.add_constant("c", np.asarray(data, dtype))

    def node(self, op: str, *inputs: Value | None, outputs: int = 1, **attrs: Any) -> Value:
        node = self.graph.add_node(op, inputs, attrs, outputs=outputs)
        return node.output

    def conv(
        self, x: Value, filters: int, kernel: tuple[int, ...], weight: DType = DType.INT8, **attrs: Any
    ) -> Value:  # fmt: skip
        """qir.Conv with random weights and bias; attributes default to stride 1, no padding, a pad value of 3."""
        group = attrs.get("group", 1)
        rank = len(kernel)
        shape = (filters, int(x.shape[1]) // group, *kernel)
        w = self.graph.add_constant("w", self.ints(weight, shape, -weight.lo - 1), weight)
        bias = self.graph.add_constant("b", self.ints(DType.INT32, (filters,), 10_000))
        full: dict[str, Any] = {
            "strides": [1] * rank,
            "pads": [0] * (2 * rank),
            "dilations": [1] * rank,
            "pad_value": [3],
            **attrs,
        }
        return self.node("qir.Conv", x, w, bias, **full)

    def requantize(
        self, x: Value, dtype: DType = DType.UINT8, channels: int | None = None, rank: int = 4,
        ratios: tuple[float, float] = (1e-4, 2e-3),
    ) -> Value:  # fmt: skip
        """qir.Requantize by one random ratio of that range, or by one a channel."""
        shape = () if channels is None else (channels, *[1] * (rank - 2))
        pairs = [dyadic(float(r)) for r in np.ravel(self.rng.uniform(*ratios, shape))]
        multiplier = self.constant(np.reshape([m for m, _ in pairs], shape), np.int32)
        shift = self.constant(np.reshape([s for _, s in pairs], shape), np.int32)
        return self.node(
            "qir.Requantize",
            x,
            multiplier,
            shift,
            zero_point=max(3, dtype.lo),
            lo=dtype.lo,
            hi=dtype.hi,
            dtype=str(dtype),
        )

    def add(self, a: Value, b: Value, dtype: DType = DType.INT8, shift: int = 30) -> Value:
        """qir.Add, with a negative multiplier of b."""
        return self.node(
            "qir.Add", a, b, a_multiplier=700_000_001, b_multiplier=-400_000_003, shift=shift, a_zero_point=3,
            b_zero_point=-1, zero_point=2, lo=dtype.lo, hi=dtype.hi - 7, dtype=str(dtype),
        )  # fmt: skip

    def table(self, x: Value, axis: int | None = None, dtype: DType = DType.INT8) -> Value:
        shape = (256,) if axis is None else (int(x.shape[axis]), 256)
        return self.node("qir.Table", x, self.graph.add_constant("t", self.ints(dtype, shape)), axis=axis)
