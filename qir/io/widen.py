"""Standard operators on integer dtypes for which runtimes have no kernel: the same operator between two Casts.

ONNX allows Clip on int16 and Reshape on int4, onnxruntime 1.31 computes neither.  Such a node is exported as a local
function of domain `qir` under its own name, whose body casts, computes and casts back; loading gives the node back.
Operators with a form of their own for such dtypes (`Op.needs_function`) are not the business of this module.
DepthToSpace and SpaceToDepth, for which only 8-bit kernels exist, are written as Reshape, Transpose, Reshape.
"""

from __future__ import annotations

from ..errors import UnsupportedError
from ..graph import Node
from ..types import DType
from .functions import ONNX_TYPE, Body
from .protos import export_attrs

FOUR_BITS = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear", "Transpose"})
"""Operators with 4-bit kernels."""

NO_SIXTEEN_BITS = frozenset(
    {"ArgMax", "ArgMin", "Clip", "Max", "Min", "Pad", "ReduceMax", "ReduceMin", "Resize", "TopK"}
)  # fmt: skip
"""Operators without 16-bit kernels."""

BLOCKS = frozenset({"DepthToSpace", "SpaceToDepth"})


def wide_dtype(op: str, kind: DType) -> DType | None:
    """The dtype in which an operator on `kind` is computed, or None where it can be in `kind` itself."""
    if kind.is_integer and kind.bits == 4 and op not in FOUR_BITS:
        return DType.INT8 if kind.is_signed else DType.UINT8
    if kind.is_integer and kind.bits == 16 and op in NO_SIXTEEN_BITS:
        return DType.INT32
    return None


def needs_body(node: Node) -> bool:
    """Whether a standard operator must be exported as a function."""
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    if node.op in BLOCKS:
        return node.input(0).dtype.is_integer and node.input(0).dtype.bits != 8
    return any(wide_dtype(node.op, v.dtype) for v in values)


def write_body(body: Body, node: Node, output_names: list[str]) -> None:
    """The function's body; inputs are called as in `body.inputs`."""
    if node.op in BLOCKS:
        _blocks(body, node, output_names[0])
        return
    inputs: list[str] = []
    for name, value in zip(body.inputs, node.inputs, strict=False):
        wide = None if value is None else wide_dtype(node.op, value.dtype)
        inputs.append("" if value is None else name if wide is None else body.cast(name, wide))
    results = body.ops(node.op, *inputs, count=len(node.outputs), **export_attrs(node.attrs, standard=True))
    for name, result, value in zip(output_names, results, node.outputs, strict=True):
        if wide_dtype(node.op, value.dtype) is None:
            body.op("Identity", result, output=name)
        else:
            body.op("Cast", result, output=name, to=ONNX_TYPE[value.dtype])


def _blocks(body: Body, node: Node, output: str) -> None:
    """Blocks of pixels to channels and back, as ONNX defines them; 0 in a Reshape keeps the batch."""
    kind = node.input(0).dtype
    x = body.inputs[0]
    if kind.bits == 4:
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
    joined = body.op("Reshape", moved, body.int64([0, *final]), output=None if kind.bits == 4 else output)
    if kind.bits == 4:
        body.op("Cast", joined, output=output, to=ONNX_TYPE[kind])
