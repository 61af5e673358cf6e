"""Gradients of a float graph, in NumPy: what training the small bundled networks takes and no more.

The graph that is trained is the qir Graph that is exported, so there is no second definition of the network.  Each
rule gives the output and a function from the output's gradient to the inputs' gradients (None: no gradient).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qir.errors import UnsupportedError
from qir.graph import Graph, Node, Value
from qir.types import Array

Backward = Callable[[Array], "list[Array | None]"]
Step = tuple[Node, Backward]

STATISTICS_MOMENTUM = 0.9
"""Share of the old running mean and variance that one training step keeps."""


def _taps(attrs: dict[str, Any]) -> list[tuple[int, int]]:
    kh, kw = attrs["kernel_shape"]
    return [(i, j) for i in range(kh) for j in range(kw)]


def _columns(x: Array, attrs: dict[str, Any]) -> tuple[Array, tuple[int, int]]:
    """(taps, N, C, OH, OW) windows of x and the padded size."""
    top, left, bottom, right = attrs["pads"]
    sh, sw = attrs["strides"]
    kh, kw = attrs["kernel_shape"]
    padded = np.pad(x, [(0, 0), (0, 0), (top, bottom), (left, right)])
    h, w = padded.shape[2:]
    oh, ow = (h - kh) // sh + 1, (w - kw) // sw + 1
    views = [padded[:, :, i : i + sh * oh : sh, j : j + sw * ow : sw] for i, j in _taps(attrs)]
    return np.stack(views), (h, w)


def _uncolumns(d: Array, attrs: dict[str, Any], size: tuple[int, int]) -> Array:
    """The transpose of `_columns`: windows' gradients added up at their pixels, padding cut off."""
    top, left, bottom, right = attrs["pads"]
    sh, sw = attrs["strides"]
    _, n, c, oh, ow = d.shape
    out = np.zeros((n, c, *size), d.dtype)
    for tap, (i, j) in zip(d, _taps(attrs), strict=True):
        out[:, :, i : i + sh * oh : sh, j : j + sw * ow : sw] += tap
    return out[:, :, top : size[0] - bottom, left : size[1] - right]


def _conv(node: Node, x: Array, w: Array, *rest: Array) -> tuple[Array, Backward]:
    attrs, group = node.attrs, node.attrs["group"]
    cols, size = _columns(x, attrs)
    taps, n, c, oh, ow = cols.shape
    m, cg = w.shape[0], c // group
    # (G, N*OH*OW, cg*taps) times (G, cg*taps, m/G)
    flat = cols.reshape(taps, n, group, cg, oh * ow).transpose(2, 1, 4, 3, 0).reshape(group, n * oh * ow, cg * taps)
    kernel = w.reshape(group, m // group, cg * taps)
    y = np.matmul(flat, kernel.transpose(0, 2, 1))
    out = y.reshape(group, n, oh, ow, m // group).transpose(1, 0, 4, 2, 3).reshape(n, m, oh, ow)
    if rest:
        out = out + rest[0].reshape(1, -1, 1, 1)

    def backward(dy: Array) -> list[Array | None]:
        d = dy.reshape(n, group, m // group, oh * ow).transpose(1, 0, 3, 2).reshape(group, n * oh * ow, m // group)
        dw = np.matmul(d.transpose(0, 2, 1), flat).reshape(w.shape)
        dflat = np.matmul(d, kernel)
        dcols = dflat.reshape(group, n, oh * ow, cg, taps).transpose(4, 1, 0, 3, 2).reshape(cols.shape)
        db = [dy.sum((0, 2, 3))] if rest else []
        return [_uncolumns(dcols, attrs, size), dw, *db]

    return out, backward


def _gemm(node: Node, x: Array, w: Array, b: Array) -> tuple[Array, Backward]:
    return x @ w.T + b, lambda dy: [dy @ w, dy.T @ x, dy.sum(0)]


def _relu(node: Node, x: Array) -> tuple[Array, Backward]:
    return np.maximum(x, 0), lambda dy: [dy * (x > 0)]


def _clip(node: Node, x: Array, lo: Array, hi: Array) -> tuple[Array, Backward]:
    return np.clip(x, lo, hi), lambda dy: [dy * ((x > lo) & (x < hi)), None, None]


def _add(node: Node, a: Array, b: Array) -> tuple[Array, Backward]:
    return a + b, lambda dy: [dy, dy]


def _concat(node: Node, *xs: Array) -> tuple[Array, Backward]:
    ends = np.cumsum([x.shape[1] for x in xs])[:-1]
    return np.concatenate(xs, axis=1), lambda dy: list(np.split(dy, ends, axis=1))


def _average_pool(node: Node, x: Array) -> tuple[Array, Backward]:
    """Zero padding that counts (count_include_pad = 1)."""
    cols, size = _columns(x, node.attrs)
    share = np.float32(1 / len(cols))
    return cols.mean(0), lambda dy: [_uncolumns(np.broadcast_to(dy * share, cols.shape), node.attrs, size)]


def _max_pool(node: Node, x: Array) -> tuple[Array, Backward]:
    """On values that are not negative (after a Relu), where zero padding changes nothing."""
    cols, size = _columns(x, node.attrs)
    best = cols.argmax(0)

    def backward(dy: Array) -> list[Array | None]:
        chosen = best[None] == np.arange(len(cols)).reshape(-1, 1, 1, 1, 1)
        return [_uncolumns(dy * chosen, node.attrs, size)]

    return cols.max(0), backward


def _global_average_pool(node: Node, x: Array) -> tuple[Array, Backward]:
    count = np.float32(x.shape[2] * x.shape[3])
    return x.mean((2, 3), keepdims=True), lambda dy: [np.broadcast_to(dy / count, x.shape)]


def _flatten(node: Node, x: Array) -> tuple[Array, Backward]:
    return x.reshape(len(x), -1), lambda dy: [dy.reshape(x.shape)]


RULES: dict[str, Callable[..., tuple[Array, Backward]]] = {
    "Conv": _conv, "Gemm": _gemm, "Relu": _relu, "Clip": _clip, "Add": _add, "Concat": _concat,
    "AveragePool": _average_pool, "MaxPool": _max_pool, "GlobalAveragePool": _global_average_pool,
    "Flatten": _flatten,
}  # fmt: skip


class TrainingTape:
    """A float graph with trainable parameters: forward, backward, running statistics.

    parameters: {constant of the graph: float32 array}, changed by whoever trains; `store` writes them back.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.parameters: dict[Value, Array] = {v: v.array().astype(np.float32) for v in graph.constants}
        self.statistics: set[Value] = set()
        for node in graph.nodes:
            if node.op == "BatchNormalization":
                self.statistics.update((node.input(3), node.input(4)))
            elif node.op not in RULES:
                raise UnsupportedError("has no gradient rule here", where=str(node))
        self._steps: list[Step] = []

    def forward(self, x: Array, training: bool = False) -> Array:
        """The first output for a batch x of the first input; training: batch statistics, and a tape for `backward`."""
        data: dict[Value, Array] = {**self.parameters, self.graph.inputs[0]: x.astype(np.float32)}
        self._steps = []
        for node in self.graph.nodes:
            inputs = [data[v] for v in node.inputs if v is not None]
            if node.op == "BatchNormalization":
                y, backward = self._batch_norm(node, inputs, training)
            else:
                y, backward = RULES[node.op](node, *inputs)
            data[node.output] = y
            if training:
                self._steps.append((node, backward))
        return data[self.graph.outputs[0]]

    def backward(self, d_output: Array) -> dict[Value, Array]:
        """Gradients of the trainable parameters, from the gradient of the first output of the last `forward`."""
        grads: dict[Value, Array] = {self.graph.outputs[0]: d_output}
        for node, backward in reversed(self._steps):
            dy = grads.pop(node.output, None)
            if dy is None:
                continue
            for value, d in zip(node.inputs, backward(dy), strict=False):
                if value is not None and d is not None:
                    grads[value] = grads[value] + d if value in grads else d
        return {v: g for v, g in grads.items() if v in self.parameters and v not in self.statistics}

    def _batch_norm(self, node: Node, inputs: list[Array], training: bool) -> tuple[Array, Backward]:
        x, gamma, beta, mean, var = inputs
        if training:
            batch_mean, batch_var = x.mean((0, 2, 3)), x.var((0, 2, 3))
            keep = np.float32(STATISTICS_MOMENTUM)
            self.parameters[node.input(3)] = keep * mean + (1 - keep) * batch_mean
            self.parameters[node.input(4)] = keep * var + (1 - keep) * batch_var
            mean, var = batch_mean, batch_var
        inverse = (1 / np.sqrt(var + np.float32(node.attrs["epsilon"]))).reshape(1, -1, 1, 1)
        normal = (x - mean.reshape(1, -1, 1, 1)) * inverse
        slope = gamma.reshape(1, -1, 1, 1)

        def backward(dy: Array) -> list[Array | None]:
            d_gamma, d_beta = (dy * normal).sum((0, 2, 3)), dy.sum((0, 2, 3))
            count = np.float32(dy.size / dy.shape[1])
            pull = (d_beta.reshape(1, -1, 1, 1) + normal * d_gamma.reshape(1, -1, 1, 1)) / count
            return [slope * inverse * (dy - pull), d_gamma, d_beta, None, None]

        return normal * slope + beta.reshape(1, -1, 1, 1), backward

    def store(self) -> Graph:
        """The graph, its constants set to the parameters."""
        for value, array in self.parameters.items():
            value.data = array.astype(np.float32)
        return self.graph
