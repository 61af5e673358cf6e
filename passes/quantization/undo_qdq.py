"""UndoQdq: a QDQ graph of which only parts are quantized, as the float graph behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from qir.errors import LoweringError
from qir.graph import Graph, Node, Stage, Value
from qir.ops import op_of
from qir.ops.requantize import blocks, params_of
from qir.types import Array, DType, QuantParams

from ..manager import Pass
from ..report import PassReport
from .given_grids import GIVEN_RANGES, GIVEN_WEIGHTS


@dataclass(frozen=True)
class UndoQdq(Pass):
    """QDQ -> float: for weight-only, dynamically and partly quantized models, which need calibration.

    DequantizeLinear of constants becomes float constants, whose grids stay behind in `graph.tables[GIVEN_WEIGHTS]`;
    a QuantizeLinear of an activation becomes a Clip to the ends of its grid (which may be the Relu that the other tool
    left out), and the interval stays behind in `graph.tables[GIVEN_RANGES]`.  What computed on integers in between
    (MaxPool, Reshape, Concat ...) computes on their reals.
    Raises LoweringError where integers are used as anything but stand-ins for reals.
    """

    name: ClassVar[str] = "undo_qdq"
    requires: ClassVar[Stage] = Stage.QDQ
    ensures: ClassVar[Stage | None] = Stage.FLOAT

    def transform(self, graph: Graph) -> tuple[Graph, PassReport]:
        report = self.report()
        work = _Undo(graph, report)
        for value in graph.inputs:
            work.reals[value] = work.graph.add_input(value.name, value.type)
        for node in graph.nodes:
            work.node(node)
        work.finish()
        given = len(work.graph.tables[GIVEN_WEIGHTS])
        report.note(
            f"{given} constants keep their grids, {len(work.graph.tables[GIVEN_RANGES])} activations their ranges"
        )
        return work.graph, report


class _Undo:
    """The float graph being built.

    reals: value of the QDQ graph -> its reals; grids: integer values that stand for reals -> their grids.
    """

    def __init__(self, source: Graph, report: PassReport) -> None:
        self.source, self.report = source, report
        self.graph = Graph(source.name, Stage.FLOAT)
        self.graph.metadata = dict(source.metadata)
        self.graph.tables = {name: dict(table) for name, table in source.tables.items()}
        self.graph.tables |= {GIVEN_WEIGHTS: {}, GIVEN_RANGES: {}}
        self.reals: dict[Value, Value] = {}
        self.grids: dict[Value, QuantParams] = {}

    def real(self, value: Value) -> Value:
        if value not in self.reals:
            self.reals[value] = self.graph.add_constant(value.name, value.array(), value.dtype)
        return self.reals[value]

    def node(self, node: Node) -> None:
        """One node of the QDQ graph."""
        if node.op == "QuantizeLinear":
            self.quantize(node)
        elif node.op == "DequantizeLinear":
            self.dequantize(node)
        else:
            self.other(node)

    def constant(self, node: Node, data: Array, q: QuantParams | None, name: str) -> Value:
        """A float constant on a grid."""
        value = self.graph.add_constant(name, data)
        self.graph.tables[GIVEN_WEIGHTS][value.name] = q
        self.report.rewrote("constant", node.name)
        return value

    def quantize(self, node: Node) -> None:
        x, out = node.input(0), node.output
        source = self.real(x)
        q = None if blocks(node) else params_of(node)
        backs = [user.output.name for user, _ in out.uses() if user.op == "DequantizeLinear"]
        name = backs[0] if backs else out.name
        if source.data is not None:
            ints = op_of(node.op).reference(node.attrs, source.data, *_data(node)[1:])[0]
            scale, zero = node.input(1).array(), node.optional(2)
            attrs = {"axis": node.attrs["axis"], "block_size": node.attrs["block_size"]}
            real = op_of("DequantizeLinear").reference(attrs, ints, scale, None if zero is None else zero.array())[0]
            self.reals[out] = self.constant(node, real, q, name)
        elif q is None or q.per_channel:
            self.reals[out] = self.graph.add_node("Identity", [source], outputs=[name]).output
        else:
            ends = [
                np.asarray((end - q.zero_point[0]) * q.scale[0], source.dtype.numpy) for end in (q.dtype.lo, q.dtype.hi)
            ]
            limits = [
                self.graph.add_constant(f"{name}.{side}", v) for side, v in zip(("min", "max"), ends, strict=True)
            ]
            clip = self.graph.add_node("Clip", [source, *limits], outputs=[name], name=node.name)
            self.reals[out] = clip.output
            self.graph.tables[GIVEN_RANGES][clip.output.name] = (float(ends[0]), float(ends[1]))
            self.report.rewrote("clip", node.name)
        if q is not None:
            self.grids[out] = q

    def dequantize(self, node: Node) -> None:
        x, out = node.input(0), node.output
        if x.data is not None:
            q = None if blocks(node) else params_of(node)
            real = op_of(node.op).reference(node.attrs, *_data(node))[0]
            self.reals[out] = self.constant(node, real, q, out.name)
            return
        q = params_of(node)
        before = self.grids.get(x)
        source = self.real(x)
        if before == q or (before is None and source.dtype.is_float):
            self.reals[out] = source
            return
        if before is not None:  # read on another grid: (real / s + z - z') s'
            source = self.affine(source, 1 / np.asarray(before.scale), np.asarray(before.zero_point), out, before)
        else:
            cast = {"to": str(out.dtype)}
            source = self.graph.add_node("Cast", [source], cast, outputs=[f"{out.name}.cast"]).output
        shifted = self.affine(source, np.ones(1), -np.asarray(q.zero_point, np.float64), out, q)
        self.reals[out] = self.affine(shifted, np.asarray(q.scale), np.zeros(1), out, q)

    def affine(self, x: Value, factor: Array, offset: Array, like: Value, q: QuantParams) -> Value:
        """x factor + offset, each along the grid's axis."""
        shape = [1] * x.type.rank
        if q.axis is not None:
            shape[q.axis] = -1
        for op, array, idle in (("Mul", factor, 1), ("Add", offset, 0)):
            if (array != idle).any():
                data = array.astype(like.dtype.numpy)
                c = self.graph.add_constant(f"{like.name}.{op.lower()}", data.reshape(shape if data.size > 1 else ()))
                x = self.graph.add_node(op, [x, c], outputs=[f"{like.name}.{op.lower()}ed"]).output
        return x

    def other(self, node: Node) -> None:
        """Any other operator, on reals."""
        grid = next((self.grids[v] for v in node.inputs if v is not None and v in self.grids), None)
        op = op_of(node.op)
        if grid is not None and not (
            op.moves or op.chooses or op.clamps or op.orders or op.limits or node.op == "Concat"
        ):
            raise LoweringError("computes with the integers of a quantized tensor", where=str(node))
        inputs = [None if v is None else self.operand(v, grid) for v in node.inputs]
        new = self.graph.add_node(node.op, inputs, node.attrs, outputs=[v.name for v in node.outputs], name=node.name)
        for old, value in zip(node.outputs, new.outputs, strict=True):
            self.reals[old] = value
            if grid is not None and old.dtype is grid.dtype:
                self.grids[old] = grid

    def operand(self, value: Value, grid: QuantParams | None) -> Value:
        """An operand's reals; a constant beside quantized tensors (a Pad's value) is on their grid."""
        if grid is not None and value.data is not None and value.dtype is grid.dtype and value not in self.reals:
            return self.graph.add_constant(value.name, grid.dequantize(value.data).astype(DType.FLOAT32.numpy))
        return self.real(value)

    def finish(self) -> None:
        """The outputs, under their names."""
        outputs: list[Value] = []
        for value in self.source.outputs:
            new = self.real(value)
            if value in self.grids:
                raise LoweringError("is an integer output of a partly quantized graph", where=f"output {value.name!r}")
            if new.name != value.name:
                new = self.graph.add_node("Identity", [new], outputs=[value.name]).output
            outputs.append(new)
        self.graph.set_outputs(outputs)
        self.graph.prune()


def _data(node: Node) -> list[Any]:
    """The constants that a node reads."""
    return [None if v is None else v.data for v in node.inputs]
