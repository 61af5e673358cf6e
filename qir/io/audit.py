"""An independent opinion on "integer only": a walk over the ONNX model, functions inlined, types inferred by onnx.

It shares nothing with `qir.verify` but the definition: float tensors are allowed at the border only, as the input
of a QuantizeLinear that is a graph input, the result of a DequantizeLinear that is a graph output, and their scales;
half and double precision inputs and outputs with a Cast between.  Div nowhere.
"""

from __future__ import annotations

import onnx
import onnx.inliner
from onnx import helper, shape_inference

from ..ops import FORBIDDEN

FLOATS = frozenset(
    int(t) for name, t in onnx.TensorProto.DataType.items() if name.startswith(("FLOAT", "DOUBLE", "BFLOAT", "COMPLEX"))
)


def audit(model: onnx.ModelProto) -> list[str]:
    """Every float tensor off the border and every division in the model, functions included; empty is good."""
    flat = shape_inference.infer_shapes(onnx.inliner.inline_local_functions(model), strict_mode=False)
    graph = flat.graph
    types: dict[str, int] = {i.name: i.data_type for i in graph.initializer}
    for info in (*graph.value_info, *graph.input, *graph.output):
        types[info.name] = info.type.tensor_type.elem_type
    for node in graph.node:
        if node.op_type == "Constant":
            types[node.output[0]] = _constant_type(node)
    inputs, outputs = {i.name for i in graph.input}, {o.name for o in graph.output}
    used = {n for node in graph.node for n in node.input}
    casts = [n for n in graph.node if n.op_type == "Cast" and types.get(n.input[0]) in FLOATS]
    entered = {n.output[0] for n in casts if n.input[0] in inputs}
    left = {n.input[0] for n in casts if n.output[0] in outputs}
    offences: list[str] = []
    at_border: set[str] = set()
    for node in graph.node:
        where = f"{node.op_type} node {node.name or node.output[0]!r}"
        if node.domain not in ("", "ai.onnx"):
            offences.append(f"{where}: not a standard operator")
        if node.op_type in FORBIDDEN and types.get(node.output[0]) != onnx.TensorProto.INT64:  # sizes are divided
            offences.append(f"{where}: forbidden")
        border: set[str] = set()
        if node.op_type == "Cast" and (node.output[0] in entered or node.input[0] in left):
            continue
        if node.op_type == "QuantizeLinear" and node.input[0] in inputs | entered:
            border = {node.input[0], node.input[1]}
        if node.op_type == "DequantizeLinear" and _leaves(node.output[0], outputs, used, left):
            border = {node.input[1], node.output[0]}
        if node.op_type in ("Shape", "Size") and node.input[0] in inputs:
            border = {node.input[0]}
        at_border |= border
        if node.op_type == "Constant":
            border = set(node.output)  # judged below
        for name in (*node.input, *node.output):
            if not name or name in border:
                continue
            if name not in types:
                offences.append(f"{where}: type of {name!r} is unknown")
            elif types[name] in FLOATS:
                offences.append(f"{where}: {name!r} is {helper.tensor_dtype_to_string(types[name])}")
    constants = [i.name for i in graph.initializer]
    constants += [n for node in graph.node if node.op_type == "Constant" for n in node.output]
    offences += [f"constant {n!r} is in float" for n in constants if types[n] in FLOATS and n not in at_border]
    return offences


def _leaves(name: str, outputs: set[str], used: set[str], left: set[str]) -> bool:
    """Whether a tensor only leaves the graph: as an output, or through a Cast that makes one."""
    return name in left or (name in outputs and name not in used)


def _constant_type(node: onnx.NodeProto) -> int:
    for attr in node.attribute:
        if attr.name == "value":
            return attr.t.data_type
        if "float" in attr.name:
            return int(onnx.TensorProto.FLOAT)
    return int(onnx.TensorProto.INT64)
