"""Linear layers with constant weights, and the links between two of them that scaling channel by channel commutes with.

A link runs from layer `first` through operators f with f(s x) = s f(x), s > 0 in each channel  [White Paper 20],
to layer `second`, over values with a single use that are no graph outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qir.graph import Graph, Node
from qir.ops import op_of

from .channel_math import (
    gemm_axes,
    gemm_scaled,
    plus,
    push_in,
    scale_in,
    scale_out,
    transposed_scale_out,
)
from .report import PassReport

Floats = NDArray[np.float64]

MOVES_CONSTANTS = frozenset({"Relu", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Dropout", "Flatten"})
"""Those through which a constant of each channel passes unchanged (Relu: as long as it stays below the values).
A choice of AbsorbBias, which also wants the channels to stay where they are; no fact of the operators."""


class Layer:
    """A linear node's weights and bias in float64, scaled in place and written back once."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.w: Floats = node.input(1).array().astype(np.float64)
        bias = node.optional(2)
        self.b: Floats | None = None if bias is None else bias.array().astype(np.float64)
        self.group = int(node.attrs.get("group", 1))
        self.changed = False

    @property
    def _gemm(self) -> tuple[int, int]:
        """(input axis, output axis) of a matrix of weights."""
        return gemm_axes(int(self.node.attrs.get("transB", 0)))

    @property
    def outputs(self) -> int:
        """Output channels."""
        op = self.node.op
        if op == "Conv":
            return self.w.shape[0]
        return self.w.shape[1] * self.group if op == "ConvTranspose" else self.w.shape[self._gemm[1]]

    @property
    def inputs(self) -> int:
        """Input channels."""
        op = self.node.op
        if op == "Conv":
            return self.w.shape[1] * self.group
        return self.w.shape[0] if op == "ConvTranspose" else self.w.shape[self._gemm[0]]

    def output_range(self) -> Floats:
        """max|w| of each output channel."""
        a, op = np.abs(self.w), self.node.op
        if op == "Conv":
            return a.reshape(len(a), -1).max(axis=1)
        if op == "ConvTranspose":
            per_group = a.reshape(self.group, len(a) // self.group, a.shape[1], -1)
            return per_group.max(axis=(1, 3)).reshape(-1)
        return a.max(axis=self._gemm[0])

    def input_range(self) -> Floats:
        """max|w| of each input channel."""
        a, op = np.abs(self.w), self.node.op
        if op == "Conv":
            per_group = a.reshape(self.group, len(a) // self.group, a.shape[1], -1)
            return per_group.max(axis=(1, 3)).reshape(-1)
        return a.reshape(len(a), -1).max(axis=1) if op == "ConvTranspose" else a.max(axis=self._gemm[1])

    def scale_outputs(self, s: Floats) -> None:
        """Multiply each output channel, bias included."""
        op, self.changed = self.node.op, True
        if op == "Conv":
            self.w = scale_out(self.w, s)
        elif op == "ConvTranspose":
            self.w = transposed_scale_out(self.w, s, self.group)
        else:
            self.w = gemm_scaled(self.w, s, self._gemm[1])
        if self.b is not None:
            self.b = self.b * s

    def scale_inputs(self, s: Floats) -> None:
        """Multiply the weights of each input channel."""
        op, self.changed = self.node.op, True
        if op == "Conv":
            self.w = scale_in(self.w, s, self.group)
        elif op == "ConvTranspose":
            self.w = scale_out(self.w, s)
        else:
            self.w = gemm_scaled(self.w, s, self._gemm[0])

    def add_bias(self, c: Floats) -> None:
        """b + c"""
        self.b, self.changed = plus(self.b, c) / 1.0, True

    def response(self, c: Floats) -> Floats:
        """What a constant c in each input channel adds to each output channel (no padding)."""
        if self.node.op == "Conv":
            return push_in(self.w, c, self.group)
        alpha = float(self.node.attrs.get("alpha", 1.0))
        return alpha * (c @ (self.w.T if self._gemm == (1, 0) else self.w))

    def write(self, graph: Graph) -> None:
        """Weights and bias into the graph, in the dtype and under the names that they had."""
        if not self.changed:
            return
        self._write(graph, 1, self.w, "w")
        if self.b is not None:
            self._write(graph, 2, self.b, "b")

    def _write(self, graph: Graph, index: int, data: Floats, role: str) -> None:
        old = self.node.optional(index)
        dtype = self.node.input(1).dtype
        new = graph.add_constant(f"{self.node.output.name}.{role}", data.astype(dtype.numpy))
        graph.set_input(self.node, index, new)
        if old is not None and not old.use_count and not old.is_output:
            graph.swap_names(old, new)
            graph.remove_constant(old)


@dataclass(frozen=True)
class Link:
    """Two layers and the nodes between; `repeat`: inputs of `second` for each channel of `first` (after a Flatten)."""

    first: Layer
    path: tuple[Node, ...]
    second: Layer
    repeat: int = 1

    def spread(self, s: Floats) -> Floats:
        """A number for each channel of `first` as one for each input of `second`."""
        return np.repeat(s, self.repeat)


def find_links(graph: Graph, report: PassReport, *, rule: str, clips: bool = False) -> list[Link]:
    """All links, in topological order. clips: also through Clip(0, hi). Why a layer has none is recorded as a miss."""
    layers: dict[Node, Layer] = {}
    for node in graph.nodes:
        if not op_of(node.op).linear:
            continue
        reason = unfit(node)
        if reason is None:
            layers[node] = Layer(node)
        else:
            report.missed(rule, node.name, reason)
    links: list[Link] = []
    for node, layer in layers.items():
        got = _follow(layer, layers, clips)
        if isinstance(got, Link):
            links.append(got)
        elif node.output.use_count:
            report.missed(rule, node.name, got)
    return links


def unfit(node: Node) -> str | None:
    """Why a linear node's weights cannot be changed, or None."""
    for index, value in enumerate(node.inputs[1:], 1):
        if value is None:
            continue
        if not value.is_constant:
            return f"input {index} is not a constant"
        if value.use_count > 1:
            return f"input {index} is shared"
    if node.op == "Gemm":
        bias = node.optional(2)
        if node.attrs["transA"] or node.attrs["beta"] != 1.0:
            return "it is transposed or scales its bias"
        if bias is not None and bias.type.rank != 1:
            return "the bias is no vector"
    if node.op == "MatMul" and (node.input(0).type.rank != 2 or node.input(1).type.rank != 2):
        return "it is no product of matrices"
    return None


def _follow(first: Layer, layers: Mapping[Node, Layer], clips: bool) -> Link | str:
    value, path = first.node.output, list[Node]()
    while True:
        if value.is_output:
            return f"{value.name!r} is a graph output"
        if value.use_count != 1:
            return f"{value.name!r} has {value.use_count} uses"
        node, index = value.uses()[0]
        if node in layers and index == 0:
            second = layers[node]
            repeat, rest = divmod(second.inputs, first.outputs)
            if rest or (repeat > 1 and not any(n.op in ("Flatten", "Reshape") for n in path)):
                return f"{node} takes other channels"
            return Link(first, tuple(path), second, repeat)
        reason = blocked(node, index, clips)
        if reason is not None:
            return reason
        path.append(node)
        value = node.output


def blocked(node: Node, index: int, clips: bool) -> str | None:
    """Why scaling each channel of input `index` does not commute with the node, or None."""
    if node.op == "Clip":
        if clips and clip_limit(node) is not None:
            return None
        return f"{node} does not scale with its input"
    op = op_of(node.op)
    if not op.homogeneous:
        return f"{node} does not scale with its input"
    if index != 0:
        return f"{node} takes it as input {index}"
    return op.mixes_channels(node)


def clip_limit(node: Node) -> float | None:
    """hi of a Clip(0, hi), else None."""
    lo, hi = node.optional(1), node.optional(2)
    if lo is None or hi is None or lo.data is None or hi.data is None or lo.data.size != 1 or hi.data.size != 1:
        return None
    top = float(hi.data.reshape(-1)[0])
    return top if float(lo.data.reshape(-1)[0]) == 0.0 and top > 0 else None


def by_channel(c: Any, rank: int) -> Floats:
    """(C,) shaped to broadcast against (N, C, *spatial)."""
    return np.asarray(c, np.float64).reshape(-1, *[1] * (rank - 2))
