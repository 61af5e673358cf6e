"""The border between the float world and an integer graph: there, or stripped off."""

from __future__ import annotations

import json
from dataclasses import replace

from ..errors import LoweringError, StageError
from ..graph import Graph, Node, Stage, Value
from ..ops.requantize import params_of
from ..types import QuantParams, TensorType
from .metadata import quant_to_json

KEY = "qir.io"
"""Metadata of a graph without border: JSON {input or output: {dtype, scale, zero_point}}."""


def strip_border(graph: Graph, *, outputs: bool = True) -> Graph:
    """A copy that takes and returns integers: no QuantizeLinear at its inputs, no DequantizeLinear at its outputs.

    outputs: False keeps the float outputs (a graph that takes pixels and gives real scores).

    Inputs and outputs keep their names; their quantization is their annotation, and in the metadata for others.
    Raises StageError before the INTEGER stage, LoweringError where an input is quantized in two ways.
    """
    if graph.stage is not Stage.INTEGER:
        raise StageError(f"stage {graph.stage.name} has no integer border", where=f"graph {graph.name!r}",
                         hint="lower it first (passes.LowerToDyadic)")  # fmt: skip
    new = graph.clone()
    border: dict[str, QuantParams] = {}
    for value in new.inputs:
        if value.dtype.is_float and value.uses():  # an input that nobody reads stays as it is
            border[value.name] = _strip_input(new, value)
    for value in new.outputs if outputs else ():
        if value.dtype.is_float and value not in new.inputs:
            name = value.name
            border[name] = _strip_output(new, value)
    new.prune()
    new.metadata[KEY] = json.dumps({name: quant_to_json(q) for name, q in border.items()})
    return new


def _strip_input(graph: Graph, value: Value) -> QuantParams:
    nodes = list(dict.fromkeys(node for node, _ in value.uses()))
    if any(n.op != "QuantizeLinear" for n in nodes):
        raise LoweringError("is used in float", where=f"input {value.name!r}")
    quants = {params_of(n) for n in nodes}
    if len(quants) > 1:
        raise LoweringError("is quantized in two ways, so it has no one integer form", where=f"input {value.name!r}",
                            hint="keep the float border (io='float')")  # fmt: skip
    (quant,) = quants
    value.type = TensorType(quant.dtype, value.shape, quant)
    for node in nodes:
        graph.replace_uses(node.output, value)
        graph.remove_node(node)
    return quant


def _strip_output(graph: Graph, value: Value) -> QuantParams:
    node: Node | None = value.producer
    if node is None or node.op != "DequantizeLinear":
        raise LoweringError("does not come out of a DequantizeLinear", where=f"output {value.name!r}")
    inner = node.input(0)
    quant = params_of(node)
    if inner.producer is None or inner in graph.outputs:  # it has a public name of its own
        inner = graph.add_node("Identity", [inner], outputs=[f"{inner.name}.copy"], quant=quant).output
    graph.set_outputs([inner if v is value else v for v in graph.outputs])
    graph.swap_names(value, inner)
    inner.type = replace(inner.type, quant=quant)
    return quant
