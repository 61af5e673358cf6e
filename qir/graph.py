"""Graph, Node and Value: identity equality, use-def kept by the methods that mutate and by nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from .errors import GraphError
from .sizes import BATCH, Symbol, symbols_of
from .types import Array, DType, QuantParams, TensorType


class Stage(IntEnum):
    """How far a graph has come; passes say which stage they require and which they ensure."""

    FLOAT = 0
    FOLDED = 1
    QDQ = 2
    INTEGER = 3


class Value:
    """A tensor: a graph input, a constant (`data` is set) or one output of `producer`."""

    __slots__ = ("_uses", "data", "graph", "name", "output_of", "type")

    def __init__(self, graph: Graph, name: str, type: TensorType, data: Array | None = None) -> None:
        self.graph, self.name, self.type, self.data = graph, name, type, data
        self.output_of: Node | None = None
        self._uses: dict[tuple[Node, int], None] = {}

    @property
    def producer(self) -> Node | None:
        return self.output_of

    @property
    def is_constant(self) -> bool:
        return self.data is not None

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[int | str, ...]:
        return self.type.shape

    @property
    def quant(self) -> QuantParams | None:
        return self.type.quant

    def uses(self) -> tuple[tuple[Node, int], ...]:
        """Snapshot of (node, input index), in the order in which they were made."""
        return tuple(self._uses)

    @property
    def use_count(self) -> int:
        """How many inputs of nodes it feeds (being a graph output is no use), without a snapshot."""
        return len(self._uses)

    @property
    def is_output(self) -> bool:
        return self in self.graph._outputs

    def array(self) -> Array:
        """The constant's data.  Raises GraphError when the value is not a constant."""
        if self.data is None:
            raise GraphError("is not a constant", where=f"value {self.name!r}")
        return self.data

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


class Node:
    """One operator application. `op` is the registry's key ("Conv", "qir.Conv"); attributes are plain values."""

    __slots__ = ("attrs", "graph", "inputs", "name", "op", "outputs")

    def __init__(self, graph: Graph, op: str, name: str, attrs: Mapping[str, Any]) -> None:
        self.graph, self.op, self.name = graph, op, name
        self.attrs: dict[str, Any] = dict(attrs)
        self.inputs: tuple[Value | None, ...] = ()
        self.outputs: tuple[Value, ...] = ()

    def input(self, index: int) -> Value:
        """A required input.  Raises GraphError where it is absent."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise GraphError(f"input {index} is missing", where=str(self))
        return value

    def optional(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    def __str__(self) -> str:
        return f"{self.op} node {self.name!r}"

    def __repr__(self) -> str:
        ins = ", ".join("-" if v is None else f"%{v.name}" for v in self.inputs)
        return f"{', '.join(f'%{v.name}' for v in self.outputs)} = {self.op}({ins})"


class Graph:
    """A directed acyclic graph of nodes over values, in one stage.

    `nodes` is a topological order (stable: insertion order where the data allow), computed when asked for
    and kept until the next mutation; take a snapshot before a loop that rewrites.
    """

    def __init__(self, name: str = "graph", stage: Stage = Stage.FLOAT) -> None:
        self.name, self.stage = name, stage
        self.metadata: dict[str, str] = {}
        self.tables: dict[str, dict[str, Any]] = {}  # facts a pass leaves for later ones: table -> value name -> fact
        self.symbols: dict[str, Symbol] = {BATCH: Symbol()}
        """Open sizes of the inputs, by what their types call them."""
        self.inputs: list[Value] = []
        self._outputs: list[Value] = []
        self._nodes: dict[Node, None] = {}
        self._values: dict[str, Value] = {}
        self._order: tuple[Node, ...] | None = ()
        self._counter: dict[str, int] = {}
        self._node_names: set[str] = set()

    # -- reading ------------------------------------------------------------------------------
    @property
    def outputs(self) -> tuple[Value, ...]:
        return tuple(self._outputs)

    @property
    def nodes(self) -> tuple[Node, ...]:
        if self._order is None:
            self._order = self._topological()
        return self._order

    @property
    def values(self) -> tuple[Value, ...]:
        """All values, in the order in which they were made."""
        return tuple(self._values.values())

    @property
    def constants(self) -> tuple[Value, ...]:
        return tuple(v for v in self._values.values() if v.is_constant)

    def value(self, name: str) -> Value:
        try:
            return self._values[name]
        except KeyError:
            raise GraphError(f"no value named {name!r}", where=f"graph {self.name!r}") from None

    def __contains__(self, item: str | Node) -> bool:
        """Whether there is a value of this name, or whether this node is (still) part of the graph."""
        return item in self._nodes if isinstance(item, Node) else item in self._values

    def has_node_name(self, name: str) -> bool:
        """Whether a node is called so."""
        return name in self._node_names

    def __len__(self) -> int:
        return len(self._nodes)

    def fresh(self, base: str) -> str:
        """A value name not yet taken."""
        if base not in self._values:
            return base
        n = self._counter.get(base, 0)
        while f"{base}_{(n := n + 1)}" in self._values:
            pass
        self._counter[base] = n
        return f"{base}_{n}"

    # -- building -----------------------------------------------------------------------------
    def _new_value(self, name: str, type: TensorType, data: Array | None = None) -> Value:
        if name in self._values:
            raise GraphError(f"value {name!r} exists already", where=f"graph {self.name!r}")
        value = Value(self, name, type, data)
        self._values[name] = value
        return value

    def add_input(self, name: str, type: TensorType) -> Value:
        value = self._new_value(name, type)
        for dim in type.shape:
            for symbol in sorted(symbols_of(dim)):
                self.symbols.setdefault(symbol, Symbol(long=type.rank >= 4))
        self.inputs.append(value)
        return value

    def add_constant(
        self, name: str, data: Array, dtype: DType | None = None, quant: QuantParams | None = None
    ) -> Value:
        """A constant under a fresh name made from `name`; `dtype` only where it is not data's own (int4)."""
        data = np.asarray(data)
        kind = dtype or DType.of(data)
        if data.dtype != kind.numpy:
            raise GraphError(f"{data.dtype} data for a {kind} constant", where=f"constant {name!r}")
        return self._new_value(self.fresh(name), TensorType(kind, tuple(data.shape), quant), data)

    def add_node(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attrs: Mapping[str, Any] | None = None,
        *,
        outputs: Sequence[str] | int = 1,
        name: str | None = None,
        quant: QuantParams | None = None,
        types: Sequence[TensorType] | None = None,
    ) -> Node:
        """Append a node; output types come from the operator's `infer` unless `types` gives them.

        outputs: names (made fresh) or a count.  quant: annotation of the first output.
        Raises UnsupportedError (unknown operator), TypeInferenceError, GraphError (foreign input).
        """
        from .ops import least_outputs, op_of  # the registry needs Node for its signatures

        operator = op_of(op)
        for value in inputs:
            if value is not None and value.graph is not self:
                raise GraphError(f"value {value.name!r} belongs to another graph", where=f"{op} node")
        wanted = [outputs] if isinstance(outputs, str) else outputs
        names = list(wanted) if not isinstance(wanted, int) else []
        count = wanted if isinstance(wanted, int) else len(names)
        stem = name or (names[0] if names else op.rsplit(".", 1)[-1].lower())
        names = names or [stem if i == 0 else f"{stem}_{i}" for i in range(count)]
        node = Node(self, op, self._fresh_node_name(stem), operator.complete(attrs or {}, f"{op} node {stem!r}"))
        self._set_inputs(node, tuple(inputs))
        operator.settle(node)
        try:
            result = list(types) if types is not None else operator.infer_types(node)
            if not least_outputs(op, len(result)) <= count <= len(result):
                raise GraphError(f"{count} outputs wanted, the operator gives {len(result)}", where=str(node))
        except Exception:
            self._set_inputs(node, ())
            raise
        if quant is not None:
            result[0] = replace(result[0], quant=quant)
        node.outputs = tuple(self._new_value(self.fresh(n), t) for n, t in zip(names, result, strict=False))
        for value in node.outputs:
            value.output_of = node
        self._nodes[node] = None
        self._order = None
        return node

    def _fresh_node_name(self, base: str) -> str:
        name, n = base, self._counter.get("node:" + base, 0)
        while name in self._node_names:
            n += 1
            name = f"{base}_{n}"
        self._counter["node:" + base] = n
        self._node_names.add(name)
        return name

    # -- mutating -----------------------------------------------------------------------------
    def _set_inputs(self, node: Node, inputs: tuple[Value | None, ...]) -> None:
        for i, value in enumerate(node.inputs):
            if value is not None:
                value._uses.pop((node, i), None)
        node.inputs = inputs
        for i, value in enumerate(inputs):
            if value is not None:
                value._uses[(node, i)] = None
        self._order = None

    def set_input(self, node: Node, index: int, value: Value | None) -> None:
        """Point one input of a node at another value."""
        inputs = list(node.inputs) + [None] * (index + 1 - len(node.inputs))
        inputs[index] = value
        self._set_inputs(node, tuple(inputs))

    def set_outputs(self, outputs: Iterable[Value]) -> None:
        self._outputs = list(outputs)

    def replace_uses(self, old: Value, new: Value, *, only: Iterable[Node] | None = None) -> None:
        """Every use of `old` (graph outputs too, unless `only` names nodes) becomes a use of `new`."""
        keep = None if only is None else set(only)
        for node, i in old.uses():
            if keep is None or node in keep:
                self.set_input(node, i, new)
        if keep is None:
            self._outputs = [new if v is old else v for v in self._outputs]

    def rename(self, value: Value, name: str) -> None:
        if name == value.name:
            return
        if name in self._values:
            raise GraphError(f"value {name!r} exists already", where=f"graph {self.name!r}")
        self._values = {(name if v is value else k): v for k, v in self._values.items()}
        value.name = name

    def swap_names(self, a: Value, b: Value) -> None:
        """Exchange two values' names (a graph output keeps its public name this way)."""
        a.name, b.name = b.name, a.name
        self._values[a.name], self._values[b.name] = a, b

    def rename_node(self, node: Node, name: str) -> None:
        """Give a node a name that is free, or that is its own."""
        if name == node.name:
            return
        if name in self._node_names:
            raise GraphError(f"node {name!r} exists already", where=f"graph {self.name!r}")
        self._node_names.discard(node.name)
        self._node_names.add(name)
        node.name = name

    def remove_constant(self, value: Value) -> None:
        """Remove a constant that nothing uses.  Raises GraphError otherwise."""
        if not value.is_constant or value._uses or value.is_output:
            raise GraphError("is no unused constant", where=f"value {value.name!r}")
        del self._values[value.name]

    def remove_node(self, node: Node) -> None:
        """Remove a node none of whose outputs is used.  Raises GraphError before anything is changed."""
        for value in node.outputs:
            if value._uses or value in self._outputs:
                raise GraphError(f"output {value.name!r} is still used", where=str(node))
        self._set_inputs(node, ())
        for value in node.outputs:
            del self._values[value.name]
        del self._nodes[node]
        self._node_names.discard(node.name)
        self._order = None

    def prune(self) -> int:
        """Remove nodes and constants that no output needs; returns how many nodes went."""
        live = ancestors(self._outputs)
        dead = [n for n in reversed(self.nodes) if n not in live]
        for node in dead:
            self.remove_node(node)
        kept = set(self._outputs)
        for value in self.constants:
            if not value._uses and value not in kept:
                del self._values[value.name]
        return len(dead)

    def _topological(self) -> tuple[Node, ...]:
        waiting = {n: len({v.output_of for v in n.inputs if v is not None and v.output_of}) for n in self._nodes}
        rank = {n: i for i, n in enumerate(self._nodes)}
        ready = [rank[n] for n, w in waiting.items() if w == 0]
        by_rank = list(self._nodes)
        heapify(ready)
        order: list[Node] = []
        while ready:
            node = by_rank[heappop(ready)]
            order.append(node)
            for user in dict.fromkeys(u for v in node.outputs for u, _ in v._uses):
                waiting[user] -= 1
                if waiting[user] == 0:
                    heappush(ready, rank[user])
        if len(order) != len(self._nodes):
            stuck = next(n for n in self._nodes if waiting[n] > 0)
            raise GraphError("is part of a cycle", where=str(stuck))
        return tuple(order)

    # -- copying and text ---------------------------------------------------------------------
    def clone(self) -> Graph:
        """A deep copy of the structure; constant arrays are shared (passes replace them, never write into them)."""
        new = Graph(self.name, self.stage)
        new.metadata, new.symbols = dict(self.metadata), dict(self.symbols)
        new.tables = {name: dict(table) for name, table in self.tables.items()}
        table: dict[Value, Value] = {}
        for value in self._values.values():
            table[value] = new._new_value(value.name, value.type, value.data)
        new.inputs = [table[v] for v in self.inputs]
        for node in self.nodes:
            copied = Node(new, node.op, node.name, node.attrs)
            new._node_names.add(node.name)
            new._set_inputs(copied, tuple(None if v is None else table[v] for v in node.inputs))
            copied.outputs = tuple(table[v] for v in node.outputs)
            for value in copied.outputs:
                value.output_of = copied
            new._nodes[copied] = None
        new._outputs = [table[v] for v in self._outputs]
        new._counter = dict(self._counter)
        new._order = None
        return new

    def __str__(self) -> str:
        from .text import format_graph

        return format_graph(self)

    @staticmethod
    def parse(text: str, constants: Mapping[str, Array] | None = None) -> Graph:
        """Read back what `str(graph)` wrote; elided constants are taken from `constants` by name."""
        from .text_parser import parse_graph

        return parse_graph(text, constants or {})


def ancestors(values: Iterable[Value]) -> set[Node]:
    """Nodes that the values depend on, their producers included."""
    found: set[Node] = set()
    stack = [v.output_of for v in values]
    while stack:
        node = stack.pop()
        if node is None or node in found:
            continue
        found.add(node)
        stack += [v.output_of for v in node.inputs if v is not None]
    return found
