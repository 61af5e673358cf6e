"""Cubic and antialiased Resize: a product of matrices for each axis that changes."""

from __future__ import annotations

import numpy as np

from qir.graph import Graph, Node, Value
from qir.ops.resampling import Axis, by_matrix, outside, resize_matrix, resized_axes
from qir.types import Array

from ..report import PassReport
from ..rewriting.rewriter import replace, sweep


def resizes_to_products(graph: Graph, report: PassReport) -> None:
    """y = A x along an axis, A of `resize_matrix`, where the sizes are known."""
    for node in graph.nodes:
        if node.op != "Resize" or not by_matrix(node.attrs):
            continue
        axes = _axes(node)
        if isinstance(axes, str):
            report.missed("ResizeToMatMul", node.name, axes)
            continue
        x, old = node.input(0), node.output
        for axis in axes:
            x = _along(graph, node, x, axis.index, resize_matrix(node.attrs, axis).astype(np.float32))
        if replace(graph, old, x, fresh=bool(axes)):
            sweep(graph, [node])
            report.rewrote("ResizeToMatMul", node.name)


def _axes(node: Node) -> list[Axis] | str:
    """The axes that change, or why they are not known."""
    data: list[Array | None] = []
    for i in (1, 2, 3):
        value = node.optional(i)
        if value is not None and value.data is None:
            return f"{value.name!r} is no constant"
        data.append(None if value is None else value.data)
    shape, out = node.input(0).shape, node.output.shape
    sizes = [d if isinstance(d, int) else 1 for d in shape]
    if data[2] is not None and data[2].size == len(shape) and not all(isinstance(d, int) for d in shape):
        data[2] = np.where([isinstance(d, int) for d in shape], data[2], 1)
    axes = [a for a in resized_axes(node.attrs, sizes, *data) if a.size != a.out or a.scale != 1]
    for axis in axes:
        if not isinstance(shape[axis.index], int) or not isinstance(out[axis.index], int):
            return f"the size of axis {axis.index} is open"
        if outside(node.attrs, axis).any():
            return "it extrapolates beyond its input"
    return axes


def _along(graph: Graph, node: Node, x: Value, axis: int, matrix: Array) -> Value:
    """The matrix times one axis of x."""
    rank = x.type.rank
    stem = f"{node.output.name}.axis{axis}"
    if axis == rank - 2:
        return graph.add_node("MatMul", [graph.add_constant(f"{stem}.matrix", matrix), x], outputs=[stem]).output
    turned = graph.add_constant(f"{stem}.matrix", np.ascontiguousarray(matrix.T))
    if axis == rank - 1:
        return graph.add_node("MatMul", [x, turned], outputs=[stem]).output
    perm = [*(i for i in range(rank) if i != axis), axis]
    moved = graph.add_node("Transpose", [x], {"perm": perm}, outputs=[f"{stem}.last"]).output
    made = graph.add_node("MatMul", [moved, turned], outputs=[f"{stem}.product"]).output
    return graph.add_node("Transpose", [made], {"perm": [perm.index(i) for i in range(rank)]}, outputs=[stem]).output
