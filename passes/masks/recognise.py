"""RecogniseMasks: what is dropped before a softmax becomes a boolean, whatever it was written as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.errors import QirError, UnsupportedError, refuse
from qir.graph import Graph, Node, Stage, Value
from qir.ops import op_of
from qir.shapes import fold_shapes

from ..manager import Pass
from ..report import PassReport
from ..rewriting.rewriter import replace, sweep
from .tables import Tabled, implies
from .two_valued import DROPS, TwoValued
from .unknown import refuse_unknown

SAME = ("Identity", "Dropout", "Cast")
"""Operators that hand on the scores as they are."""


@dataclass(frozen=True)
class RecogniseMasks(Pass):
    """softmax(x + mask) = MaskedSoftmax(x, keep), keep boolean                              [docs/arithmetic.md 9b]

    mask: 0 (or anything that is the same for all positions) where kept, -1000 or less where dropped: a constant, Where,
    `(1 - m) * c`, Trilu, moved and cast in any way; Where(m, x, -inf); masks one after the other; scores scaled after
    the mask.  What cleans up behind the softmax (Where(IsNaN(y), 0, y); zeros where the mask drops) goes with it.
    An input of the graph that is multiplied by such a number is taken to hold zeros and ones, which the report says.
    A row that keeps nothing gives zeros.  Raises UnsupportedError (RefusedError of several) naming a softmax
    whose mask is not recognised.
    """

    name: ClassVar[str] = "recognise_masks"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT, Stage.FOLDED)

    def run(self, graph: Graph) -> PassReport:
        report = self.report()
        if not any(n.op == "Softmax" for n in graph.nodes):
            return report
        graph.prune()
        fold_shapes(graph)
        work = _Masks(graph, report)
        refused: list[QirError] = []
        for node in graph.nodes:
            if node.op == "Softmax" and node in graph:
                try:
                    work.softmax(node)
                except UnsupportedError as error:
                    refused.append(error)
        refuse(refused)
        for node in graph.nodes:
            if node.op == "Where" and node in graph:
                work.not_a_number(node)
        for name in work.tables.assumed:
            report.note(f"input {name!r} is a mask: it is taken to hold zeros and ones")
        graph.prune()
        return report


@dataclass(frozen=True)
class _Scores:
    """Scores without their masks, and what the masks keep."""

    value: Value
    keeps: tuple[Tabled, ...] = ()


class _Masks:
    """State of one run."""

    def __init__(self, graph: Graph, report: PassReport) -> None:
        self.graph, self.report = graph, report
        self.tables = TwoValued(graph)

    # -- one softmax ---------------------------------------------------------------------------
    def softmax(self, node: Node) -> None:
        scores, moves = self.strip(node.input(0)), list[Node]()
        source = node.input(0)
        while not scores.keeps and (inner := self._under_movement(node, source)) is not None:
            moves.append(inner)
            source = inner.input(0)
            scores = self.strip(source)
        if not scores.keeps:
            refuse_unknown(node, node.input(0))
            return
        made = self._masked(node, source, scores, moves)
        if made is None:
            raise UnsupportedError(
                "has a mask whose shape is not that of the scores", where=str(node),
                hint="let the mask have the shape of the scores, with sizes of 1 where it repeats",
            )  # fmt: skip
        old = node.output
        if replace(self.graph, old, made, fresh=True):
            sweep(self.graph, [node])
            self.report.rewrote("mask", node.name)
        refuse_unknown(node, scores.value)
        if not moves:
            self._clean_up(made, scores.keeps)

    def _masked(self, node: Node, source: Value, scores: _Scores, moves: list[Node]) -> Value | None:
        """MaskedSoftmax of scores; movements that stood before it come after it."""
        keep: Value | None = None
        for each in scores.keeps:
            term = self.tables.boolean(each)
            if term is None:
                return None
            keep = term if keep is None else self._add("And", keep, term)
        assert keep is not None
        x = self._under_mask(scores)
        keep = _smaller(keep, x)
        if x.shape != source.shape or _broadcast(keep.shape, x.shape) != x.shape:
            return None
        axis = node.attrs["axis"] % node.output.type.rank - node.output.type.rank
        everything = keep.data is not None and bool(keep.data.all())
        y = self._add("Softmax", x, axis=axis) if everything else self._add("MaskedSoftmax", x, keep, axis=axis)
        for move in reversed(moves):
            y = self.graph.add_node(move.op, [y, *move.inputs[1:]], dict(move.attrs)).output
        return y

    def _under_movement(self, node: Node, value: Value) -> Node | None:
        """The node that only reshapes the scores, their last axis, the softmax's, being whole before and after."""
        producer = value.producer
        if producer is None or not op_of(producer.op).keeps_order or producer.op in SAME or not value.shape:
            return None
        x = producer.input(0)
        last = node.attrs["axis"] % value.type.rank == value.type.rank - 1
        return producer if last and x.shape and x.shape[-1] == value.shape[-1] else None

    # -- scores without masks -----------------------------------------------------------------
    def strip(self, value: Value, factor: float = 1.0, depth: int = 0) -> _Scores:
        """Scores that are multiplied by `factor` (positive) later."""
        node = value.producer
        if node is None or depth > 64:
            return _Scores(value)
        if node.op in ("Add", "Sub"):
            return self._sum(node, factor, depth)
        if node.op in ("Mul", "Div"):
            return self._scaled(node, factor, depth)
        if node.op == "Where":
            return self._chosen(node, factor, depth)
        inner = _Scores(value)
        if node.op in SAME and node.input(0).dtype is value.dtype:
            inner = self.strip(node.input(0), factor, depth + 1)
        elif node.op == "Max" and len(node.inputs) == 2:  # max(scores + mask, the least number)
            for x, bound in ((node.input(0), node.input(1)), (node.input(1), node.input(0))):
                if bound.data is not None and bound.data.size == 1 and float(bound.data.max()) * factor <= DROPS:
                    inner = self.strip(x, factor, depth + 1)
        return inner if inner.keeps else _Scores(value)

    def _sum(self, node: Node, factor: float, depth: int) -> _Scores:
        sign = -1.0 if node.op == "Sub" else 1.0
        for x, mask, s in ((node.input(0), node.input(1), sign), (node.input(1), node.input(0), 1.0)):
            if s > 0 and node.op == "Sub":
                break  # m - x
            found = self._additive(mask, s * factor)
            if found is not None:
                keep, rest = found
                inner = self.strip(x, factor, depth + 1)
                value = inner.value if rest is None else self._add(node.op, inner.value, rest)
                return _Scores(value, (*inner.keeps, keep))
        parts = [self.strip(v, factor, depth + 1) for v in ((node.input(0), node.input(1))[: 1 if sign < 0 else 2])]
        keeps = tuple(k for p in parts for k in p.keeps)
        if not keeps:
            return _Scores(node.output)
        operands = [p.value for p in parts] + ([node.input(1)] if sign < 0 else [])
        return _Scores(self._add(node.op, *operands), keeps)

    def _additive(self, mask: Value, factor: float) -> tuple[Tabled, Value | None] | None:
        """(what an additive mask keeps, a constant that stays to be added), or None where it is none."""
        data = mask.data
        if data is not None and data.size > 1 and mask.dtype.is_float:
            keep = data * factor > DROPS
            kept = np.unique(data[keep])
            if keep.all() or not keep.any():
                return None
            table = self.tables.of(self.graph.add_constant(f"{mask.name}.keep", keep))
            assert table is not None
            rest = None if kept.size < 2 else np.where(keep, data, 0).astype(data.dtype)
            return table, None if rest is None else self.graph.add_constant(f"{mask.name}.kept", rest)
        found = self.tables.of(mask)
        if found is None:
            return None
        kept_values = [v for v in found.values if v * factor > DROPS]
        if len(kept_values) != 1 or len(found.values) < 2 or kept_values[0] * factor >= -DROPS:
            return None
        return found.map(lambda t: t * factor > DROPS), None

    def _scaled(self, node: Node, factor: float, depth: int) -> _Scores:
        for x, other in ((node.input(0), node.input(1)), (node.input(1), node.input(0))):
            data = other.data
            if data is None or data.size != 1 or not float(data.reshape(())) > 0:
                if node.op == "Div":
                    break
                continue
            scale = float(data.reshape(()))
            inner = self.strip(x, factor / scale if node.op == "Div" else factor * scale, depth + 1)
            if inner.keeps:
                operands = [inner.value, other] if x is node.input(0) else [other, inner.value]
                return _Scores(self._add(node.op, *operands), inner.keeps)
            break
        return _Scores(node.output)

    def _chosen(self, node: Node, factor: float, depth: int) -> _Scores:
        """Where(m, x, -inf), Where(m, -inf, x)."""
        condition = self.tables.condition(node.input(0))
        if condition is None:
            return _Scores(node.output)
        for index, holds in ((1, False), (2, True)):
            dropped, x = self.tables.of(node.input(index)), node.input(3 - index)
            if dropped is not None and max(dropped.values) * factor <= DROPS and x.shape == node.output.shape:
                inner = self.strip(x, factor, depth + 1)
                keep = condition if holds else condition.map(lambda t: t == 0)
                return _Scores(inner.value, (*inner.keeps, keep))
        return _Scores(node.output)

    def _under_mask(self, scores: _Scores) -> Value:
        """Scores that are multiplied by 1 wherever the mask keeps them, without that product."""
        x = scores.value
        while (node := x.producer) is not None and node.op == "Mul":
            for a, b in ((node.input(0), node.input(1)), (node.input(1), node.input(0))):
                ones = self.tables.of(b)
                if ones is not None and ones.bases and a.shape == x.shape and implies(scores.keeps, ones):
                    x = a
                    break
            else:
                break
        return x

    # -- behind a softmax ----------------------------------------------------------------------
    def _clean_up(self, y: Value, keeps: tuple[Tabled, ...]) -> None:
        """Zeros where the mask drops are there already."""
        for node, index in y.uses():
            if node not in self.graph or node.output.shape != y.shape:
                continue
            if node.op == "Where" and index > 0:
                condition, other = self.tables.of(node.input(0)), self.tables.of(node.input(3 - index))
                picks = None if condition is None else condition if index == 1 else condition.map(lambda t: t == 0)
                if picks is None or other is None or other.values != [0.0] or not implies(keeps, picks):
                    continue
            elif node.op == "Mul":
                ones = self.tables.of(node.input(1 - index))
                if ones is None or not ones.bases or not implies(keeps, ones):
                    continue
            else:
                continue
            if replace(self.graph, node.output, y, fresh=False):
                sweep(self.graph, [node])
                self.report.rewrote("zeros behind a mask", node.name)

    def not_a_number(self, node: Node) -> None:
        """Where(IsNaN(y), 0, y) = y: a softmax on integers gives no such thing."""
        test, y = node.input(0).producer, node.input(2)
        zero = self.tables.of(node.input(1))
        if test is None or test.op != "IsNaN" or test.input(0) is not y or zero is None or zero.values != [0.0]:
            return
        producer = y.producer
        while producer is not None and op_of(producer.op).keeps_order:
            producer = producer.input(0).producer
        if producer is None or producer.op not in ("Softmax", "MaskedSoftmax") or node.output.shape != y.shape:
            return
        if replace(self.graph, node.output, y, fresh=False):
            sweep(self.graph, [node, test])
            self.report.rewrote("no NaN behind a softmax", node.name)

    def _add(self, op: str, *inputs: Value, **attrs: object) -> Value:
        return self.graph.add_node(op, inputs, attrs, outputs=[self.graph.fresh("masked")]).output


def _smaller(keep: Value, x: Value) -> Value:
    """A mask that says the same of x: before it was repeated, without what is true anyway."""
    while (node := keep.producer) is not None:
        inputs = [v for v in node.inputs if v is not None]
        if node.op == "Expand":
            inputs = inputs[:1]
        elif node.op == "And":
            inputs = [v for v in inputs if v.data is None or not v.data.all()] or inputs[:1]
        else:
            inputs = []
        if len(inputs) != 1 or _broadcast(inputs[0].shape, x.shape) != x.shape:
            break
        keep = inputs[0]
    return keep


def _broadcast(a: tuple[int | str, ...], b: tuple[int | str, ...]) -> tuple[int | str, ...] | None:
    """The shape of two tensors together; None where it is not known."""
    out: list[int | str] = []
    for i in range(1, max(len(a), len(b)) + 1):
        p, q = a[-i] if i <= len(a) else 1, b[-i] if i <= len(b) else 1
        if p != q and 1 not in (p, q):
            return None
        out.insert(0, q if p == 1 else p)
    return tuple(out)
