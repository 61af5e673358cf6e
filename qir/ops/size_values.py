"""Open sizes as values: int64 vectors computed from the shapes of the graph's inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..graph import Graph, Stage, Value
from ..sizes import solve_terms
from ..types import Dim


def size_vector(graph: Graph, dims: Sequence[Dim]) -> Value | None:
    """int64 (len(dims),): the sizes, from constants and the shapes of the inputs; None where those do not tell."""
    name = f"sizes.{','.join(map(str, dims))}"
    if name in graph:
        return graph.value(name)
    parts: list[Value] = []
    run: list[int] = []

    def close() -> None:
        if run:
            parts.append(graph.add_constant("sizes.numbers", np.asarray(run, np.int64)))
            run.clear()

    for dim in dims:
        if isinstance(dim, int):
            run.append(dim)
            continue
        value = _value(graph, dim)
        if value is None:
            return None
        close()
        parts.append(value)
    close()
    if len(parts) == 1:
        return parts[0]
    return graph.add_node("Concat", parts, {"axis": 0}, outputs=[name]).output


def symbol_value(graph: Graph, symbol: str) -> Value | None:
    """int64 (1,): a symbol, read off an axis of an input; None where no axis is it."""
    for value in graph.inputs:
        if symbol in value.shape:
            axis = value.shape.index(symbol)
            quantized = (n.output for n, i in value.uses() if n.op == "QuantizeLinear" and i == 0)
            if graph.stage is Stage.INTEGER:
                value = next(quantized, value)
            for node, _ in value.uses():
                if node.op == "Shape" and (node.attrs["start"], node.attrs["end"]) == (axis, axis + 1):
                    return node.output
            attrs = {"start": axis, "end": axis + 1}
            return graph.add_node("Shape", [value], attrs, outputs=[f"sizes.{symbol}"]).output
    return None


def _value(graph: Graph, dim: str) -> Value | None:
    """int64 (1,) for a sum of products."""
    name = f"sizes.{dim}"
    if name in graph and graph.value(name).producer is not None:
        return graph.value(name)

    def number(n: int) -> Value:
        return graph.add_constant("sizes.number", np.asarray([n], np.int64))

    def node(op: str, a: Value, b: Value) -> Value:
        return graph.add_node(op, [a, b], outputs=["sizes.part"]).output

    total: Value | None = None
    for factors, coefficient in solve_terms(dim):
        product: Value | None = None
        for factor in factors:
            if isinstance(factor, str):
                value = symbol_value(graph, factor)
            else:
                inner = _value(graph, str(factor[0]))
                value = None if inner is None else node("Div", inner, number(factor[1]))
            if value is None:
                return None
            product = value if product is None else node("Mul", product, value)
        if product is None:
            product = number(coefficient)
        elif coefficient != 1:
            product = node("Mul", product, number(coefficient))
        total = product if total is None else node("Add", total, product)
    if total is not None and total.producer is not None and total.name.startswith("sizes.part") and name not in graph:
        graph.rename(total, name)
    return total
