"""Shapes of a whole graph: binding inputs, propagating types, folding the subgraphs that compute shapes.

Exporters compute Reshape targets at run time: Shape -> Gather -> Unsqueeze -> Concat -> Reshape.  With every size but
the batch known, such a value is a constant, or follows the batch in a way that the consumer can say without it
(0 or -1 in a Reshape).  Both are found by evaluating at two batch sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .errors import TypeInferenceError
from .graph import Graph, Node, Value
from .ops import op_of
from .ops.base import BATCHES, dim_at
from .ops.probing import KEPT, evaluate
from .types import Array, Dim, TensorType

INT64_MAX = 2**63 - 1


def bind(graph: Graph, shapes: Mapping[str, Sequence[Dim]]) -> None:
    """Give inputs the shapes `shapes` (ints, or "N" for the batch) and re-infer every type.

    Raises TypeInferenceError: an unknown input, another rank, a size that contradicts a fixed one; and whatever the
    operators say to the new shapes.
    """
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
        value.type = TensorType(value.dtype, tuple(shape), value.quant)
    propagate(graph)


def propagate(graph: Graph) -> None:
    """Re-infer all types in topological order; quantization annotations stay.  Raises what `infer` raises."""
    for node in graph.nodes:
        for value, kind in zip(node.outputs, op_of(node.op).infer_types(node), strict=False):
            value.type = TensorType(kind.dtype, kind.shape, value.quant if value.quant else kind.quant)


def fold_shapes(graph: Graph) -> int:
    """Make constants of all values that constants and shapes determine; returns how many nodes went.

    Values are evaluated at two batch sizes: what is equal becomes a constant, what follows the batch is written into
    its consumer (Reshape, Expand, Slice, Resize) in a form that does not need it.  Linear in the nodes.
    """
    before = len(graph)
    probes = tuple(_evaluate_all(graph, n) for n in BATCHES)
    for node in graph.nodes:
        for value in node.outputs:
            pair = [p.get(value) for p in probes]
            if pair[0] is None or pair[1] is None or not (value.uses() or value.is_output):
                continue
            if pair[0].shape == pair[1].shape and np.array_equal(pair[0], pair[1], equal_nan=pair[0].dtype.kind == "f"):
                _make_constant(graph, value, pair[0])
    for node in graph.nodes:
        rewrite = _REWRITES.get(node.op)
        if rewrite is not None and any(v is not None and v.data is None for v in node.inputs[1:]):
            rewrite(graph, node, lambda v: (probes[0].get(v), probes[1].get(v)))
    graph.prune()
    return before - len(graph)


def _evaluate_all(graph: Graph, batch: int) -> dict[Value, Array | None]:
    """Every value that constants and shapes determine, at one batch size."""
    memo: dict[Value, Array | None] = {}
    for node in graph.nodes:
        if node.op not in KEPT:
            evaluate(node, batch, memo)
    return memo


def _make_constant(graph: Graph, value: Value, data: Array) -> None:
    """Replace a computed value by a constant of the same name."""
    constant = graph.add_constant(f"{value.name}.folded", np.ascontiguousarray(data).reshape(data.shape), value.dtype)
    graph.replace_uses(value, constant)
    graph.swap_names(value, constant)


Probes = Callable[[Value], "tuple[Array | None, Array | None]"]


def _set_constant(graph: Graph, node: Node, index: int, data: Sequence[int]) -> None:
    old = node.inputs[index]
    name = old.name if old is not None else f"{node.name}.{index}"
    graph.set_input(node, index, graph.add_constant(f"{name}.static", np.asarray(data, dtype=np.int64)))


def _reshape(graph: Graph, node: Node, probes: Probes) -> None:
    """Fixed sizes as numbers, the batch as 0 where it keeps its place, else one -1."""
    x, out = node.input(0).shape, node.output.shape
    target = [
        d if isinstance(d, int) else 0 if i < len(x) and x[i] == d and not node.attrs["allowzero"] else -1
        for i, d in enumerate(out)
    ]
    if target.count(-1) > 1 or any(d == 0 for d in out):
        return
    _set_constant(graph, node, 1, target)


def _expand(graph: Graph, node: Node, probes: Probes) -> None:
    """1 where the axis has its size already.  An axis that is expanded to the batch stays computed."""
    x, out = node.input(0).shape, node.output.shape
    padded = [1] * (len(out) - len(x)) + list(x)
    target = [1 if a == b else b for a, b in zip(padded, out, strict=True)]
    if all(isinstance(d, int) for d in target):
        _set_constant(graph, node, 1, [int(d) for d in target])


def _slice(graph: Graph, node: Node, probes: Probes) -> None:
    """An end that is the axis's own size, whatever the batch, is "to the end"."""
    shape = node.input(0).shape
    known = {i: probes(v) for i, v in enumerate(node.inputs) if i and v is not None and v.data is None}
    axes = node.optional(3)
    for index, (a, b) in known.items():
        if a is None or b is None or index != 2 or (axes is not None and axes.data is None):
            continue
        along = list(range(a.size)) if axes is None else axes.array().reshape(-1).tolist()
        ends: list[int] = []
        for axis, p, q in zip(along, a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True):
            if p == q:
                ends.append(p)
            elif p >= dim_at(shape[axis], BATCHES[0]) and q >= dim_at(shape[axis], BATCHES[1]):
                ends.append(INT64_MAX)
            else:
                break
        if len(ends) == a.size:
            _set_constant(graph, node, 2, ends)


def _resize(graph: Graph, node: Node, probes: Probes) -> None:
    """Sizes of the axes that change, `axes` naming them."""
    if node.attrs["axes"] is not None or node.optional(3) is None:
        return
    x, out = node.input(0).shape, node.output.shape
    changed = [i for i, (a, b) in enumerate(zip(x, out, strict=True)) if a != b] or [len(x) - 1]
    sizes = [out[i] for i in changed]
    if all(isinstance(d, int) for d in sizes):
        node.attrs["axes"] = changed
        _set_constant(graph, node, 3, [int(d) for d in sizes])


# one function an operator: no trait
_REWRITES: dict[str, Callable[[Graph, Node, Probes], None]] = {
    "Reshape": _reshape, "Expand": _expand, "Slice": _slice, "Resize": _resize,
}  # fmt: skip
