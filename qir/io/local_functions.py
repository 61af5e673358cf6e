"""Model-local functions of domain `qir`: written for a node by export, compared with what a file holds by load.

Integer operators write their own (`Op.function_body`).  Here are the bodies of standard operators on integer dtypes
for which runtimes have no kernel: the same operator between two Casts.

ONNX allows Clip on int16 and Reshape on int4, onnxruntime 1.31 computes neither, nor did 1.23 compute TopK on int8.
Such a node is exported as a local function of domain `qir` under its own name, whose body casts, computes and casts
back; loading gives the node back.
Operators with a form of their own for such dtypes (`Op.needs_function`) are not the business of this module.
DepthToSpace and SpaceToDepth, for which only the first has a kernel everywhere, on uint8, are written as Reshape,
Transpose, Reshape.
"""

from __future__ import annotations

import numpy as np
import onnx

from ..errors import ModelError, UnsupportedError, named
from ..graph import Graph, Node, Value
from ..ops import Op, op_of
from ..types import DType
from .functions import DOMAIN, ONNX_TYPE, Body, carries_wide, eight_bits, function_stem, wire_dtype
from .protos import export_attrs

FOUR_BITS = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear", "Transpose"})
"""Operators with 4-bit kernels in ONNX Runtime 1.31: these four tables are its abilities, no facts of operators."""

NO_SIXTEEN_BITS = frozenset(
    {"ArgMax", "ArgMin", "Clip", "Max", "Min", "Pad", "ReduceMax", "ReduceMin", "Resize", "TopK"}
)  # fmt: skip
"""Operators without 16-bit kernels."""

NO_EIGHT_BITS = frozenset({"TopK"})
"""Operators without 8-bit kernels."""

BLOCKS = frozenset({"DepthToSpace", "SpaceToDepth"})


def computed(op: str, kind: DType, wide: bool) -> DType:
    """The dtype in which an operator on `kind` is computed; wide: 4-bit activations travel in 8 bits."""
    if not kind.is_integer:
        return kind
    if (kind.bits <= 8 and op in NO_EIGHT_BITS) or (kind.bits == 16 and op in NO_SIXTEEN_BITS):
        return DType.INT32
    if kind.bits == 4 and (wide or op not in FOUR_BITS):
        return eight_bits(kind)
    return kind


def needs_body(node: Node, wide: bool) -> bool:
    """Whether a standard operator must be exported as a function."""
    if node.op in BLOCKS:
        kind = wire_dtype(node.input(0), wide)
        return kind.is_integer and (kind is not DType.UINT8 or node.op == "SpaceToDepth")
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    if op_of(node.op).border:  # constants alone may stay at four bits
        return any(wire_dtype(v, wide) is not v.dtype for v in values)
    return any(computed(node.op, v.dtype, wide) is not wire_dtype(v, wide) for v in values)


def write_body(body: Body, node: Node, output_names: list[str]) -> None:
    """The function's body; inputs are called as in `body.inputs`."""
    if node.op in BLOCKS:
        _blocks(body, node, output_names[0])
        return
    if op_of(node.op).border:
        _border(body, node, output_names[0])
        return
    inputs: list[str] = []
    for name, value in zip(body.inputs, node.inputs, strict=False):
        inputs.append("" if value is None else _as_computed(body, node, name, value))
    results = body.ops(node.op, *inputs, count=len(node.outputs), **export_attrs(node.attrs, standard=True))
    for name, result, value in zip(output_names, results, node.outputs, strict=True):
        if computed(node.op, value.dtype, body.wide) is wire_dtype(value, body.wide):
            body.op("Identity", result, output=name)
        else:
            body.op("Cast", result, output=name, to=body.result_type(value.dtype))


def _as_computed(body: Body, node: Node, name: str, value: Value) -> str:
    """An input in the dtype in which the operator is computed."""
    kind, wire = computed(node.op, value.dtype, body.wide), wire_dtype(value, body.wide)
    if kind is wire:
        return name
    if wire.bits == 4 and kind.bits == 8:
        return body.widen4(name, wire)
    return body.cast(name, kind)


def _border(body: Body, node: Node, output: str) -> None:
    """Quantization to, or from, a 4-bit grid whose integers travel in 8 bits."""
    kind = (node.output if node.op == "QuantizeLinear" else node.input(0)).dtype
    wide = eight_bits(kind)
    inputs = list(body.inputs[: len(node.inputs)])
    attrs = export_attrs({k: v for k, v in node.attrs.items() if k != "output_dtype"}, standard=True)
    if len(inputs) > 2:
        inputs[2] = body.widen4(inputs[2], kind)
    if node.op == "DequantizeLinear":
        body.op(node.op, *inputs, output=output, **attrs)
        return
    if len(inputs) < 3:
        attrs["output_dtype"] = ONNX_TYPE[wide]
    limits = (body.constant(np.asarray(end, wide.numpy)) for end in (kind.lo, kind.hi))
    body.op("Clip", body.op(node.op, *inputs, **attrs), *limits, output=output)


def _blocks(body: Body, node: Node, output: str) -> None:
    """Blocks of pixels to channels and back, as ONNX defines them; 0 in a Reshape keeps the batch."""
    kind = node.input(0).dtype
    x = body.inputs[0]
    packed = body.wire(x).bits == 4
    if packed:
        x = body.widen4(x, kind)
    b = int(node.attrs["blocksize"])
    sizes = [d for d in node.input(0).shape[1:] if isinstance(d, int)]
    if len(sizes) != 3:
        raise UnsupportedError("needs fixed channels, height and width", where=str(node))
    c, h, w = sizes
    if node.op == "SpaceToDepth":
        inner, order, final = [c, h // b, b, w // b, b], [0, 3, 5, 1, 2, 4], [c * b * b, h // b, w // b]
    elif node.attrs.get("mode", "DCR") == "CRD":
        inner, order, final = [c // (b * b), b, b, h, w], [0, 1, 4, 2, 5, 3], [c // (b * b), h * b, w * b]
    else:
        inner, order, final = [b, b, c // (b * b), h, w], [0, 3, 4, 1, 5, 2], [c // (b * b), h * b, w * b]
    split = body.op("Reshape", x, body.int64([0, *inner]))
    moved = body.op("Transpose", split, perm=order)
    joined = body.op("Reshape", moved, body.int64([0, *final]), output=None if packed else output)
    if packed:
        body.op("Cast", joined, output=output, to=ONNX_TYPE[kind])


# -- a node's function ------------------------------------------------------------------------------------------
def function_of(op: Op, node: Node, opset: int, wide: bool) -> onnx.FunctionProto:
    """The local function that a node is exported as, under its operator's own name; wide: see `carries_wide`."""
    body = Body(node, formal_names(op.inputs, len(node.inputs)), opset, wide)
    outputs = formal_names(op.outputs, len(node.outputs))[: len(node.outputs)]
    if op.needs_function(node, opset):
        op.function_body(body, node)
    else:
        write_body(body, node, outputs)
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
        if call.op_type not in bodies:
            raise ModelError(f"its local function {call.op_type!r} is not in the file", where=str(node))
        with named(ModelError, node, "its local function cannot be written"):
            if node is not None and bodies[call.op_type] != _body_text(function_of(op_of(node.op), node, opset, wide)):
                strange[call.op_type] = None
    return list(strange)


def _body_text(function: onnx.FunctionProto) -> tuple[object, ...]:
    nodes = tuple(n.SerializeToString(deterministic=True) for n in function.node)
    return tuple(function.input), tuple(function.output), nodes
