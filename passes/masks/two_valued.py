"""Tensors that hold a few known numbers, chosen by booleans: masks, before and after they become numbers.

A tensor is *tabled* where each element is a function of at most `MOST` booleans: `table[i]` is the number where bit k
of `i` is what `bases[k]` holds.  A boolean tensor is tabled over itself; a constant of two numbers over one comparison;
`1 - m`, `(1 - m) * c`, Where, Cast, Not, comparisons and whatever moves elements follow.  An input of the graph that
is not boolean is tabled as if it held zeros and ones: only who multiplies it by -10000 takes it at its word.
Nothing is added to the graph until a boolean is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qir.graph import Graph, Node, Value
from qir.ops import op_of
from qir.types import Array, DType

from .tables import MOST, ZERO, Base, Tabled, combine

DROPS = -1e3
"""What adds this or less to a score drops it: exp(-1000) is 0, and exporters write -1e4, -9999, -65504, -inf ..."""

DEEPEST = 64
"""Movements in a row that are followed."""

ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Neg": np.negative, "Max": np.maximum,
    "Min": np.minimum, "Sum": lambda *xs: sum(xs), "Abs": np.abs, "Identity": np.positive, "Dropout": np.positive,
    "Log": np.log,
}  # fmt: skip
COMPARISONS: dict[str, Callable[..., Any]] = {
    "Equal": np.equal, "Less": np.less, "LessOrEqual": np.less_equal, "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal, "Not": np.logical_not,
}  # fmt: skip


class TwoValued:
    """What is tabled in a graph, and the booleans made of it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tables: dict[Value, Tabled | None] = {}
        self.made: dict[Any, Value] = {}
        self.at_its_word: dict[Value, Tabled] = {}
        self.assumed: dict[str, None] = {}
        for node in graph.nodes:
            for index, value in enumerate(node.outputs):
                self.tables[value] = self._of_node(node, index, value)

    def of(self, value: Value | None) -> Tabled | None:
        """The table of a value, or None."""
        if value is None:
            return None
        if value not in self.tables:
            self.tables[value] = self._of_leaf(value)
        return self.tables[value]

    def condition(self, value: Value) -> Tabled | None:
        """The table of a boolean that decides what a mask drops: inputs that it compares are taken as 0 or 1."""
        return self.at_its_word.get(value) or self.of(value)

    def _of_leaf(self, value: Value) -> Tabled | None:
        if value.data is None:
            kind = "is" if value.dtype is DType.BOOL else "one"
            return Tabled((Base(kind, value, assumes=kind == "one"),), (0.0, 1.0))
        flat = np.asarray(value.data).reshape(-1)
        if flat.size == 0 or flat.dtype.kind not in "fiub":
            return None
        low, high = float(flat.min()), float(flat.max())
        if not ((flat == low) | (flat == high)).all():
            return None
        if low == high:
            return Tabled((), (low,))
        if value.dtype is DType.BOOL:
            return Tabled((Base("is", value),), (0.0, 1.0))
        return Tabled((Base("constant", value, high),), (low, high))

    def _of_node(self, node: Node, index: int, value: Value) -> Tabled | None:
        found = self._derived(node, index)
        if found is not None and (len(found.bases) > MOST or np.isnan(found.table).any()):
            found = None
        if value.dtype is DType.BOOL and found is None:
            return Tabled((Base("is", value),), (0.0, 1.0))
        return found

    def _derived(self, node: Node, index: int) -> Tabled | None:
        """The table of a node's output, where those of its inputs tell."""
        op, inputs = node.op, [v for v in node.inputs if v is not None]
        tables = [self.of(v) for v in (inputs[:1] if op == "Dropout" or op_of(op).moves else inputs)]
        if node.outputs[index].dtype is DType.BOOL and (op_of(op).moves or op in ("Trilu", "ConstantOfShape")):
            return None  # a boolean already
        if op == "ConstantOfShape":
            return Tabled((Base("filled", node=node, always=True),), (_fill(node),) * 2)
        if not tables or any(t is None for t in tables):
            return None
        known = [t for t in tables if t is not None]
        to_bool = op == "Cast" and node.attrs["to"] == DType.BOOL
        if op in COMPARISONS or to_bool:
            result = combine(COMPARISONS.get(op, lambda x: x != 0), *known)
            if op == "Not" or self._reads_mask(node):
                return result
            if inputs[0].dtype.is_float and (to_bool or known[1] == ZERO):
                self.at_its_word[node.output] = result
            return None  # a boolean of integers or inputs is computed as it stands
        if op == "Where":
            if any(min(t.values) <= DROPS for t in known[1:]) and (told := self.condition(inputs[0])) is not None:
                known[0] = told
            return combine(lambda c, a, b: np.where(c != 0, a, b), *known)
        if op == "Cast":
            whole = not DType(node.attrs["to"]).is_float
            return known[0].map(np.trunc) if whole else known[0]
        if op in ARITHMETIC and len(known) == len(inputs[: len(known)]):
            return combine(ARITHMETIC[op], *known)
        if op == "Trilu":
            return self._triangle(node, known[0])
        if op_of(op).moves and op != "Pad":
            return self._moved(node, index, known[0])
        return None

    def _reads_mask(self, node: Node) -> bool:
        """Whether a comparison is of reals that are tabled, and of no input that is only taken as 0 or 1."""
        tables = [self.of(v) for v in node.inputs if v is not None and not v.is_constant]
        real = any(v is not None and v.dtype.is_float for v in node.inputs)
        return real and not any(b.assumes for t in tables if t is not None for b in t.bases)

    def _moved(self, node: Node, index: int, x: Tabled) -> Tabled | None:
        """Elements moved: a boolean of x is moved likewise."""
        values = x.values
        if len(values) > 2:
            return None
        base = _moved_base(node, index, x.map(lambda t: t == values[-1]))
        return None if base is None else Tabled((base,), (values[0], values[-1]))

    def _triangle(self, node: Node, x: Tabled) -> Tabled | None:
        """Trilu fills with zeros: one of the two numbers has to be zero."""
        others = [v for v in x.values if v != 0]
        if len(others) > 1:
            return None
        base = _moved_base(node, 0, x.map(lambda t: t != 0), always=False)
        return None if base is None else Tabled((base,), (0.0, others[0] if others else 0.0))

    # -- booleans in the graph ----------------------------------------------------------------
    def boolean(self, x: Tabled) -> Value | None:
        """A boolean tensor that is true where x's table is not 0; None where its shape cannot be kept."""
        key = ("expression", x)
        if key not in self.made:
            holds = np.asarray(x.table) != 0
            shapes = [b for b in x.bases if b.always] if holds.all() else []
            terms = [self._base(b) for b in shapes[:1] or x.bases]
            if any(t is None for t in terms):
                return None
            known = [t for t in terms if t is not None]
            self.made[key] = known[0] if shapes else self._expression(known, holds)
        return self.made[key]

    def _expression(self, terms: Sequence[Value], holds: Array) -> Value:
        """Booleans of which a table is true: a product, a sum, or a sum of products."""
        needed = [k for k in range(len(terms)) if not np.array_equal(*_halves(holds, k))]
        if not needed and terms:  # of one value, in the shape of its terms
            needed = [0]
        if not needed:
            return self.graph.add_constant("keep", np.asarray(bool(holds.all())))
        small = holds[[sum(((i >> j) & 1) << k for j, k in enumerate(needed)) for i in range(1 << len(needed))]]
        chosen = [terms[k] for k in needed]
        true, false = np.flatnonzero(small), np.flatnonzero(~small)
        if len(false) == 1:
            return self._joined("Or", [self._literal(t, not (false[0] >> j) & 1) for j, t in enumerate(chosen)])
        if not len(true) or not len(false):
            t = chosen[0]
            return self._joined("Or" if len(true) else "And", [t, self._literal(t, False)])
        rows = [self._joined("And", [self._literal(t, bool((i >> j) & 1)) for j, t in enumerate(chosen)]) for i in true]
        return self._joined("Or", rows)

    def _literal(self, term: Value, positive: bool) -> Value:
        if positive:
            return term
        if term.producer is not None and term.producer.op == "Not":
            return term.producer.input(0)
        if term.data is not None:
            return self._once(("not", term), lambda: self.graph.add_constant(f"{term.name}.not", ~term.array()))
        return self._once(("not", term), lambda: self._node("Not", [term]))

    def _joined(self, op: str, terms: Sequence[Value]) -> Value:
        total = terms[0]
        for term in terms[1:]:
            total = self._once((op, total, term), lambda a=total, b=term: self._node(op, [a, b]))
        return total

    def _base(self, base: Base) -> Value | None:
        if base not in self.made:
            value = self._make(base)
            if value is None:
                return None
            self.made[base] = value
        return self.made[base]

    def _make(self, base: Base) -> Value | None:
        g, value, node = self.graph, base.value, base.node
        if base.kind == "constant" and value is not None:
            return g.add_constant(f"{value.name}.is", np.asarray(value.array() == base.number))
        if base.kind == "one" and value is not None:
            self.assumed[value.name] = None
            if value.dtype.is_float:
                half = g.add_constant("half", np.asarray(0.5, value.dtype.numpy))
                return self._node("Greater", [value, half])
            return self._node("Cast", [value], to="bool")
        if base.kind == "filled" and node is not None:
            return self._node("ConstantOfShape", list(node.inputs), value=np.asarray([True]))
        if node is not None and base.inner is not None:
            inner = self._filled(node.input(0)) if not base.inner.bases else self.boolean(base.inner)
            if inner is None or inner.shape != node.input(0).shape:
                return None
            made = g.add_node(node.op, [inner, *node.inputs[1:]], dict(node.attrs), outputs=len(node.outputs))
            return made.outputs[base.output]
        return value

    def _filled(self, like: Value) -> Value | None:
        """True in the shape of a constant."""
        sizes = [d for d in like.shape if isinstance(d, int)]
        return self.graph.add_constant("keep", np.ones(sizes, bool)) if len(sizes) == len(like.shape) else None

    def _node(self, op: str, inputs: Sequence[Value | None], **attrs: Any) -> Value:
        return self.graph.add_node(op, inputs, attrs, outputs=[self.graph.fresh("keep")]).output

    def _once(self, key: Any, make: Callable[[], Value]) -> Value:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


def _moved_base(node: Node, output: int, inner: Tabled, always: bool | None = None) -> Base | None:
    depth = 1 + max((b.depth for b in inner.bases), default=0)
    if depth > DEEPEST:
        return None
    everywhere = all(v != 0 for v in inner.table) if always is None else always
    assumes = any(b.assumes for b in inner.bases)
    return Base("moved", node=node, output=output, inner=inner, depth=depth, assumes=assumes, always=everywhere)


def _halves(holds: Array, k: int) -> tuple[Array, Array]:
    """A table where bit k is 0, and where it is 1."""
    bit = (np.arange(len(holds)) >> k) & 1
    return holds[bit == 0], holds[bit == 1]


def _fill(node: Node) -> float:
    value = node.attrs["value"]
    return 0.0 if value is None else float(np.reshape(np.asarray(value), -1)[0])
