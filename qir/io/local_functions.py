"""Model-local functions of domain `qir`: written for a node by export, compared with what a file holds by load."""

from __future__ import annotations

import onnx

from ..graph import Graph, Node
from ..ops import Op, op_of
from . import widen
from .functions import DOMAIN, Body, carries_wide, function_stem


def function_of(op: Op, node: Node, opset: int, wide: bool) -> onnx.FunctionProto:
    """The local function that a node is exported as, under its operator's own name; wide: see `carries_wide`."""
    body = Body(node, formal_names(op.inputs, len(node.inputs)), opset, wide)
    outputs = formal_names(op.outputs, len(node.outputs))[: len(node.outputs)]
    if op.needs_function(node, opset):
        op.function_body(body, node)
    else:
        widen.write_body(body, node, outputs)
    return body.proto(function_stem(op), outputs)


def formal_names(schema: str, count: int) -> list[str]:
    """Names from an operator's schema: "x w b?" -> x, w, b; a variadic "xs*" -> xs0, xs1 ... up to `count`."""
    names: list[str] = []
    for word in schema.split():
        if word.endswith("*"):
            stem = word.rstrip("*")
            names += [f"{stem}{i}" for i in range(max(count - len(names), 0))]
        else:
            names.append(word.rstrip("?"))
    return names


def strange_functions(graph: Graph, proto: onnx.ModelProto, opset: int) -> list[str]:
    """Names of the model's local functions whose bodies are not what the operators they are called by export."""
    bodies = {f.name: _body_text(f) for f in proto.functions if f.domain == DOMAIN}
    strange: dict[str, None] = {}
    wide = carries_wide(graph, opset)
    for call in proto.graph.node:
        if call.domain != DOMAIN or call.op_type in strange or call.output[0] not in graph:
            continue
        node = graph.value(call.output[0]).producer
        if node is not None and bodies[call.op_type] != _body_text(function_of(op_of(node.op), node, opset, wide)):
            strange[call.op_type] = None
    return list(strange)


def _body_text(function: onnx.FunctionProto) -> tuple[object, ...]:
    nodes = tuple(n.SerializeToString(deterministic=True) for n in function.node)
    return tuple(function.input), tuple(function.output), nodes
