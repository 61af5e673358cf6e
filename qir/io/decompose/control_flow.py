"""If and Loop whose conditions and counts are constants: the branch that is taken, the body written out.

What stays is refused by `check_structure`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper as oh

from ...errors import UnsupportedError
from ...types import Array
from ..structure import STANDARD, node_name
from ..tensors import tensor_array

MOST_NODES = 100_000
"""Nodes that constant control flow may write out."""
LONGEST_TENSOR = 64
"""A condition or a count has at most so many elements."""


def unfold_control_flow(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with constant If and Loop nodes written out; `proto` itself where there is none.

    Raises UnsupportedError past MOST_NODES.
    """
    if not any(n.op_type in ("If", "Loop") and n.domain in STANDARD for n in proto.graph.node):
        return proto
    new = onnx.ModelProto()
    new.CopyFrom(proto)
    work = _Unfolding(new)
    nodes = [out for node in proto.graph.node for out in work.expand(node)]
    del new.graph.node[:]
    new.graph.node.extend(nodes)
    return new


class _Unfolding:
    """State of one run: names taken, constants known, nodes written."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        versions = [o.version for o in model.opset_import if o.domain in STANDARD]
        self.opset = int(max(versions, default=0))
        self.names = {n for node in _nodes(model.graph) for n in (*node.input, *node.output)}
        self.names |= {v.name for v in (*model.graph.input, *model.graph.initializer)}
        self.constants: dict[str, onnx.TensorProto] = {i.name: i for i in model.graph.initializer}
        self.written = 0

    def expand(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The node, or what it stands for."""
        self.written += 1
        if self.written > MOST_NODES:
            raise UnsupportedError(f"stands for more than {MOST_NODES:,} nodes", where=node_name(node))
        if node.domain not in STANDARD:
            return [node]
        if node.op_type == "Constant":
            for attr in node.attribute:
                if attr.name == "value" and node.output:
                    self.constants[node.output[0]] = attr.t
        made = self._branch(node) if node.op_type == "If" else self._loop(node) if node.op_type == "Loop" else None
        return [node] if made is None else made

    def known(self, name: str) -> Array | None:
        """A small constant's value."""
        tensor = self.constants.get(name)
        if tensor is None or int(np.prod([int(d) for d in tensor.dims], dtype=np.int64)) > LONGEST_TENSOR:
            return None
        return tensor_array(tensor, None, f"tensor {name!r}")[0]

    def fresh(self, base: str) -> str:
        name, n = base, 0
        while name in self.names:
            n += 1
            name = f"{base}_{n}"
        self.names.add(name)
        return name

    def _branch(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        condition = self.known(node.input[0]) if node.input else None
        if condition is None or condition.size != 1:
            return None
        body = _subgraph(node, "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch")
        if body is None or len(body.output) != len(node.output):
            return None
        return self._inline(body, {}, [*node.output], node_name(node))

    def _loop(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        body = _subgraph(node, "body")
        count = self.known(node.input[0]) if node.input and node.input[0] else None
        start = self.known(node.input[1]) if len(node.input) > 1 and node.input[1] else np.asarray(True)
        if body is None or count is None or count.size != 1 or start is None or not bool(start.reshape(-1).all()):
            return None
        carried = [*node.input[2:]]
        scans = len(body.output) - 1 - len(carried)
        if len(body.input) != 2 + len(carried) or scans < 0 or not _goes_on(body):
            return None
        times = int(count.reshape(-1)[0])
        if self.written + times * len(body.node) > MOST_NODES:
            raise UnsupportedError(f"stands for more than {MOST_NODES:,} nodes", where=node_name(node))
        if times < 1 and scans:
            return None
        made: list[onnx.NodeProto] = []
        rows: list[list[str]] = [[] for _ in range(scans)]
        for i in range(max(times, 0)):
            given = {
                body.input[0].name: self._constant(np.asarray(i, np.int64)),
                body.input[1].name: self._constant(np.asarray(True)),
                **dict(zip((v.name for v in body.input[2:]), carried, strict=True)),
            }
            results = [self.fresh(f"{o.name}/{i}") for o in body.output]
            made += self._inline(body, given, results, node_name(node))
            carried = results[1 : 1 + len(carried)]
            for row, name in zip(rows, results[1 + len(carried) :], strict=True):
                row.append(name)
        finals = [oh.make_node("Identity", [c], [o]) for c, o in zip(carried, node.output, strict=False) if o]
        for row, output in zip(rows, node.output[len(carried) :], strict=False):
            if output:
                finals += self._stack(row, output)
        return made + finals

    def _stack(self, row: Iterable[str], output: str) -> list[onnx.NodeProto]:
        """Results of each pass, along a new first axis."""
        axes, made, parts = self._constant(np.asarray([0], np.int64)), [], []
        for name in row:
            parts.append(self.fresh(f"{name}/row"))
            if self.opset < 13:
                made.append(oh.make_node("Unsqueeze", [name], [parts[-1]], axes=[0]))
            else:
                made.append(oh.make_node("Unsqueeze", [name, axes], [parts[-1]]))
        return [*made, oh.make_node("Concat", parts, [output], axis=0)]

    def _constant(self, array: Array) -> str:
        name = self.fresh("control/constant")
        self._keep(onnx.numpy_helper.from_array(array, name))
        return name

    def _keep(self, tensor: onnx.TensorProto) -> None:
        self.graph.initializer.append(tensor)
        self.constants[tensor.name] = tensor

    def _inline(
        self, body: onnx.GraphProto, given: Mapping[str, str], results: list[str], where: str
    ) -> list[onnx.NodeProto]:
        """The body's nodes under names of their own; its outputs under the names `results`."""
        table = dict(given)
        for tensor in body.initializer:
            table[tensor.name] = self.fresh(f"{where}/{tensor.name}")
            kept = onnx.TensorProto()
            kept.CopyFrom(tensor)
            kept.name = table[tensor.name]
            self._keep(kept)
        inner = {name for node in body.node for name in node.output if name}
        wanted = {o.name: r for o, r in zip(body.output, results, strict=True)}
        for name in inner:
            table[name] = wanted[name] if name in wanted else self.fresh(f"{where}/{name}")
        made: list[onnx.NodeProto] = []
        for node in body.node:
            made += self.expand(_renamed(node, table))
        for output, result in zip(body.output, results, strict=True):
            source = table.get(output.name, output.name)
            if source != result:  # an outer tensor, an input, or one that is two outputs
                made.append(oh.make_node("Identity", [source], [result]))
        return made


def _renamed(node: onnx.NodeProto, table: Mapping[str, str]) -> onnx.NodeProto:
    """A copy with names of the table, in its subgraphs too, where they do not define the name themselves."""
    new = onnx.NodeProto()
    new.CopyFrom(node)
    for names in (new.input, new.output):
        for i, name in enumerate(names):
            names[i] = table.get(name, name)
    for attr in new.attribute:
        for graph in (attr.g, *attr.graphs) if attr.HasField("g") or attr.graphs else ():
            own = {v.name for v in (*graph.input, *graph.initializer)} | {o for n in graph.node for o in n.output}
            rest = {k: v for k, v in table.items() if k not in own}
            nodes = [_renamed(n, rest) for n in graph.node]
            del graph.node[:]
            graph.node.extend(nodes)
            for output in graph.output:
                output.name = rest.get(output.name, output.name)
    return new


def _subgraph(node: onnx.NodeProto, name: str) -> onnx.GraphProto | None:
    return next((a.g for a in node.attribute if a.name == name and a.type == onnx.AttributeProto.GRAPH), None)


def _goes_on(body: onnx.GraphProto) -> bool:
    """Whether a loop's body always asks for the next pass."""
    name, before = body.output[0].name, body.input[1].name
    constants = {i.name: i for i in body.initializer}
    makers = {o: n for n in body.node for o in n.output}
    for _ in range(len(body.node) + 1):
        if name == before:
            return True
        if name in constants:
            return bool(tensor_array(constants[name], None, f"tensor {name!r}")[0].all())
        node = makers.get(name)
        if node is None:
            return False
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            return value is not None and bool(tensor_array(value, None, f"tensor {name!r}")[0].all())
        if node.op_type not in ("Identity", "Cast") or not node.input:
            return False
        name = node.input[0]
    return False


def _nodes(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    """All nodes, those of subgraphs included."""
    stack = [graph]
    while stack:
        for node in stack.pop().node:
            yield node
            stack += [g for a in node.attribute for g in ((a.g,) if a.HasField("g") else ()) + tuple(a.graphs)]
