"""Graph -> onnx.ModelProto: standard operators as they are, integer operators as model-local functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from ..declared import KEY as SIGNATURE
from ..errors import UnsupportedError
from ..graph import Graph, Node, Value
from ..ops import Op, op_of
from ..sizes import BATCH
from ..types import TensorType
from . import metadata
from .functions import DOMAIN, ONNX_TYPE, carries_wide, function_stem, wire_dtype
from .local_functions import formal_names, function_of, needs_body
from .protos import attribute_proto, export_attrs, tensor_proto
from .signature import restore

DEFAULT_OPSET = 21
OPSETS = range(21, 29)
"""Opsets that can be written; 21 is what runtimes take today, from 28 on BitShift is signed and arithmetic."""

MAX_TENSOR = 2**31 - 2**20
"""Bytes of one tensor that protobuf can hold; larger models are fine, as long as no single tensor is."""

IR_VERSION = {21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13, 27: 13, 28: 14}


def to_onnx(
    graph: Graph, opset: int = DEFAULT_OPSET, extra_outputs: Sequence[str] = (), *, declared: bool = True
) -> onnx.ModelProto:
    """An ONNX model of a graph of any stage.

    extra_outputs: names of intermediate values that become outputs too, after the graph's own.
    declared: inputs and outputs as the file that was loaded declared them (half precision behind a Cast, names of open
    axes, texts); False: as the graph has them.
    Metadata "qir" holds the stage and the quantization of each tensor, so that loading restores them.
    Raises UnsupportedError on an opset outside 21..28 or a tensor over 2 GB, GraphError on an unknown value.
    """
    if opset not in OPSETS:
        raise UnsupportedError(f"cannot export to opset {opset}", hint=f"{OPSETS[0]} to {OPSETS[-1]} are written")
    outputs = list(graph.outputs)
    for name in extra_outputs:
        value = graph.value(name)
        if value not in outputs:
            outputs.append(value)
    wide = carries_wide(graph, opset)
    functions = _Functions(opset, wide)
    exporter = _Exporter(graph, functions)
    model = gs.export_onnx(exporter.surgeon_graph(outputs, opset), do_type_check=True, ir_version=IR_VERSION[opset])
    model.producer_name = "qir"
    for proto, attributes in zip(model.graph.node, exporter.attributes, strict=True):
        proto.attribute.extend(attributes)
    model.functions.extend(functions.protos)
    props = {**graph.metadata, metadata.KEY: metadata.dump(graph, wide)}
    helper.set_model_props(model, props)
    if declared:
        restore(model, graph.metadata.get(SIGNATURE))
    return model


class _Functions:
    """Function bodies, equal ones shared; different ones of the same operator are numbered: Conv, Conv_2 ...

    ONNX has `overload` for this, but some runtimes (onnx.reference 1.23 among them) look functions up without it.
    """

    def __init__(self, opset: int, wide: bool) -> None:
        self.opset, self.wide = opset, wide
        self.protos: list[onnx.FunctionProto] = []
        self._names: dict[tuple[str, bytes], str] = {}
        self._count: dict[str, int] = {}

    def name_of(self, op: Op, node: Node) -> str:
        """The name of the function that a node calls, its body written if it is a new one."""
        name = function_stem(op)
        proto = function_of(op, node, self.opset, self.wide)
        key = (name, proto.SerializeToString(deterministic=True))
        if key not in self._names:
            n = self._count[name] = self._count.get(name, 0) + 1
            proto.name = self._names[key] = name if n == 1 else f"{name}_{n}"
            self.protos.append(proto)
        return self._names[key]


class _Exporter:
    """Builds the onnx-graphsurgeon graph; each node's attributes are kept beside it, as finished protos."""

    def __init__(self, graph: Graph, functions: _Functions) -> None:
        self.graph, self.functions = graph, functions
        self.attributes: list[list[onnx.AttributeProto]] = []
        self.tensors: dict[Value, gs.Tensor] = {}

    def surgeon_graph(self, outputs: Sequence[Value], opset: int) -> gs.Graph:
        nodes = [self.node(n, opset) for n in self.graph.nodes]
        ends = [self.tensor(v) for v in dict.fromkeys(outputs)]
        domains = [helper.make_opsetid("", opset)]
        if self.functions.protos:
            domains.append(helper.make_opsetid(DOMAIN, 1))
        return gs.Graph(
            nodes, [self.tensor(v) for v in self.graph.inputs], ends, name=self.graph.name, opset=opset,
            import_domains=domains,
        )  # fmt: skip

    def tensor(self, value: Value | None) -> gs.Tensor:
        if value is None:
            return gs.Variable.empty()
        if value not in self.tensors:
            kind = replace(value.type, dtype=wire_dtype(value, self.functions.wide), quant=None)
            self.tensors[value] = surgeon_tensor(value.name, kind, value)
        return self.tensors[value]

    def node(self, node: Node, opset: int) -> gs.Node:
        op = op_of(node.op)
        local = op.needs_function(node, opset) or needs_body(node, self.functions.wide)
        attrs = export_attrs(node.attrs, standard=not op.is_integer_op)
        op_type = self.functions.name_of(op, node) if local else node.op
        self.attributes.append([attribute_proto(k, v) for k, v in attrs.items()])
        inputs = list(node.inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        if local:  # a call names all the function's inputs, absent ones by ""
            inputs += [None] * (len(formal_names(op.inputs, len(inputs))) - len(inputs))
        return gs.Node(
            op_type, node.name, inputs=[self.tensor(v) for v in inputs],
            outputs=[self.tensor(v) for v in node.outputs], domain=DOMAIN if local else "",
        )  # fmt: skip


def surgeon_tensor(name: str, kind: TensorType, value: Value) -> gs.Tensor:
    """A graphsurgeon tensor.  Constants carry a finished TensorProto, which that library passes through as it is:
    its own conversion knows no 4-bit types."""
    if value.data is None:
        return gs.Variable(name, ONNX_TYPE[kind.dtype], exported_shape(value, kind))
    if value.data.nbytes > MAX_TENSOR:
        raise UnsupportedError(f"{value.data.nbytes} bytes do not fit one ONNX tensor", where=f"constant {name!r}")
    return gs.Constant(name, LazyValues(tensor_proto(name, np.asarray(value.data), kind.dtype)))  # pyright: ignore[reportArgumentType]


def exported_shape(value: Value, kind: TensorType) -> list[int | str]:
    """Sizes as the file shall say them: symbols as in the file they came from (the batch is for `signature`)."""
    names = {s: symbol.name for s, symbol in value.graph.symbols.items() if symbol.name and s != BATCH}
    return [names.get(d, d) if isinstance(d, str) else d for d in kind.shape]
