"""Shapes of a whole graph: binding inputs, propagating types, folding the subgraphs that compute shapes.

Exporters compute Reshape targets at run time: Shape -> Gather -> Unsqueeze -> Concat -> Reshape.  Such a value is a
constant, or follows open sizes in a way that the consumer can say without it (0 or -1 in a Reshape), or is written
anew as a few sizes of the graph's inputs.  All are found by evaluating at several sizes of each symbol.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from .errors import QirError, TypeInferenceError
from .graph import Graph, Node, Value
from .ops import op_of
from .ops.base import open_sizes, type_at
from .ops.intervals import at_sizes
from .ops.probing import KEPT, evaluate, known
from .ops.size_values import size_vector
from .sizes import Sizes, Symbol, canonical, dim_at, sizes_text, symbols_of, value_of
from .sizes.fitting import FEW, MANY, QUICK, fit, fit_floor, probe
from .types import Array, Dim, TensorType

INT64_MAX = 2**63 - 1


def bind(graph: Graph, shapes: Mapping[str, Sequence[Dim]]) -> None:
    """Give inputs the shapes `shapes` (ints, or symbols such as "N" for the batch) and re-infer every type.

    A symbol that becomes a number does so in every input.
    Raises TypeInferenceError: an unknown input, another rank, a size that contradicts a fixed one; and whatever the
    operators say to the new shapes.
    """
    numbers: dict[str, int] = {}
    for name, shape in shapes.items():
        value = next((v for v in graph.inputs if v.name == name), None)
        if value is None:
            names = ", ".join(repr(v.name) for v in graph.inputs)
            raise TypeInferenceError("is no input of the graph", where=f"input {name!r}", hint=f"inputs are {names}")
        if len(shape) != value.type.rank:
            raise TypeInferenceError(f"shape {list(shape)} for {value.type}", where=f"input {name!r}")
        for new, old in zip(shape, value.shape, strict=True):
            if isinstance(old, int) and new != old:
                raise TypeInferenceError(f"shape {list(shape)} contradicts {value.type}", where=f"input {name!r}")
            if isinstance(new, int) and new < 1:
                raise TypeInferenceError(f"shape {list(shape)} has a size below 1", where=f"input {name!r}")
            if isinstance(new, int) and old in graph.symbols:
                numbers[str(old)] = new
        value.type = replace(value.type, shape=tuple(shape))
    for value in graph.inputs:
        value.type = replace(value.type, shape=tuple(_bound(d, numbers) for d in value.shape))
        for dim in value.shape:
            for symbol in sorted(symbols_of(dim)):
                graph.symbols.setdefault(symbol, Symbol())
    propagate(graph)


def _bound(dim: Dim, numbers: Sizes) -> Dim:
    """A size with numbers for some symbols."""
    if isinstance(dim, int) or not symbols_of(dim) & set(numbers):
        return dim
    if symbols_of(dim) <= set(numbers):
        return value_of(dim, numbers)
    for symbol, number in numbers.items():
        dim = re.sub(rf"\b{symbol}\b", str(number), dim)
    return canonical(dim)


def propagate(graph: Graph) -> None:
    """Re-infer all types in topological order; quantization annotations stay.  Raises what `infer` raises."""
    for node in graph.nodes:
        for value, kind in zip(node.outputs, op_of(node.op).infer_types(node), strict=False):
            value.type = TensorType(kind.dtype, kind.shape, value.quant if value.quant else kind.quant)


def check_sizes(graph: Graph, sizes: Sizes) -> None:
    """That the types hold at these sizes of the symbols.  Raises TypeInferenceError naming the node where they do not.

    Expressions of sizes are found by trying a few; who feeds others looks once more.  Sums over open axes are proved
    again, for these.
    """
    if all(isinstance(d, int) for v in graph.inputs for d in v.shape):
        return
    for node in graph.nodes:
        op = op_of(node.op)
        if not open_sizes(op, node):
            continue
        for value, kind in zip(node.outputs, op.infer_at(node, sizes), strict=False):
            if tuple(dim_at(d, sizes) for d in value.shape) != kind.shape:
                told = f"output {value.name!r} is {kind} at {sizes_text(sizes)}, {value.type} was expected"
                raise TypeInferenceError(told, where=str(node))
        if op.accumulates and all(v is None or v.data is None for v in node.inputs[1:]):
            with at_sizes(sizes):
                for message in op.overflows(node):
                    raise TypeInferenceError(message, where=str(node))


MOST_SETTLED = 1 << 22
"""Elements of the largest tensor that `fixed` computes."""

SETTLED = "settled"
"""The table of the constants that `fixed` made."""


def fixed(graph: Graph, sizes: Sizes, keep: Sequence[str] = ()) -> Graph:
    """The graph at these sizes of its symbols: types without open sizes, what shapes alone decide as constants.

    Values keep their names, those of `keep` and the outputs exist; constants that were there are shared.  The graph
    itself where nothing in it reads a shape and only the batch is open.
    """
    if len(graph.symbols) == 1 and not any(op_of(n.op).reads_shape_only for n in graph.nodes):
        return graph
    twin = graph.clone()
    for value in twin.values:
        value.type = type_at(value.type, sizes)
    outputs = len(twin.outputs)
    twin.set_outputs([*twin.outputs, *(twin.value(n) for n in keep)])
    memo: dict[Value, Array | None] = {}
    table = twin.tables.setdefault(SETTLED, {})
    for node in twin.nodes:
        if op_of(node.op).reads_shape_only or all(v is None or v.data is not None for v in node.inputs):
            evaluate(node, sizes, memo, most=MOST_SETTLED)
            for value in node.outputs:
                data = memo[value]
                if data is not None and (value.uses() or value.is_output):
                    _make_constant(twin, value, data)
                    table[value.name.removesuffix(".folded")] = True
    twin.prune()
    twin.set_outputs(twin.outputs[:outputs])
    return twin


ORDER = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
"""What a size compares to is known at the sizes that were tried, and perhaps not at others."""


def fold_shapes(graph: Graph) -> int:
    """Make constants of all values that constants and shapes determine; returns how many nodes went.

    Values are evaluated at several sizes of each symbol: what is equal becomes a constant, what follows a symbol is
    written into its consumer (Reshape, Expand, Slice, Resize) in a form that does not need it, where there is one, or
    else as sizes of the graph's inputs.  Linear in the nodes.
    """
    before = len(graph)
    probes = Probes(graph)
    for node in graph.nodes:
        for value in node.outputs:
            if not (value.uses() or value.is_output):
                continue
            data = probes.constant(value)
            if data is not None:
                _make_constant(graph, value, data)
    for node in graph.nodes:
        computed = [i for i in op_of(node.op).shape_inputs if (v := node.optional(i)) is not None and v.data is None]
        rewrite = _REWRITES.get(node.op)
        if rewrite is not None and any(v is not None and v.data is None for v in node.inputs[1:]):
            rewrite(graph, node, probes)
        for index in computed:
            _say_sizes(graph, node, index, probes)
    graph.prune()
    return before - len(graph)


class Probes:
    """Every value that constants and shapes determine, at several sizes of the symbols."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sizes = [probe(graph.symbols, p) for p in range(MANY)]
        self.memos: list[dict[Value, Array | None]] = [{} for _ in QUICK]
        for node in graph.nodes:
            if node.op in KEPT:
                continue
            for point, memo in zip(QUICK, self.memos, strict=True):
                evaluate(node, self.sizes[point], memo)
            if node.op in ORDER and not all(v is None or v.data is not None or self._equal(v) for v in node.inputs):
                for memo in self.memos:
                    memo[node.output] = None

    def at(self, value: Value) -> list[Array | None]:
        """What the value is at the points QUICK."""
        return [value.data if value.data is not None else memo.get(value) for memo in self.memos]

    def _equal(self, value: Value) -> bool:
        first, *others = self.at(value)
        return first is not None and all(
            o is not None and o.shape == first.shape and np.array_equal(o, first, equal_nan=first.dtype.kind == "f")
            for o in others
        )

    def constant(self, value: Value) -> Array | None:
        """The value's data where they are the same at all sizes."""
        return self.at(value)[0] if self._equal(value) else None

    def dims(self, value: Value, most: int = 8) -> list[Dim] | None:
        """The elements of a small integer tensor as sizes; None where they are none."""
        first = self.at(value)[0]
        if first is None or first.dtype.kind != "i" or first.size > most or first.ndim > 1:
            return None
        found: list[Dim] = []
        for i in range(first.size):
            dim = self._dim(value, i)
            if dim is None:
                return None
            found.append(dim)
        return found

    def _dim(self, value: Value, index: int) -> Dim | None:
        few = self._elements(value, index, FEW)
        if few is None:
            return None
        if len(set(few)) == 1:
            return few[0]
        symbols = list(self.graph.symbols)
        if (found := fit(few, [(s, [z[s] for z in self.sizes[:FEW]]) for s in symbols])) is not None:
            return found
        many = self._elements(value, index, MANY)
        return None if many is None else fit_floor(many, [(s, [z[s] for z in self.sizes]) for s in symbols])

    def _elements(self, value: Value, index: int, points: int) -> list[int] | None:
        try:
            data = [known(value, sizes, {}) for sizes in self.sizes[:points]]
        except QirError:
            return None
        if any(d is None or d.size <= index for d in data):
            return None
        return [int(np.ravel(d)[index]) for d in data if d is not None]


def _make_constant(graph: Graph, value: Value, data: Array) -> None:
    """Replace a computed value by a constant of the same name."""
    constant = graph.add_constant(f"{value.name}.folded", np.ascontiguousarray(data).reshape(data.shape), value.dtype)
    graph.replace_uses(value, constant)
    graph.swap_names(value, constant)


def _set_constant(graph: Graph, node: Node, index: int, data: Sequence[int]) -> None:
    old = node.inputs[index]
    name = old.name if old is not None else f"{node.name}.{index}"
    graph.set_input(node, index, graph.add_constant(f"{name}.static", np.asarray(data, dtype=np.int64)))


def _set_sizes(graph: Graph, node: Node, index: int, dims: Sequence[Dim]) -> bool:
    """Make an input these sizes: a constant, or computed from the graph's inputs.  False where they do not tell."""
    if all(isinstance(d, int) for d in dims):
        _set_constant(graph, node, index, [int(d) for d in dims])
        return True
    vector = size_vector(graph, dims)
    if vector is not None:
        graph.set_input(node, index, vector)
    return vector is not None


def _say_sizes(graph: Graph, node: Node, index: int, probes: Probes) -> None:
    """A vector of sizes that is still computed: from the graph's inputs, whatever it was computed from."""
    value = node.optional(index)
    if value is None or value.data is not None or value.type.rank != 1 or value.name.startswith("sizes."):
        return
    dims = probes.dims(value)
    if dims is not None:
        _set_sizes(graph, node, index, dims)


def _reshape(graph: Graph, node: Node, probes: Probes) -> None:
    """Fixed sizes as numbers, open ones as 0 where they keep their place, else one -1, and more as they are."""
    x, out = node.input(0).shape, node.output.shape
    if any(d == 0 for d in out):
        return
    keeps = [i < len(x) and x[i] == d and not node.attrs["allowzero"] for i, d in enumerate(out)]
    target: list[Dim] = [d if isinstance(d, int) else 0 if k else d for d, k in zip(out, keeps, strict=True)]
    first = next((i for i, d in enumerate(target) if isinstance(d, str)), None)
    if first is not None:
        target[first] = -1
    _set_sizes(graph, node, 1, target)


def _expand(graph: Graph, node: Node, probes: Probes) -> None:
    """1 where the axis has its size already."""
    x, out = node.input(0).shape, node.output.shape
    padded = [1] * (len(out) - len(x)) + list(x)
    _set_sizes(graph, node, 1, [1 if a == b else b for a, b in zip(padded, out, strict=True)])


def _slice(graph: Graph, node: Node, probes: Probes) -> None:
    """An end that is the axis's own size, whatever that is, is "to the end"."""
    shape, ends = node.input(0).shape, node.optional(2)
    axes = node.optional(3)
    if ends is None or ends.data is not None or (axes is not None and axes.data is None):
        return
    found = [None if d is None else d.reshape(-1).tolist() for d in probes.at(ends)]
    if any(f is None for f in found):
        return
    along = list(range(len(found[0] or ()))) if axes is None else axes.array().reshape(-1).tolist()
    points = [probes.sizes[p] for p in QUICK]
    dims = probes.dims(ends)
    target: list[Dim] = []
    for i, axis in enumerate(along):
        values = [f[i] for f in found if f is not None]
        if len(set(values)) == 1:
            target.append(values[0])
        elif all(v >= dim_at(shape[axis], sizes) for v, sizes in zip(values, points, strict=True)):
            target.append(INT64_MAX)
        elif dims is not None:
            target.append(dims[i])
        else:
            return
    _set_sizes(graph, node, 2, target)


def _resize(graph: Graph, node: Node, probes: Probes) -> None:
    """Sizes of the axes that change, `axes` naming them; scales where each is a whole multiple."""
    if node.attrs["axes"] is not None or node.optional(3) is None:
        return
    x, out = node.input(0).shape, node.output.shape
    changed = [i for i, (a, b) in enumerate(zip(x, out, strict=True)) if a != b] or [len(x) - 1]
    sizes = [out[i] for i in changed]
    if all(isinstance(d, int) for d in sizes):
        node.attrs["axes"] = changed
        _set_constant(graph, node, 3, [int(d) for d in sizes])
        return
    points = [probes.sizes[p] for p in QUICK]
    ratios = [{dim_at(out[i], z) / dim_at(x[i], z) for z in points} for i in changed]
    if all(len(r) == 1 and next(iter(r)).is_integer() for r in ratios):
        node.attrs["axes"] = changed
        scales = graph.add_constant(f"{node.name}.scales", np.asarray([r.pop() for r in ratios], np.float32))
        graph.set_input(node, 3, None)
        graph.set_input(node, 2, scales)
    elif _set_sizes(graph, node, 3, sizes):
        node.attrs["axes"] = changed


# one function an operator: no trait
_REWRITES: dict[str, Callable[[Graph, Node, Probes], None]] = {
    "Reshape": _reshape, "Expand": _expand, "Slice": _slice, "Resize": _resize,
}  # fmt: skip
