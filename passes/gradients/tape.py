"""Reverse-mode differentiation of a float (or QDQ) graph, in NumPy.

    tape = Tape(graph)
    outputs = tape.forward({"x": x})
    grads = tape.backward({"logits": d_logits}, ["conv1.w", "x"])

The forward pass is the operators' own `reference`; the rules are in `gradient_rules`,
`gradient_normalization` and `gradient_windows`.
Integer and comparison operators (`Op.flat`) pass no gradient on; quantizers pass it straight through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from qir.errors import GraphError, QirError, UnsupportedError
from qir.graph import Graph, Node, Value
from qir.ops import op_of
from qir.types import Array

from .gradient_normalization import RULES  # one table, with the rules of all three modules in it


class Tape:
    """One evaluation of a graph, kept so that gradients can be pulled back through it.

    dtype: float32 or float64; float constants and feeds are converted to it.
    """

    def __init__(self, graph: Graph, dtype: type[np.floating] = np.float32) -> None:
        self.graph, self.dtype = graph, dtype
        self.values: dict[Value, Array] = {}

    def forward(self, feeds: Mapping[str, Array], parameters: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """The graph's outputs.  parameters: other data for constants, by name, for this evaluation only.

        Raises GraphError on a missing feed or a name that is no value, and what the operators raise.
        """
        given = {**feeds, **(parameters or {})}
        self.values = {}
        for name, array in given.items():
            self.values[self.graph.value(name)] = self._cast(array)
        for value in self.graph.inputs:
            if value not in self.values:
                raise GraphError("is not fed", where=f"input {value.name!r}")
        for node in self.graph.nodes:
            results = op_of(node.op).reference(node.attrs, *(self._get(v) for v in node.inputs))
            for value, result in zip(node.outputs, results, strict=False):
                self.values[value] = result
        return {v.name: some_value(self._get(v)) for v in self.graph.outputs}

    def _cast(self, array: Array) -> Array:
        a = np.asarray(array)
        return a.astype(self.dtype, copy=False) if a.dtype.kind == "f" else a

    def _get(self, value: Value | None) -> Array | None:
        if value is None:
            return None
        if value not in self.values and value.data is not None:
            self.values[value] = self._cast(value.data)
        return self.values[value]

    def array(self, name: str) -> Array:
        """A value of the last `forward`, by name."""
        return some_value(self._get(self.graph.value(name)))

    def backward(self, seeds: Mapping[str, Array], wanted: Iterable[str]) -> dict[str, Array]:
        """d(sum of seed * value)/d(name) for each name in `wanted`; zeros where nothing depends on it.

        seeds: gradients of values of the graph (not only outputs), in their shapes.
        Raises UnsupportedError naming an operator without a rule.
        """
        targets = [self.graph.value(name) for name in wanted]
        touched = _downstream(self.graph, targets)
        grads: dict[Value, Array] = {}
        for name, seed in seeds.items():
            grads[self.graph.value(name)] = np.asarray(seed, dtype=self.dtype)
        keep = set(targets)
        for node in reversed(self.graph.nodes):
            ds = [grads.get(v) for v in node.outputs]
            if all(d is None for d in ds) or not any(v in touched for v in node.outputs):
                continue
            for value, d in zip(node.inputs, self._pull(node, ds, touched), strict=False):
                if value is None or d is None or value not in touched:
                    continue
                grads[value] = grads[value] + d if value in grads else d
            for value in node.outputs:
                if value not in keep:
                    grads.pop(value, None)
        return {
            v.name: grads[v] if v in grads else np.zeros(some_value(self._get(v)).shape, self.dtype) for v in targets
        }

    def _pull(self, node: Node, ds: list[Array | None], touched: set[Value]) -> list[Array | None]:
        if op_of(node.op).flat:
            return []
        if node.op not in RULES:
            raise UnsupportedError(f"operator {node.op} has no gradient", where=str(node))
        xs = [self._get(v) for v in node.inputs]
        ys = [some_value(self._get(v)) for v in node.outputs]
        needed = [v is not None and v in touched for v in node.inputs]
        try:
            return RULES[node.op](node.attrs, xs, ys, ds, needed)
        except (ValueError, IndexError) as error:
            raise QirError(f"gradient failed: {error}", where=str(node)) from error


def some_value(array: Array | None) -> Array:
    assert array is not None
    return array


def _downstream(graph: Graph, targets: Iterable[Value]) -> set[Value]:
    """The targets and all that depends on them."""
    found = set(targets)
    for node in graph.nodes:
        if any(v in found for v in node.inputs if v is not None):
            found.update(node.outputs)
    return found
