"""Applying rules: the right-hand side into the graph, and the driver that goes on until nothing matches."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from qir.errors import GraphError, QuantizationError
from qir.graph import Graph, Node, Value
from qir.ops import op_of
from qir.types import Array

from ..report import PassReport
from .matcher import Matched, Miss, find
from .rules import CompiledRule, Rule, compile_rule
from .terms import Apply


def rewrite(graph: Graph, rules: Sequence[type[Rule]], report: PassReport, *, patience: int = 20) -> int:
    """Apply `rules` (earlier ones first) until none matches; returns how many rewrites.

    A worklist: a node is looked at when it is new or when something within reach of the patterns changed, so the
    work is linear in the graph.  Raises GraphError, naming the last rule, after patience * nodes rewrites.
    """
    compiled = [compile_rule(r) for r in rules]
    by_root: dict[str, list[CompiledRule]] = {}
    for c in compiled:
        for op in dict.fromkeys(p.op for p in c.patterns):
            by_root.setdefault(op, []).append(c)
    reach = max((p.depth() for c in compiled for p in c.patterns), default=1)
    queue = deque(n for n in graph.nodes if n.op in by_root)
    waiting = set(queue)
    misses: dict[tuple[str, Node], str] = {}
    limit, done = patience * (len(graph) + 10), 0
    while queue:
        node = queue.popleft()
        waiting.discard(node)
        for c in by_root[node.op]:
            if node not in graph:
                break
            found = find(c, graph, node)
            touched = apply(graph, c, found) if isinstance(found, Matched) else found
            if isinstance(touched, Miss):
                if touched.near and c.rule.near:
                    misses[(c.name, node)] = touched.reason
                else:
                    misses.pop((c.name, node), None)
                continue
            done += 1
            report.rewrote(c.name, node.name)
            if done > limit:
                raise GraphError(f"does not settle after {done} rewrites", where=f"rule {c.name} at {node}")
            for near in neighbourhood(touched, reach):
                if near.op in by_root and near not in waiting:
                    waiting.add(near)
                    queue.append(near)
            break
    for (name, node), reason in misses.items():
        if node in graph:
            report.missed(name, node.name, reason)
    return done


def neighbourhood(touched: Sequence[Value], reach: int) -> list[Node]:
    """Nodes whose patterns may see the touched values: producers, and users through single-use values."""
    seen: dict[Node, None] = {}
    for value in touched:
        if value.producer is not None:
            seen[value.producer] = None
        front = [value]
        for _ in range(reach):
            users = [n for v in front for n, _ in v.uses()]
            seen.update(dict.fromkeys(users))
            front = [n.output for n in dict.fromkeys(users) if n.output.use_count <= 2]
    return list(seen)


def apply(graph: Graph, compiled: CompiledRule, found: Matched) -> list[Value] | Miss:
    """Put the right-hand side in place; returns the values around which new matches may be, or why it cannot."""
    match, old = found.match, found.match.root.output
    built = ReplacementBuilder(graph, found)
    new = built.value(compiled.rule.rhs(**found.arguments), "value")
    if (new.dtype, new.shape) != (old.dtype, old.shape):
        if new.producer is not None:
            sweep(graph, [new.producer])
        return Miss(f"the replacement is {new.type}, not {old.type}")
    if not replace(graph, old, new, fresh=bool(built.nodes)):
        return Miss(f"{old.name!r} is a graph output and would become {new.name!r}, which has a name of its own")
    compiled.rule.applied(match, found.arguments, new)
    names = {n: n.name for n in match.nodes}
    lost = sweep(graph, [match.root])
    for node, name in built.names():
        if name in names.values() and not graph.has_node_name(name):
            graph.rename_node(node, name)
    return [new, *(v for v in lost if v.name in graph and v.use_count <= 2), *(n.output for n in built.nodes)]


def replace(graph: Graph, old: Value, new: Value, *, fresh: bool) -> bool:
    """Uses of `old` become uses of `new`, which takes the name of `old` where it is new or `old` is an output.

    Returns False, and changes nothing, where `new` cannot take the name of an output.
    """
    was_output = old.is_output
    if was_output and not fresh and (new.is_output or new.producer is None):
        return False
    graph.replace_uses(old, new)
    if fresh or was_output:
        graph.swap_names(new, old)
    return True


def sweep(graph: Graph, nodes: Sequence[Node]) -> list[Value]:
    """Remove nodes that are unused, then what only they used; returns values that lost a use and are still there."""
    stack, lost = list(nodes), dict[Value, None]()
    while stack:
        node = stack.pop()
        if node not in graph or any(v.use_count or v.is_output for v in node.outputs):
            continue
        inputs = [v for v in dict.fromkeys(node.inputs) if v is not None]
        graph.remove_node(node)
        for value in inputs:
            if value.producer is not None:
                stack.append(value.producer)
                lost[value] = None
            elif value.is_constant and not value.use_count and not value.is_output:
                graph.remove_constant(value)
    return list(lost)


class ReplacementBuilder:
    """Terms of a right-hand side into nodes and constants."""

    def __init__(self, graph: Graph, found: Matched) -> None:
        self.graph, self.found = graph, found
        self.nodes: list[Node] = []
        self._counterparts: dict[Node, str] = {}
        self._made: dict[int, Value] = {}

    def names(self) -> list[tuple[Node, str]]:
        """New nodes and the names they inherit."""
        return list(self._counterparts.items())

    def value(self, term: Any, role: str) -> Value:
        """The value a term stands for."""
        if isinstance(term, Value):
            return term
        if isinstance(term, Apply):
            if id(term) not in self._made:
                self._made[id(term)] = self._node(term)
            return self._made[id(term)]
        if id(term) in self.found.sources:
            return self.found.sources[id(term)]
        return self.graph.add_constant(f"{self.found.match.root.output.name}.{role}", self._data(term))

    def _data(self, term: Any) -> Array:
        data = np.asarray(term)
        kind = self.found.match.root.output.dtype
        if data.dtype.kind == "f" and kind.is_float:
            with np.errstate(over="ignore"):
                narrow = data.astype(kind.numpy)
            if not np.array_equal(np.isfinite(narrow), np.isfinite(data)):
                root = self.found.match.root
                raise QuantizationError(f"its constants, joined, do not fit {kind}", where=str(root))
            return narrow
        return data

    def _node(self, term: Apply) -> Value:
        match = self.found.match
        counterpart = next((n for n in match.nodes if n.op == term.op), None)
        attrs = {**(counterpart.attrs if counterpart is not None else {}), **term.attrs}
        roles = [name.strip("?*") for name in op_of(term.op).inputs.split()]
        inputs = [None if a is None else self.value(a, roles[min(i, len(roles) - 1)]) for i, a in enumerate(term.args)]
        while inputs and inputs[-1] is None:
            inputs.pop()
        node = self.graph.add_node(term.op, inputs, attrs, outputs=[f"{match.root.output.name}.new"])
        self._counterparts[node] = (counterpart or match.root).name
        self.nodes.append(node)
        return node.output
