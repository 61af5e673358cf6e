"""Is this protobuf a graph at all?  Checked before anything is built from it."""

from __future__ import annotations

import onnx

from ..errors import ModelError, UnsupportedError
from .tensors import ir_dtype

OLDEST, NEWEST = 7, 28
"""Opsets that are read."""

STANDARD = ("", "ai.onnx")

_ATTR = onnx.AttributeProto
PLAIN_ATTRS = frozenset({_ATTR.FLOAT, _ATTR.INT, _ATTR.STRING, _ATTR.TENSOR, _ATTR.FLOATS, _ATTR.INTS, _ATTR.STRINGS})


def opset_of(model: onnx.ModelProto) -> int:
    """The standard domain's opset.  Raises ModelError when there is none, UnsupportedError outside 7..28."""
    versions = [o.version for o in model.opset_import if o.domain in STANDARD]
    if not versions:
        raise ModelError("imports no standard opset", where="model")
    version = int(max(versions))
    if version < OLDEST:
        raise UnsupportedError(
            f"opset {version} is older than {OLDEST}", where="model", hint="convert it with onnx.version_converter"
        )
    if version > NEWEST:
        raise UnsupportedError(f"opset {version} is newer than {NEWEST}", where="model", hint="export to opset 21")
    return version


def check_structure(model: onnx.ModelProto) -> list[int]:
    """Indices of the nodes in topological order.

    Raises ModelError: nothing in it, a name defined twice or nowhere, a cycle, no outputs; UnsupportedError:
    control flow, sparse tensors, sequences, attributes that hold graphs.
    """
    graph = model.graph
    if not graph.node and not graph.output:
        raise ModelError("holds no graph", where="model", hint="is it an ONNX file?")
    if not graph.output:
        raise ModelError("has no outputs", where="model")
    _check_text(model)
    if graph.sparse_initializer:
        raise UnsupportedError("sparse initializers are not supported", where="model")
    for tensor in graph.initializer:
        ir_dtype(tensor.data_type, f"initializer {tensor.name!r}")
    constants = _unique([i.name for i in graph.initializer], "initializer")
    inputs = _unique([i.name for i in graph.input], "input")
    known = constants | inputs
    producers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        _check_node(node)
        for name in node.output:
            if name and (name in producers or name in known):
                raise ModelError(f"tensor {name!r} is defined twice", where=node_name(node))
            if name:
                producers[name] = index
    for node in graph.node:
        for name in node.input:
            if name and name not in known and name not in producers:
                raise ModelError(f"input {name!r} is not defined anywhere", where=node_name(node))
    for output in _unique([o.name for o in graph.output], "output"):
        if output not in known and output not in producers:
            raise ModelError("is not computed by any node", where=f"output {output!r}")
    return _topological(list(graph.node), producers)


def node_name(node: onnx.NodeProto) -> str:
    label = node.name or (node.output[0] if node.output else "?")
    return f"{node.op_type} node {label!r}"


def _unique(names: list[str], what: str) -> set[str]:
    seen: set[str] = set()
    for name in names:
        if not name:
            raise ModelError("has no name", where=what)
        if name in seen:
            raise ModelError("is defined twice", where=f"{what} {name!r}")
        seen.add(name)
    return seen


def _check_text(model: onnx.ModelProto) -> None:
    """Names are text; protobuf hands out bytes where they are no UTF-8."""
    graph = model.graph
    names: list[object] = [graph.name, *(v.name for v in (*graph.input, *graph.output, *graph.initializer))]
    names += [d for i in graph.input for d in (s.dim_param for s in i.type.tensor_type.shape.dim)]
    names += [o.domain for o in model.opset_import]
    names += [part for p in model.metadata_props for part in (p.key, p.value)]
    for node in graph.node:
        names += [node.op_type, node.name, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
    for name in names:
        if not isinstance(name, str):
            raise ModelError(f"the name {name!r} is no UTF-8", where="model")


def _check_node(node: onnx.NodeProto) -> None:
    where = node_name(node)
    if not node.op_type:
        raise ModelError("has no operator", where=where)
    if not any(node.output):
        raise ModelError("has no outputs", where=where)
    given = [a.name for a in node.attribute]
    if len(set(given)) < len(given):  # which one counts, each reader decides for itself
        twice = next(name for name in given if given.count(name) > 1)
        raise ModelError(f"attribute {twice!r} is given twice", where=where)
    for attr in node.attribute:
        if attr.type in (_ATTR.GRAPH, _ATTR.GRAPHS):
            raise UnsupportedError("control flow (a subgraph) is not supported", where=where,
                                   hint="export the model without If, Loop and Scan")  # fmt: skip
        if attr.ref_attr_name:
            raise ModelError(f"attribute {attr.name!r} is one of a function's, but this is none", where=where)
        if attr.type not in PLAIN_ATTRS:
            raise UnsupportedError(f"attribute {attr.name!r} is of an unsupported kind", where=where)
        if attr.type == _ATTR.TENSOR:
            ir_dtype(attr.t.data_type, where)


def _topological(nodes: list[onnx.NodeProto], producers: dict[str, int]) -> list[int]:
    """Files should be sorted; those that are not are, as long as there is no cycle."""
    before = [{producers[n] for n in node.input if n in producers} for node in nodes]
    if all(max(b, default=-1) < i for i, b in enumerate(before)):
        return list(range(len(nodes)))
    users: dict[int, list[int]] = {}
    for i, needed in enumerate(before):
        for p in needed:
            users.setdefault(p, []).append(i)
    waiting = [len(b) for b in before]
    ready = [i for i, n in enumerate(waiting) if n == 0]
    order: list[int] = []
    for i in ready:  # grows while it is read
        order.append(i)
        for user in users.get(i, []):
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    if len(order) < len(nodes):
        stuck = next(i for i, n in enumerate(waiting) if n > 0)
        raise ModelError("is part of a cycle", where=node_name(nodes[stuck]))
    return order
