"""QDQ graph -> integer graph: every float operator leaves the float world by its own `to_integer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.errors import LoweringError, QirError, UnsupportedError, named, refuse
from qir.graph import Graph, Node, Stage, Value
from qir.lowering import FREE, Clamped, Deferred, Fixed, Form, Lowering, Plain, Quantized, Real
from qir.ops import op_of
from qir.ops.shaping import plain
from qir.types import DType, QuantParams, TensorType

from ..manager import Pass
from ..report import PassReport


@dataclass(frozen=True)
class LowerToDyadic(Pass):
    """Rescalings become dyadic numbers, functions tables, biases int32  [HAWQ-V3 eq. 5-10; docs/arithmetic.md].

    Takes a QDQ graph, ours or another tool's. The border stays float: one QuantizeLinear an input, one
    DequantizeLinear an output; inside there is no float value and no division.  Integer tensors are called as the
    float tensors that they stand for.
    Raises LoweringError naming the operator that lacks a quantized input, OverflowProofError where a sum can leave
    int32, QuantizationError where two scales are too far apart.
    """

    name: ClassVar[str] = "lower_to_dyadic"
    requires: ClassVar[Stage] = Stage.QDQ
    ensures: ClassVar[Stage | None] = Stage.INTEGER

    def transform(self, graph: Graph) -> tuple[Graph, PassReport]:
        report = self.report()
        low, target = _begin(graph)
        refusals, lost = _walk(low, (LoweringError, UnsupportedError))
        if lost:
            refuse(refusals)
        for node in graph.nodes:
            if not _is_quantizer(node):
                report.rewrote(node.op, node.name)
        low.node = None
        target.set_outputs([_border(low, value) for value in graph.outputs])
        target.prune()
        for note in low.notes:
            report.note(note)
        return target, report


def refusals(graph: Graph) -> list[QirError]:
    """Every node of a QDQ graph that has no integer form, whatever the scales are: an error each.

    Errors that other scales would cure (a multiplier, an accumulator) are not among them.
    """
    low, _ = _begin(graph)
    found, _ = _walk(low, (QirError,), go_on=True)
    low.node = None
    for value in graph.outputs:
        try:
            _border(low, value)
        except QirError as error:
            found.append(error)
    return [e for e in found if isinstance(e, LoweringError | UnsupportedError)]


def _begin(graph: Graph) -> tuple[Lowering, Graph]:
    target = Graph(graph.name, Stage.INTEGER)
    target.metadata, target.symbols = dict(graph.metadata), dict(graph.symbols)
    low = Lowering(graph, target)
    for value in graph.inputs:
        _bring_input(low, value)
    return low, target


def _walk(low: Lowering, kept: tuple[type[QirError], ...], *, go_on: bool = False) -> tuple[list[QirError], set[Value]]:
    """Every node to integers: the errors of the classes `kept`, and the values that have no form because of them.

    A node behind a refused one is passed over, or with `go_on` sees tensors that stand for what was not computed.
    Other errors are raised.
    """
    found: list[QirError] = []
    lost: set[Value] = set()
    for node in low.source.nodes:
        if any(v in lost for v in node.inputs):
            lost.update(node.outputs)
            continue
        try:
            _lower(low, node)
        except kept as error:
            found.append(error)
            for value in node.outputs:
                if go_on:
                    low.set(value, _stand_in(low, value))
                else:
                    lost.add(value)
    return found, lost


def _stand_in(low: Lowering, value: Value) -> Form:
    """A form of the right type for a value that could not be computed."""
    g = low.graph
    if value.quant is not None:
        return Quantized(g.add_input(g.fresh(value.name), value.type))
    if not value.dtype.is_float:
        return Plain(g.add_input(g.fresh(value.name), value.type))
    return Deferred(lambda q, _bounds, name: g.add_input(g.fresh(name), TensorType(q.dtype, value.shape, q)))


def _is_quantizer(node: Node) -> bool:
    return op_of(node.op).border


def _bring_input(low: Lowering, value: Value) -> None:
    counterpart = low.graph.add_input(value.name, value.type)
    form: Form = (
        Real(counterpart)
        if value.dtype.is_float
        else Quantized(counterpart)
        if value.quant is not None
        else Plain(counterpart)
    )
    low.set(value, form)


def _lower(low: Lowering, node: Node) -> None:
    low.node = node
    with named(LoweringError, node, "its numbers leave every range"):  # infinite constants, scales that vanish
        if _is_of_integers(low, node):
            plain(low, node)
        else:
            op_of(node.op).to_integer(low, node)


def _is_of_integers(low: Lowering, node: Node) -> bool:
    """Whether the node computes integers or booleans of such: indices, sizes, masks. They are computed as they are."""
    values = [*(v for v in node.inputs if v is not None), *node.outputs]
    divides_sizes = node.op == "Div" and node.output.dtype is DType.INT64
    if (
        (op_of(node.op).float_only and not divides_sizes)
        or len(node.outputs) != 1
        or any(v.dtype.is_float for v in values)
    ):
        return False
    return all(isinstance(low.form(v), Plain | Fixed) for v in node.inputs if v is not None)


def _border(low: Lowering, value: Value) -> Value:
    """The output `value` of the graph being built, under its own name; a float one through a DequantizeLinear."""
    form = low.form(value)
    if isinstance(form, Plain):
        return _named(low.graph, form.value, value.name)
    if isinstance(form, Real):
        return form.value
    if isinstance(form, Clamped):
        form = _settle(low, form, value)
    if isinstance(form, Fixed):
        data = form.data if form.ints is None else form.ints
        quant = form.quant or _grid_of(form.data)
        ints = data if form.quant else quant.quantize(data)
        form = Quantized(low.graph.add_constant(value.name, ints, quant.dtype, quant))
    if not isinstance(form, Quantized):
        raise LoweringError(
            "is computed on no grid", where=f"output {value.name!r}",
            hint="insert a QuantizeLinear/DequantizeLinear pair on it (passes.InsertQdq does)",
        )  # fmt: skip
    if not value.dtype.is_float:
        return _named(low.graph, form.value, value.name)
    return _dequantize(low.graph, form.value, value.name)


def _settle(low: Lowering, form: Clamped, value: Value) -> Quantized:
    """An activation on an accumulator that is an output: clamped on the accumulator's own grid."""
    inner, bounds = form.inner, form.bounds
    while isinstance(inner, Clamped):
        bounds, inner = bounds.intersect(inner.bounds), inner.inner
    if not isinstance(inner, Quantized):
        raise LoweringError(
            "is computed on no grid", where=f"output {value.name!r}",
            hint="insert a QuantizeLinear/DequantizeLinear pair on it (passes.InsertQdq does)",
        )  # fmt: skip
    q = inner.quant
    if q.per_channel:  # one grid for all channels, that of the finest
        q = QuantParams((min(q.scale),), (0,), DType.INT32)
    return Quantized(inner.emit(low, q, bounds if bounds != FREE else FREE, value.name))


def _grid_of(data: np.ndarray) -> QuantParams:
    """A symmetric int16 grid for a constant output."""
    return QuantParams.make(float(np.abs(data).max(initial=0)) / DType.INT16.hi or 1.0, 0, DType.INT16)


def _named(graph: Graph, value: Value, name: str) -> Value:
    """`value` under an output's name; through an Identity where it has to keep its own."""
    if value.name == name:
        return value
    if value in graph.inputs or value.data is not None or value.is_output:
        value = graph.add_node("Identity", [value], quant=value.quant, outputs=[name]).output
    if value.name != name:
        if name in graph:
            graph.swap_names(value, graph.value(name))
        else:
            graph.rename(value, name)
    return value


def _dequantize(graph: Graph, x: Value, name: str) -> Value:
    q = x.quant
    assert q is not None
    scale = graph.add_constant(f"{name}.scale", np.asarray(q.scale if q.per_channel else q.scale[0], dtype=np.float32))
    zero = np.asarray(q.zero_point if q.per_channel else q.zero_point[0], dtype=q.dtype.numpy)
    inputs = [x, scale]
    if q.dtype is not DType.INT32 or zero.any():  # int32 takes no zero point everywhere
        inputs.append(graph.add_constant(f"{name}.zero_point", zero, q.dtype))
    attrs = {"axis": q.axis} if q.axis is not None else {}
    out = graph.add_node("DequantizeLinear", inputs, attrs, outputs=[f"{name}.real"]).output
    if name in graph:  # the integer tensor took the name; the output has the better claim
        taken = graph.value(name)
        graph.swap_names(out, taken)
        graph.rename(taken, graph.fresh(f"{name}.q"))
    else:
        graph.rename(out, name)
    return out
