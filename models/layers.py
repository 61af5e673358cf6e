"""A few lines that build a float network layer by layer, the way its paper describes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qir.graph import Graph, Value
from qir.types import DType, TensorType

from .weights import weights_from

Pair = int | tuple[int, int]


def pair(size: Pair) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


class Net:
    """Builds a Graph. Every method takes a Value (N, C, H, W) and returns one; parameters are asked for by key.

    Values are named after the layer that makes them, so that a report speaks of "layer1.0.conv1" and not of node 7.
    """

    def __init__(
        self, name: str, weights: Any, shape: Sequence[int], input_name: str = "input", ignore: tuple[str, ...] = ()
    ) -> None:
        self.graph = Graph(name)
        self.weights = weights_from(weights, ignore)
        self.input = self.graph.add_input(input_name, TensorType(DType.FLOAT32, ("N", *shape)))

    def _op(self, op: str, inputs: Sequence[Value | None], name: str, **attrs: Any) -> Value:
        return self.graph.add_node(op, inputs, attrs, outputs=[name]).output

    def _parameter(self, key: str, shape: tuple[int, ...]) -> Value:
        return self.graph.add_constant(key, self.weights.take(key, shape))

    @staticmethod
    def channels(x: Value) -> int:
        return int(x.shape[1])

    # -- layers with weights ------------------------------------------------------------------
    def conv(
        self, x: Value, key: str, channels: int, kernel: Pair = 1, *, stride: int = 1, pad: Pair | None = None,
        groups: int = 1, bias: bool = False, pads: Sequence[int] | None = None,
    ) -> Value:  # fmt: skip
        """A convolution; pad None keeps the size at stride 1; pads (top, left, bottom, right) where they differ."""
        kh, kw = pair(kernel)
        ph, pw = (kh // 2, kw // 2) if pad is None else pair(pad)
        w = self._parameter(f"{key}.weight", (channels, self.channels(x) // groups, kh, kw))
        b = [self._parameter(f"{key}.bias", (channels,))] if bias else []
        border = list(pads) if pads is not None else [ph, pw, ph, pw]
        return self._op("Conv", [x, w, *b], key, kernel_shape=[kh, kw], strides=[stride, stride], pads=border,
                        group=groups, dilations=[1, 1])  # fmt: skip

    def batch_norm(self, x: Value, key: str, epsilon: float = 1e-5) -> Value:
        shape = (self.channels(x),)
        leaves = ("weight", "bias", "running_mean", "running_var")
        return self._op(
            "BatchNormalization", [x, *(self._parameter(f"{key}.{leaf}", shape) for leaf in leaves)], key,
            epsilon=epsilon,
        )  # fmt: skip

    def linear(self, x: Value, key: str, features: int) -> Value:
        """y = x w^T + b on (N, C)."""
        w = self._parameter(f"{key}.weight", (features, self.channels(x)))
        return self._op("Gemm", [x, w, self._parameter(f"{key}.bias", (features,))], key, transB=1)

    # -- layers without -----------------------------------------------------------------------
    def relu(self, x: Value) -> Value:
        return self._op("Relu", [x], f"{x.name}.relu")

    def relu6(self, x: Value) -> Value:
        lo, hi = (self.graph.add_constant(f"relu6.{n}", np.asarray(v, np.float32)) for n, v in (("lo", 0), ("hi", 6)))
        return self._op("Clip", [x, lo, hi], f"{x.name}.relu6")

    def add(self, a: Value, b: Value, name: str) -> Value:
        return self._op("Add", [a, b], name)

    def concat(self, values: Sequence[Value], name: str) -> Value:
        return self._op("Concat", list(values), name, axis=1)

    def max_pool(self, x: Value, name: str, kernel: int, stride: int, pad: int = 0) -> Value:
        return self._op("MaxPool", [x], name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def average_pool(self, x: Value, name: str, kernel: int, stride: int = 1, pad: int = 0) -> Value:
        """Padding counts as zeros, as torch.nn.functional.avg_pool2d has it."""
        return self._op("AveragePool", [x], name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
                        count_include_pad=1)  # fmt: skip

    def global_average(self, x: Value, name: str = "avgpool") -> Value:
        """(N, C, H, W) -> (N, C)."""
        return self._op("Flatten", [self._op("GlobalAveragePool", [x], name)], f"{name}.flat", axis=1)

    def finish(self, output: Value, name: str = "logits") -> Graph:
        """The graph, its output called `name`; complains about weights left over."""
        self.weights.finish()
        self.graph.rename(output, name)
        self.graph.set_outputs([output])
        return self.graph
