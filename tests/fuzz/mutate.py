"""Mutations: of a model's structure, of a text's tokens, and of bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper

from .corpus import Sample

Rng = Any
"""random.Random: one seed, one run."""

INTS = (
    0, 1, 2, 3, -1, -2, 7, 16, 62, 63, 64, 127, 128, 255, 256, 1000, 65536, 10**6, 2**31 - 1, 2**31, -(2**31), 2**32,
    10**9, 10**12, 2**62, 2**63 - 1, -(2**63),
)  # fmt: skip
REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, 3.5e38, float("inf"), float("-inf"), float("nan"), 1e-45, 2.0**31)
WORDS = (
    "",
    "NOTSET",
    "SAME_UPPER",
    "VALID",
    "linear",
    "nearest",
    "cubic",
    "CRD",
    "DCR",
    "tanh",
    "uint8",
    "int4",
    "\x1b[31m",
)
TOKENS = (
    "0", "-1", "1e999", "NaN", "1" * 400, "1" * 5000, "[]", "{}", "null", "true", '""', '"x"', "[" * 3000, "{" * 3000,
    "9223372036854775808", "-9223372036854775809", "\x00", "\ufffd", "0.5", "inf", "= ", ",", "N", "4*N", "%x",
)  # fmt: skip


def mutated(sample: Sample, rng: Rng) -> bytes:
    """One to four mutations of a sample."""
    data = sample.data
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if sample.kind == "model" and rng.random() < 0.85:
            data = _structure(data, rng)
        elif sample.kind in ("npy", "npz", "model") or rng.random() < 0.2:
            data = _bytes(data, rng)
        else:
            data = _text(data, rng)
    return data


# -- bytes --------------------------------------------------------------------------------------
def _bytes(data: bytes, rng: Rng) -> bytes:
    raw = bytearray(data)
    at = rng.randrange(len(raw) or 1)
    if raw and rng.random() < 0.3:  # headers are at the ends
        at = rng.randrange(min(len(raw), 140)) if rng.random() < 0.5 else max(len(raw) - 1 - rng.randrange(140), 0)
    how = rng.randrange(6)
    if how == 0 and raw:
        raw[at] ^= 1 << rng.randrange(8)
    elif how == 1 and raw:
        raw[at] = rng.randrange(256)
    elif how == 2:
        del raw[at : at + rng.choice((1, 2, 8, 100))]
    elif how == 3:
        raw[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 20))))
    elif how == 4:
        del raw[at:]
    else:
        size = rng.choice((4, 16, 64))
        other = rng.randrange(len(raw) or 1)
        raw[at : at + size] = raw[other : other + size]
    return bytes(raw)


# -- texts ----------------------------------------------------------------------------------------
def _text(data: bytes, rng: Rng) -> bytes:
    text = data.decode("utf-8", "replace")
    pieces = re.split(r"(\s+|[\[\]{}(),:=%\"])", text)
    at = rng.randrange(len(pieces))
    how = rng.randrange(6)
    if how == 0:
        words = [i for i, p in enumerate(pieces) if re.fullmatch(r"-?[\d.eE+-]+", p)]
        pieces[rng.choice(words) if words else at] = rng.choice(TOKENS)
    elif how == 1:
        pieces[at] = rng.choice(TOKENS)
    elif how == 2:
        del pieces[at : at + rng.choice((1, 3, 30))]
    elif how == 3:
        other = rng.randrange(len(pieces))
        pieces[at:at] = pieces[other : other + rng.choice((1, 5, 40))]
    elif how == 4:
        words = [i for i, p in enumerate(pieces) if re.fullmatch(r"[A-Za-z_]\w*", p)]
        if words:
            pieces[rng.choice(words)] = pieces[rng.choice(words)]
    else:
        lines = "".join(pieces).splitlines(keepends=True)
        rng.shuffle(lines)
        pieces = lines
    return "".join(pieces).encode("utf-8", "replace")


# -- structure ------------------------------------------------------------------------------------
def _structure(data: bytes, rng: Rng) -> bytes:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        rng.choice(STRUCTURAL)(model, rng)
        return model.SerializeToString()
    except Exception:  # an earlier mutation left no protobuf, or a value that no field can hold
        return _bytes(data, rng)


def _nodes(model: onnx.ModelProto, rng: Rng) -> Any:
    """The graph's nodes, or those of a function."""
    if model.functions and rng.random() < 0.15:
        return rng.choice(model.functions).node
    return model.graph.node


def attribute_value(model: onnx.ModelProto, rng: Rng) -> None:
    found = [a for node in _nodes(model, rng) for a in node.attribute]
    attr = rng.choice(found)
    if attr.type == AttributeProto.INT:
        attr.i = rng.choice(INTS)
    elif attr.type == AttributeProto.INTS:
        if rng.random() < 0.25:
            del attr.ints[:]
        elif rng.random() < 0.25:
            attr.ints.append(rng.choice(INTS))
        else:
            attr.ints[rng.randrange(len(attr.ints))] = rng.choice(INTS)
    elif attr.type == AttributeProto.FLOAT:
        attr.f = rng.choice(REALS)
    elif attr.type == AttributeProto.STRING:
        attr.s = rng.choice(WORDS).encode()
    else:
        attr.name = rng.choice(WORDS)


def attribute_kind(model: onnx.ModelProto, rng: Rng) -> None:
    node = rng.choice(_nodes(model, rng))
    names = [a.name for a in node.attribute] or ["axis", "keepdims", "alpha"]
    value = rng.choice((rng.choice(INTS), rng.choice(REALS), rng.choice(WORDS), [1, 2], [0.5], ["a"], [1, 1, 1, 1]))
    new = helper.make_attribute(rng.choice((*names, "axis", "zero_point")), value)
    if rng.random() < 0.6:
        for index, attr in enumerate(node.attribute):
            if attr.name == new.name:
                del node.attribute[index]
                break
    node.attribute.append(new)


def attribute_gone(model: onnx.ModelProto, rng: Rng) -> None:
    node = rng.choice([n for n in _nodes(model, rng) if n.attribute])
    del node.attribute[rng.randrange(len(node.attribute))]


def operator(model: onnx.ModelProto, rng: Rng) -> None:
    nodes = _nodes(model, rng)
    node, other = rng.choice(nodes), rng.choice(nodes)
    names = (
        "Relu", "Add", "Mul", "Reshape", "Transpose", "Concat", "Split", "Softmax", "Identity", "MatMul", "Gather",
        "Pow", "Div", "Cast", "Slice", "Tile", "Expand", "Where", "Sum", "Max", "ReduceSum", "Squeeze", "TopK", "Pad",
    )  # fmt: skip
    if rng.random() < 0.5:
        node.op_type, node.domain = other.op_type, other.domain
    else:
        node.op_type, node.domain = rng.choice(names), ""


def wire(model: onnx.ModelProto, rng: Rng) -> None:
    """Another input for a node: one of the names there are, none, or one that is nowhere."""
    node = rng.choice(_nodes(model, rng))
    known = [i.name for i in model.graph.initializer] + [o for n in model.graph.node for o in n.output]
    known += [i.name for i in model.graph.input] + ["", "nowhere"]
    how = rng.randrange(4)
    if how == 0 and node.input:
        del node.input[rng.randrange(len(node.input))]
    elif how == 1:
        node.input.append(rng.choice(known))
    elif node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(known)


def outputs(model: onnx.ModelProto, rng: Rng) -> None:
    node = rng.choice(_nodes(model, rng))
    if rng.random() < 0.5:
        node.output.append(f"more{rng.randrange(10)}")
    else:
        node.output[rng.randrange(len(node.output))] = rng.choice(("", "other", *node.input))


def node_gone_or_twice(model: onnx.ModelProto, rng: Rng) -> None:
    nodes = _nodes(model, rng)
    at = rng.randrange(len(nodes))
    if rng.random() < 0.5:
        del nodes[at]
    else:
        copy = nodes.add()
        copy.CopyFrom(nodes[at])
        for index, name in enumerate(copy.output):
            copy.output[index] = f"{name}.twice"


def tensor(model: onnx.ModelProto, rng: Rng) -> None:
    """An initializer's shape, type, bytes or place."""
    found = rng.choice(model.graph.initializer)
    how = rng.randrange(7)
    if how == 0:
        found.data_type = rng.randrange(0, 24)
    elif how == 1 and found.dims:
        found.dims[rng.randrange(len(found.dims))] = rng.choice(INTS)
    elif how == 2:
        found.dims.append(rng.choice((0, 1, 1, 2)))
    elif how == 3 and found.dims:
        del found.dims[rng.randrange(len(found.dims))]
    elif how == 4 and found.raw_data:
        found.raw_data = _bytes(found.raw_data, rng)
    elif how == 5 and found.raw_data:
        raw = bytearray(found.raw_data)
        width = rng.choice((1, 4, 8))
        at = rng.randrange(0, len(raw), width)
        raw[at : at + width] = rng.choice((b"\xff", b"\x7f", b"\x80", b"\x00")) * len(raw[at : at + width])
        found.raw_data = bytes(raw)
    else:
        found.data_location = onnx.TensorProto.EXTERNAL
        entry = found.external_data.add()
        entry.key, entry.value = "location", rng.choice(("/etc/passwd", "../x", "", "model.onnx", "."))


def scalar_data(model: onnx.ModelProto, rng: Rng) -> None:
    """Whole constants of extreme values: shapes, repeats, scales, shifts."""
    found = rng.choice(model.graph.initializer)
    array = onnx.numpy_helper.to_array(found).copy()
    if array.dtype.kind not in "iuf" or not array.size:
        return
    value = rng.choice(REALS if array.dtype.kind == "f" else INTS)
    if array.dtype.kind != "f":
        limits = 8 * array.dtype.itemsize
        value %= 1 << limits
        value = value - (1 << limits) if array.dtype.kind == "i" and value >= 1 << (limits - 1) else value
    with np.errstate(all="ignore"):
        if rng.random() < 0.5:
            array[...] = value
        else:
            array.reshape(-1)[rng.randrange(array.size)] = value
    found.CopyFrom(onnx.numpy_helper.from_array(array, found.name))


def border(model: onnx.ModelProto, rng: Rng) -> None:
    """Declared inputs and outputs."""
    info = rng.choice([*model.graph.input, *model.graph.output])
    kind = info.type.tensor_type
    how = rng.randrange(5)
    if how == 0:
        kind.elem_type = rng.randrange(0, 24)
    elif how == 1 and kind.shape.dim:
        rng.choice(kind.shape.dim).dim_value = rng.choice(INTS)
    elif how == 2 and kind.shape.dim:
        rng.choice(kind.shape.dim).dim_param = rng.choice(("N", "M", "", "4*N"))
    elif how == 3 and kind.shape.dim:
        del kind.shape.dim[rng.randrange(len(kind.shape.dim))]
    else:
        info.name = rng.choice(("", "other", *(n.output[0] for n in model.graph.node)))


def header(model: onnx.ModelProto, rng: Rng) -> None:
    """Opset, metadata, functions."""
    how = rng.randrange(5)
    if how == 0:
        rng.choice(model.opset_import).version = rng.choice((0, 1, 7, 9, 11, 13, 17, 18, 21, 22, 28, 29, 2**40))
    elif how == 1 and model.metadata_props:
        prop = rng.choice(model.metadata_props)
        prop.value = _text(prop.value.encode(), rng).decode("utf-8", "replace")
    elif how == 2 and model.functions:
        del model.functions[rng.randrange(len(model.functions))]
    elif how == 3 and model.functions:
        function = rng.choice(model.functions)
        function.name = rng.choice((*(f.name for f in model.functions), "Conv", "x"))
    elif model.graph.value_info:
        del model.graph.value_info[rng.randrange(len(model.graph.value_info))]


STRUCTURAL: tuple[Callable[[onnx.ModelProto, Rng], None], ...] = (
    attribute_value, attribute_value, attribute_value, attribute_kind, attribute_gone, operator, operator, wire, wire,
    outputs, node_gone_or_twice, tensor, tensor, scalar_data, scalar_data, scalar_data, border, border, header,
)  # fmt: skip
