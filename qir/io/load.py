"""ONNX -> Graph, through onnx-graphsurgeon.  The file is hostile until it has proved otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from ..declared import KEY as SIGNATURE
from ..errors import ModelError, QirError, RefusedError, TypeInferenceError, UnsupportedError, said
from ..graph import Graph, Stage
from ..ops import least_outputs, op_of
from ..ops.memory import check_graph, demand
from ..shapes import fold_shapes
from ..sizes import BATCH
from ..sizes.readings import Reading, Shapes, readings
from ..types import Array, DType
from ..verify import verify
from . import metadata
from .adapters import Raw
from .decompose.control_flow import unfold_control_flow
from .functions import DOMAIN, eight_bits, operator_of
from .importer import Constant, Importer
from .local_functions import strange_functions
from .signature import describe
from .structure import STANDARD, check_structure, opset_of
from .tensors import ir_dtype, tensor_array

G_LOGGER.severity = G_LOGGER.ERROR
log = logging.getLogger(__name__)

MOST_NODES = 1_000_000
"""Nodes of a graph once its local functions are written out."""


def load(model: str | Path | bytes | onnx.ModelProto, *, input_shapes: Shapes | None = None) -> Graph:
    """A graph from an ONNX model of opset 7 to 28: a path, a serialized model or a ModelProto (left unchanged).

    Axes without a fixed size stay open: the batch is "N", others are called as in the file (`Graph.symbols`).
    input_shapes: {input: shape} with numbers for open sizes, or names ("N": the batch).
    Half floats and doubles are computed in float32.
    An INTEGER graph is verified: what its operators need for one meaning on every executor holds.
    The stage is INTEGER for models that `save` wrote in that stage, QDQ for those with QuantizeLinear, DequantizeLinear
    or QONNX Quant nodes, else FLOAT.
    Raises ModelError (broken or hostile file), UnsupportedError (operator, dtype, opset), TypeInferenceError,
    VerifyError.
    """
    where = "model" if isinstance(model, bytes | onnx.ModelProto) else f"file {str(model)!r}"
    try:
        return _load(model, input_shapes)
    except QirError:
        raise
    except Exception as error:  # what broken bytes do to NumPy, onnx and Python has no common class
        raise ModelError(f"is broken: {said(error)}", where=where) from error


def _load(model: str | Path | bytes | onnx.ModelProto, input_shapes: Shapes | None) -> Graph:
    proto, folder = read_proto(model)
    proto = unfold_control_flow(proto)
    order = check_structure(proto)
    opset = opset_of(proto)
    proto, order = inline_others(proto, order)
    stage, quant, four = Stage.FLOAT, {}, {}
    header: dict[str, str] = {}
    for prop in proto.metadata_props:
        if prop.key == metadata.KEY:
            stage, quant, four = metadata.parse(prop.value)
        else:
            header[prop.key] = prop.value
    surgeon = import_graph(proto)
    constants = {i.name: _reader(i, folder) for i in proto.graph.initializer}
    names = {n for node in proto.graph.node for n in node.output} | set(constants) | {i.name for i in proto.graph.input}
    used = used_outputs(proto)

    def build(reading: Reading) -> Graph:
        graph = Graph(proto.graph.name or "graph")
        graph.metadata, graph.symbols = dict(header), dict(reading.symbols)
        for name, kind in reading.types:
            narrow = four.get(name, kind.dtype)
            graph.add_input(name, replace(kind, dtype=narrow) if eight_bits(narrow) is kind.dtype else kind)
        importer = Importer(graph, opset, constants, set(names))
        for index in order:
            raw = raw_node(surgeon.nodes[index], used, folder)
            if raw.op == "Constant" and raw.domain in STANDARD:
                importer.define(raw.outputs[0] or "", constant_node(raw, folder))
            else:
                importer.add(raw)
        importer.finish([o.name for o in proto.graph.output])
        return graph

    graph = _first_that_fits(_readings(proto, input_shapes or {}, set(constants)), build)
    signature = describe(proto, graph)
    graph.metadata.pop(SIGNATURE, None)
    if signature is not None:
        graph.metadata[SIGNATURE] = signature
    graph.stage = _stage(graph, stage)
    for name, params in quant.items():
        if name in graph and graph.value(name).dtype is params.dtype:
            value = graph.value(name)
            value.type = replace(value.type, quant=params)
    check_graph(graph)
    if graph.stage is not Stage.INTEGER:
        fold_shapes(graph)
        return graph
    verify(graph, Stage.INTEGER)
    for name in strange_functions(graph, proto, opset):
        log.warning(
            "function %r of this model is not written as this version of qir writes it; "
            "qir's own executors compute what its name means, other runtimes what its body says", name,
        )  # fmt: skip
    return graph


def _readings(proto: onnx.ModelProto, shapes: Shapes, constants: set[str]) -> Iterator[Reading]:
    inputs = [i for i in proto.graph.input if i.name not in constants]
    return readings({i.name: _kind(i) for i in inputs}, {i.name: _declared(i) for i in inputs}, shapes)


def _kind(info: onnx.ValueInfoProto) -> DType:
    where = f"input {info.name!r}"
    if info.type.WhichOneof("value") != "tensor_type":
        raise UnsupportedError("is not a tensor", where=where)
    return ir_dtype(info.type.tensor_type.elem_type, where)


def _declared(info: onnx.ValueInfoProto) -> list[int | str] | None:
    """The file's sizes, "?" for an open one without a name; None where it has no shape."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    sizes: list[int | str] = []
    for axis, d in enumerate(tensor.shape.dim):
        size: int | str = d.dim_value if d.HasField("dim_value") else d.dim_param or "?"
        if isinstance(size, int) and size <= 0:
            if size < -1 or axis > 0:
                raise ModelError(f"has a negative size: {size} on axis {axis}", where=f"input {info.name!r}")
            size = "?"
        sizes.append(size)
    return sizes


def _first_that_fits(tries: Iterator[Reading], build: Callable[[Reading], Graph]) -> Graph:
    """The graph under the first reading of its open axes whose types can be inferred."""
    best: tuple[Reading, QirError] | None = None
    least = 0
    for reading in tries:
        try:
            return build(reading)
        except (TypeInferenceError, RefusedError) as error:
            refusals = error.refusals if isinstance(error, RefusedError) else [error]
            if not any(isinstance(e, TypeInferenceError) for e in refusals):
                raise
            if best is None or len(refusals) < least:
                best, least = (reading, error), len(refusals)
    assert best is not None
    reading, error = best
    if not reading.beyond_batch or isinstance(error, RefusedError):
        raise error
    name, kind = next((n, t) for n, t in reading.types if any(isinstance(d, str) and d != BATCH for d in t.shape))
    shape = "x".join(str(d) if isinstance(d, int) or d == BATCH else "..." for d in kind.shape)
    raise ModelError(
        f"its open sizes cannot stay open: {error}", where=f"input {name!r}",
        hint=f"give numbers for the dots (? leaves one open): --input-shape {name}:{shape} "
        f"or input_shapes={{{name!r}: [...]}}",
    ) from error  # fmt: skip


def read_proto(model: str | Path | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None]:
    """(model, folder for external data).  Raises ModelError where there is no file or no protobuf in it."""
    if isinstance(model, onnx.ModelProto):
        return model, None
    folder: Path | None = None
    where = "model"
    if not isinstance(model, bytes):
        path = Path(model)
        where = f"file {str(path)!r}"
        try:
            if path.is_file():
                demand(path.stat().st_size, "reading it", where)
            raw = path.read_bytes()
        except OSError as error:
            raise ModelError(f"cannot be read: {error.strerror}", where=where) from error
        folder = path.resolve().parent
    else:
        raw = model
    if not raw:
        raise ModelError("is empty", where=where)
    try:
        return onnx.load_model_from_string(raw), folder
    except (DecodeError, ValueError) as error:
        raise ModelError("is not an ONNX protobuf", where=where, hint="is the file complete?") from error


def inline_others(proto: onnx.ModelProto, order: list[int]) -> tuple[onnx.ModelProto, list[int]]:
    """Local functions of other exporters, inlined; ours are operators to us."""
    if all(f.domain == DOMAIN for f in proto.functions):
        return proto, order
    ours = [(f.domain, f.name) for f in proto.functions if f.domain == DOMAIN]
    _bound_inlining(proto)
    try:
        flat = onnx.inliner.inline_selected_functions(proto, ours, exclude=True)
    except Exception as error:
        raise ModelError(f"its local functions cannot be inlined: {error}", where="model") from error
    return flat, check_structure(flat)


def _bound_inlining(proto: onnx.ModelProto) -> None:
    """Functions that call functions grow exponentially: their nodes are counted before they are written out.

    Raises ModelError past MOST_NODES, and for functions that call themselves.
    """
    bodies = {(f.domain, f.name): f.node for f in proto.functions if f.domain != DOMAIN}
    sizes: dict[tuple[str, str], int] = {}
    open_calls: set[tuple[str, str]] = set()

    def size(key: tuple[str, str]) -> int:
        if key not in bodies:
            return 1
        if key in open_calls:
            raise ModelError(f"its local functions cannot be inlined: {key[1]!r} calls itself", where="model")
        if key not in sizes:
            open_calls.add(key)
            sizes[key] = sum(size((n.domain, n.op_type)) for n in bodies[key])
            open_calls.remove(key)
        return sizes[key]

    count = sum(size((n.domain, n.op_type)) for n in proto.graph.node)
    if count > MOST_NODES:
        raise ModelError(f"its local functions stand for {count:,} nodes; the limit is {MOST_NODES:,}", where="model")


def import_graph(proto: onnx.ModelProto) -> gs.Graph:
    """The onnx-graphsurgeon graph; its nodes are in the file's order."""
    try:
        return gs.import_onnx(proto)
    except QirError:
        raise
    except Exception as error:  # that library's errors share no class
        raise ModelError(f"cannot be imported: {error}", where="model") from error


def used_outputs(proto: onnx.ModelProto) -> set[str]:
    """Names that some node or the graph's outputs need."""
    return {n for node in proto.graph.node for n in node.input} | {o.name for o in proto.graph.output}


def raw_node(node: gs.Node, used: set[str], folder: Path | None) -> Raw:
    """A graphsurgeon node as a Raw; trailing optional outputs that nobody uses are left out (the parts of a Split are
    not optional: their number decides their sizes), tensor attributes are arrays."""
    outputs = [t.name or None for t in node.outputs]
    least = least_outputs(operator_of(node.op) if node.domain == DOMAIN else node.op, len(outputs))
    while len(outputs) > least and (outputs[-1] is None or outputs[-1] not in used):
        outputs.pop()
    name = node.name or next((o for o in outputs if o), node.op)
    inputs = [t.name or None for t in node.inputs]
    attrs = dict(node.attrs)
    if node.op != "Constant":
        for key, value in attrs.items():
            if isinstance(value, gs.Tensor):
                attrs[key] = _proto_of(value, folder, f"{node.op} node {name!r}")[0]
    return Raw(node.op, name, attrs, inputs, outputs, node.domain or "")


def constant_node(raw: Raw, folder: Path | None) -> Constant:
    """The value of a Constant node in any of its forms."""
    (key, value), *others = raw.attrs.items() if raw.attrs else [("", None)]
    if others or key not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise UnsupportedError(f"a Constant given by {sorted(raw.attrs)} is not supported", where=str(raw))
    if key == "value":
        return _proto_of(value, folder, str(raw))
    kind = DType.FLOAT32 if "float" in key else DType.INT64
    return np.asarray(value, dtype=kind.numpy), kind


def _proto_of(tensor: Any, folder: Path | None, where: str) -> Constant:
    values = getattr(tensor, "_values", None)
    if isinstance(values, LazyValues):
        return tensor_array(values.tensor, folder, where)
    raise UnsupportedError("a constant of an unsupported kind", where=where)


def _reader(proto: onnx.TensorProto, folder: Path | None) -> Callable[[], tuple[Array, DType]]:
    return lambda: tensor_array(proto, folder, f"initializer {proto.name!r}")


def _stage(graph: Graph, claimed: Stage) -> Stage:
    """What the graph is; the file's word is taken only where the nodes do not contradict it."""
    has_quant = any(op_of(n.op).border for n in graph.nodes)
    if any(n.op.startswith("qir.") for n in graph.nodes) or (claimed is Stage.INTEGER and has_quant):
        return Stage.INTEGER
    if has_quant:
        return Stage.QDQ
    return Stage.FOLDED if claimed is Stage.FOLDED else Stage.FLOAT
