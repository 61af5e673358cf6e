"""Turns a graph into steps, one node (or one fused chain) after the other; holds where every value lives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qir.graph import Graph, Node, Value
from qir.ops import op_of
from qir.shapes import check_sizes
from qir.sizes import Sizes, dim_at
from qir.types import Array

from ...compile.tensors import Buffer, View, channels_last, dense_view, same_order
from ..kernels import record as r
from .steps import AnyStep, PythonStep, Step, constant, ref

WINDOWED = ("qir.Conv", "qir.SumPool", "MaxPool")


class Builder:
    """State of one compilation.

    sizes: what each symbol is.  keep: values that must exist in memory when the plan has run.  threads: how finely
    steps are cut.  packed: weights packed by earlier compilations of the same graph, by node name.
    """

    def __init__(
        self,
        graph: Graph,
        sizes: Sizes,
        keep: Iterable[Value],
        threads: int,
        packed: dict[str, Any],
        native: bool = True,
    ) -> None:
        check_sizes(graph, sizes)
        self.graph, self.sizes, self.threads, self.packed, self.native = graph, sizes, threads, packed, native
        self.keep = set(keep)
        self.steps: list[AnyStep] = []
        self.views: dict[Value, View] = {}
        self.residents: dict[Buffer, list[Value]] = {}
        self.done: set[Node] = set()
        self.converted: dict[tuple[Value, tuple[int, ...]], View] = {}
        self.outputs_taken: set[Value] = set()
        for value in graph.inputs:
            buffer = Buffer(0, f"input:{value.name}")
            self.views[value] = dense_view(self.shape(value), range(value.type.rank), value.dtype.numpy, buffer)

    # -- reading ------------------------------------------------------------------------------
    def shape(self, value: Value) -> tuple[int, ...]:
        return tuple(dim_at(d, self.sizes) for d in value.shape)

    def view(self, value: Value) -> View:
        """Where a value is; constants are brought in on first use."""
        if value not in self.views:
            data = np.ascontiguousarray(value.array())
            buffer = Buffer(data.nbytes, "constant", data)
            self.views[value] = dense_view(data.shape, range(data.ndim), data.dtype, buffer)
        return self.views[value]

    def ready(self, value: Value) -> bool:
        """Whether a value's bytes are complete after the steps so far (parts of a concatenation may not be)."""
        return value.data is not None or (
            value in self.views and (value.producer is None or value.producer in self.done)
        )

    def in_order(self, value: Value, order: Sequence[int], *, rows: bool = True) -> View:
        """The value in a memory order (and with collapsible rows), copied where it is not so already."""
        view = self.view(value)
        order = tuple(order)
        if same_order(view.logical_shape, view.order, order):
            same = view.reordered(order)
            if not rows or same.rows() is not None:
                return same
        key = (value, order)
        if key not in self.converted:
            if value.data is not None:
                memory = np.ascontiguousarray(np.transpose(value.data, order))
                buffer = Buffer(memory.nbytes, "constant", memory)
                self.converted[key] = dense_view(value.data.shape, order, memory.dtype, buffer)
            else:
                target = dense_view(view.logical_shape, order, view.dtype)
                self.copy(view.reordered(order), target, [])
                self.converted[key] = target
        return self.converted[key]

    def preferred_order(self, value: Value) -> tuple[int, ...]:
        rank = value.type.rank
        if rank >= 4 or any(n.op in WINDOWED for n, _ in value.uses()):
            return channels_last(rank)
        return tuple(range(rank))

    # -- writing ------------------------------------------------------------------------------
    def destination(self, value: Value, order: Sequence[int]) -> View:
        """A place for a value that a step is about to write: its part of a concatenation, or a new buffer."""
        order, shape = tuple(order), self.shape(value)
        view: View | None = None
        for node, index in value.uses():
            if self.native and node.op == "Concat" and shape:
                axis = node.attrs["axis"] % len(shape)
                if axis == order[-1]:
                    view = self._concat_slot(node, index, axis, order)
                    break
        view = view or dense_view(shape, order, value.dtype.numpy)
        self.alias(value, view)
        return view

    def _concat_slot(self, node: Node, index: int, axis: int, order: tuple[int, ...]) -> View:
        whole = self.views.get(node.output)
        if whole is None:
            whole = self.destination(node.output, order)
        whole = whole.reordered(order) if same_order(whole.logical_shape, whole.order, order) else whole
        start = sum(self.shape(node.input(i))[axis] for i in range(index))
        return whole.sliced(axis, start, self.shape(node.input(index))[axis])

    def alias(self, value: Value, view: View) -> None:
        """The value is a view of bytes that exist already."""
        self.views[value] = view
        self.residents.setdefault(view.buffer, []).append(value)

    def add(self, step: AnyStep) -> None:
        self.steps.append(step)

    def copy(self, source: View, target: View, nodes: list[str]) -> None:
        """A strided copy between views of the same logical shape."""
        if not self.native or source.dtype.itemsize > 4:
            self.add(PythonStep(lambda xs: [xs[0]], [source], [target], nodes, "Copy"))
            return
        source = source.reordered(target.order)
        shape, s, d = _merged(target.shape, source.strides, target.strides)
        step = Step(
            {
                r.OP: r.COPY, r.CHUNKS: self.chunks(math.prod(shape[:-1]), target.size), r.M_SRC: ref(source),
                r.M_DST: ref(target), r.M_SHAPE: constant(np.asarray(shape, np.int64)),
                r.M_SRC_STRIDES: constant(np.asarray(s, np.int64)), r.M_DST_STRIDES: constant(np.asarray(d, np.int64)),
                r.M_DTYPE: {1: 0, 2: 2, 4: 4}[target.dtype.itemsize], r.RANK: len(shape),
            },
            reads=[source], writes=[target], nodes=nodes, op="Copy",
        )  # fmt: skip
        self.add(step)

    def chunks(self, rows: int, elements: int, each: int = 16384) -> int:
        """How many parts a step of `rows` rows is cut into: enough to balance, none too small."""
        return max(1, min(rows, 4 * self.threads, elements // each))

    def fallback(self, node: Node) -> None:
        """The reference operator, on views."""
        operator, attrs = op_of(node.op), node.attrs
        present = [v for v in node.inputs if v is not None]
        slots = [None if v is None else present.index(v) for v in node.inputs]
        constants: list[Array | None] = [v.data for v in present]
        live = [v for v, data in zip(present, constants, strict=True) if data is None]

        def call(arrays: Sequence[Array]) -> Sequence[Array]:
            given = iter(arrays)
            values = [next(given) if data is None else data for data in constants]
            return operator.reference(attrs, *(None if s is None else values[s] for s in slots))

        reads = [self.view(v) for v in live]
        writes = [self.destination(v, self.preferred_order(v)) for v in node.outputs]
        self.add(PythonStep(call, reads, writes, [node.name], node.op))

    def build(self, emitters: dict[str, Callable[[Builder, Node], bool]]) -> None:
        """All nodes; an emitter that answers False leaves the node to the reference operator."""
        for node in self.graph.nodes:
            if node in self.done:
                continue
            empty = any(math.prod(self.shape(v)) == 0 for v in node.outputs)
            emit = emitters.get(node.op) if self.native and not empty else None
            if emit is None or not emit(self, node):
                self.fallback(node)
            self.done.add(node)

    def code(self, view: View) -> int:
        return r.DTYPE_CODE[view.dtype.name]

    def with_dtype(self, view: View, dtype: np.dtype[np.generic]) -> View:
        return replace(view, dtype=dtype)


def _merged(shape: Sequence[int], s: Sequence[int], d: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Adjacent axes that are one in both operands, merged; never empty."""
    out: list[tuple[int, int, int]] = []
    for n, a, b in zip(shape, s, d, strict=True):
        if n == 1:
            continue
        if out and out[-1][1] == n * a and out[-1][2] == n * b:
            out[-1] = (out[-1][0] * n, a, b)
        else:
            out.append((n, a, b))
    out = out or [(1, 1, 1)]
    # the longest axis with the densest target goes innermost only where it is there already: order is kept
    return [n for n, _, _ in out], [a for _, a, _ in out], [b for _, _, b in out]


NATIVE_DTYPES = ("uint8", "int8", "uint16", "int16", "int32")


def native(b: Builder, *values: Value) -> bool:
    return all(v.dtype.numpy.name in NATIVE_DTYPES for v in values)
