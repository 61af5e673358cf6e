"""What is always true of a graph, as a table.  Every pass may assume it and must leave it so.

An invariant is a generator of violations: pairs of a place and a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .errors import GraphError, QirError, StageError, VerifyError, named
from .graph import Graph, Node, Stage, Value
from .ops import FORBIDDEN, op_of
from .ops.base import open_sizes
from .ops.intervals import known_at_sizes
from .sizes import Sizes, dim_at
from .sizes.fitting import probe
from .types import DType, TensorType

Violation = tuple[str, str]
Check = Callable[[Graph], Iterator[Violation]]


@dataclass(frozen=True)
class Invariant:
    """name: what holds.  check: yields (where, message) for each place where it does not."""

    name: str
    check: Check


def verify(graph: Graph, stage: Stage | None = None) -> None:
    """Raises VerifyError on the first invariant that does not hold; StageError when the graph is not in `stage`."""
    if stage is not None and graph.stage is not stage:
        raise StageError(f"is in stage {graph.stage.name}, not {stage.name}", where=f"graph {graph.name!r}")
    for invariant in INVARIANTS:
        with named(VerifyError, f"graph {graph.name!r}", f"cannot be checked (invariant: {invariant.name})"):
            for where, message in invariant.check(graph):
                raise VerifyError(f"{message} (invariant: {invariant.name})", where=where)


def violations(graph: Graph) -> list[str]:
    """Every violation of every invariant, as text."""
    return [f"{i.name}: {where}: {message}" for i in INVARIANTS for where, message in i.check(graph)]


# -- structure --------------------------------------------------------------------------------
def _of(value: Value) -> str:
    return f"value {value.name!r}"


def check_use_def(graph: Graph) -> Iterator[Violation]:
    known = set(graph.values)
    nodes = set(graph._nodes)
    for name, value in graph._values.items():
        if value.name != name or value.graph is not graph:
            yield _of(value), f"is listed as {name!r}"
        if value.data is not None and (value.output_of is not None or value in graph.inputs):
            yield _of(value), "is a constant and computed"
        if value.output_of is not None and (value.output_of not in nodes or value not in value.output_of.outputs):
            yield _of(value), "names a producer that does not produce it"
        if value.output_of is None and value.data is None and value not in graph.inputs:
            yield _of(value), "is computed by nothing"
        for node, index in value._uses:
            if node not in nodes or index >= len(node.inputs) or node.inputs[index] is not value:
                yield _of(value), f"lists a use by {node} that is none"
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and (value not in known or (node, index) not in value._uses):
                yield str(node), f"input {index} does not know of its use"
        for value in node.outputs:
            if value not in known or value.output_of is not node:
                yield str(node), f"output {value.name!r} does not know its producer"


def check_topology(graph: Graph) -> Iterator[Violation]:
    known = set(graph.values)
    for value in (*graph.inputs, *graph.outputs):
        if value not in known:
            yield _of(value), "is an input or output, but not in the graph"
    if not graph.outputs:
        yield f"graph {graph.name!r}", "has no outputs"
    names = [n.name for n in graph._nodes]
    if len(set(names)) != len(names):
        yield f"graph {graph.name!r}", "two nodes have one name"
    try:
        order = {node: i for i, node in enumerate(graph.nodes)}
    except GraphError as error:
        yield f"graph {graph.name!r}", str(error)
        return
    for node, at in order.items():
        for value in node.inputs:
            if value is not None and value.output_of is not None and order.get(value.output_of, at) >= at:
                yield str(node), f"comes before the node that computes {value.name!r}"


# -- types ------------------------------------------------------------------------------------
def check_types(graph: Graph) -> Iterator[Violation]:
    points = [probe(graph.symbols, point) for point in (0, 1)]
    for value in graph.constants:
        data = value.array()
        if tuple(data.shape) != value.shape or data.dtype != value.dtype.numpy:
            yield _of(value), f"holds {data.dtype}{list(data.shape)}, its type is {value.type}"
    for node in graph.nodes:
        op = op_of(node.op)
        try:
            op.complete(node.attrs, str(node))
        except QirError as error:
            yield str(node), str(error).removeprefix(f"{node}: ")
            continue
        for sizes in points if open_sizes(op, node) else points[:1]:
            try:
                wanted = op.infer_at(node, sizes)
            except QirError as error:
                yield str(node), f"its types cannot be inferred: {error}"
                break
            wrong = [(v, k) for v, k in zip(node.outputs, wanted, strict=False) if not _agree(v, k, sizes)]
            for value, kind in wrong:
                yield str(node), f"output {value.name!r} is {value.type}, the operator gives {kind}"
            if wrong:
                break


def _agree(value: Value, kind: TensorType, sizes: Sizes) -> bool:
    return value.dtype is kind.dtype and tuple(dim_at(d, sizes) for d in value.shape) == kind.shape


# -- quantization -----------------------------------------------------------------------------
def check_quantization(graph: Graph) -> Iterator[Violation]:
    for value in graph.values:
        q = value.quant
        if q is not None and q.axis is not None:
            size = value.shape[q.axis] if -value.type.rank <= q.axis < value.type.rank else None
            if size != len(q.scale):
                yield _of(value), f"{len(q.scale)} scales along axis {q.axis} of {list(value.shape)}"
        if value.data is not None and value.dtype.bits == 4 and value.data.size:
            lo, hi = int(value.data.min()), int(value.data.max())
            if lo < value.dtype.lo or hi > value.dtype.hi:
                yield _of(value), f"values {lo}..{hi} do not fit {value.dtype}"
    for node in graph.nodes:
        op = op_of(node.op)
        with named(VerifyError, node, "its quantization cannot be checked"):
            if op.border:
                yield from _check_linear(node)
            elif op.is_integer_op:
                yield from _check_grid(node)


def _check_linear(node: Node) -> Iterator[Violation]:
    scale = node.input(1).data
    if scale is not None and not (np.isfinite(scale).all() and (scale > 0).all()):
        yield str(node), "scale is not positive and finite"
    zero = node.optional(2)
    integers = node.output.dtype if node.op == "QuantizeLinear" else node.input(0).dtype
    if zero is not None and zero.dtype is not integers:
        yield str(node), f"zero point is {zero.dtype}, the integers are {integers}"


ZERO_POINTS = {"zero_point": None, "weight_zero_point": 1, "pad_value": 0}
"""Attributes that are an element of an input, or of the output."""


def _check_grid(node: Node) -> Iterator[Violation]:
    """Limits inside the output's dtype, shifts that an int64 can take."""
    attrs, op = node.attrs, op_of(node.op)
    for index, word in enumerate(op.inputs.split()):
        operand, value = op.operands.get(word.rstrip("?")), node.optional(index)
        objection = operand.objection(value) if operand is not None and value is not None else None
        if objection:
            yield str(node), objection
            return
    for key, index in ZERO_POINTS.items():
        if key in attrs:
            kind = node.output.dtype if index is None else node.input(index).dtype
            if not all(kind.lo <= z <= kind.hi for z in np.reshape(attrs[key], -1).tolist()):
                yield str(node), f"{key} {attrs[key]} is outside {kind}"
    if {"lo", "hi", "dtype"} <= set(attrs):
        kind = DType(attrs["dtype"])
        if not kind.lo <= attrs["lo"] <= attrs["hi"] <= kind.hi:
            yield str(node), f"limits {attrs['lo']}..{attrs['hi']} are not an interval of {kind}"
    shifts = attrs.get("shift")
    if node.op == "qir.Requantize":
        multiplier, shift = known_at_sizes(node.input(1)), known_at_sizes(node.input(2))
        if multiplier is None or shift is None:
            yield str(node), "multiplier and shift must be constants"
            return
        if multiplier.size and int(multiplier.min()) < 0:
            yield str(node), "a multiplier is negative"
        shifts = shift
    if shifts is not None and np.size(shifts) and not (np.min(shifts) >= 1 and np.max(shifts) <= 62):
        yield str(node), "a shift is outside 1..62"


# -- stages -----------------------------------------------------------------------------------
def is_integer_only(graph: Graph) -> list[str]:
    """Offences against "no float but at the border, no division": empty when there are none.

    The border: QuantizeLinear on a graph input, DequantizeLinear whose result is a graph output and nothing else,
    and their scales.
    """
    return [f"{where}: {message}" for where, message in check_integer_only(graph)]


def check_integer_only(graph: Graph) -> Iterator[Violation]:
    outputs = set(graph.outputs)
    for node in graph.nodes:
        if node.op in FORBIDDEN and node.output.dtype is not DType.INT64:  # sizes are divided as they are
            yield str(node), f"{node.op} in an integer graph"
        quantizes = node.op == "QuantizeLinear" and node.input(0) in graph.inputs
        dequantizes = node.op == "DequantizeLinear" and node.output in outputs and not node.output.use_count
        if quantizes or dequantizes:
            if node.input(1).data is None:
                yield str(node), "its scale is not a constant"
            continue
        for value in (*node.inputs, *node.outputs):
            if value in graph.inputs and op_of(node.op).reads_shape_only:
                continue
            if value is not None and value.dtype.is_float:
                yield str(node), f"{value.name!r} is {value.dtype}"
    for value in graph.outputs:
        if value in graph.inputs:
            continue  # handed through as it came
        if value.dtype.is_float and (value.producer is None or value.producer.op != "DequantizeLinear"):
            yield f"output {value.name!r}", f"is {value.dtype}, but not dequantized"


def check_stage(graph: Graph) -> Iterator[Violation]:
    if graph.stage is Stage.INTEGER:
        yield from check_integer_only(graph)
        return
    for node in graph.nodes:
        if node.op.startswith("qir.") and op_of(node.op).is_integer_op:
            yield str(node), f"an integer operator in stage {graph.stage.name}"


# -- accumulators -----------------------------------------------------------------------------
def check_accumulators(graph: Graph) -> Iterator[Violation]:
    """The proof that no accumulator leaves its width, operator by operator: see `Op.overflows`, `ops/intervals.py`."""
    for node in graph.nodes:
        with named(VerifyError, node, "its accumulator cannot be checked"):
            for message in op_of(node.op).overflows(node):
                yield str(node), message


INVARIANTS: tuple[Invariant, ...] = (
    Invariant("uses and definitions agree", check_use_def),
    Invariant("the nodes are a directed acyclic graph", check_topology),
    Invariant("types are what the operators infer", check_types),
    Invariant("quantization parameters are possible", check_quantization),
    Invariant("accumulators cannot overflow", check_accumulators),
    Invariant("the stage is what it says", check_stage),
)
