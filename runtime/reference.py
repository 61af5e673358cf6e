"""The meaning of a graph: every operator's NumPy `reference`, in topological order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qir.errors import BackendError, QirError
from qir.graph import Graph, Node, Value, ancestors
from qir.ops import op_of
from qir.types import Array

from .backend import Backend


class Reference(Backend):
    """Executes a graph of any stage; slow and clear.  Values are dropped after their last use."""

    name = "reference"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = graph.nodes

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Arrays by name.  Raises BackendError naming the node whose operator failed."""
        wanted = [self.graph.value(n) for n in outputs] if outputs is not None else list(self.graph.outputs)
        last = last_uses(self.nodes, wanted)
        live: dict[Value, Array] = {v: feeds[v.name] for v in self.graph.inputs}
        for value in wanted:
            if value.data is not None:
                live[value] = value.data
        needed = ancestors(wanted)
        for node in self.nodes:
            if node not in needed:
                continue
            args = [None if v is None else v.data if v.data is not None else live[v] for v in node.inputs]
            for value, result in zip(node.outputs, self._step(node, args), strict=False):
                live[value] = result
            for value in (*node.inputs, *node.outputs):
                if value is not None and last.get(value) is node:
                    live.pop(value, None)
        return {v.name: live[v] for v in wanted}

    @staticmethod
    def _step(node: Node, args: list[Array | None]) -> tuple[Array, ...]:
        try:
            with np.errstate(all="ignore"):
                return op_of(node.op).reference(node.attrs, *args)
        except QirError as error:
            if error.where:
                raise
            raise type(error)(str(error), where=str(node)) from error
        except (ValueError, IndexError, TypeError, ArithmeticError) as error:
            raise BackendError(f"failed while running: {error}", where=str(node)) from error


def last_uses(nodes: Sequence[Node], kept: Sequence[Value]) -> dict[Value, Node]:
    """The node after which a value is dead; values in `kept` and constants never are."""
    last: dict[Value, Node] = {}
    for node in nodes:
        for value in (*node.outputs, *node.inputs):
            if value is not None and value.data is None:
                last[value] = node
    for value in kept:
        last.pop(value, None)
    return last
