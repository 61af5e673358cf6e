"""What a model's user sees and the IR does not hold: half and double precision at the border, names of axes, texts.

The IR computes in float32 and calls the batch "N".  `describe` keeps what the file said (JSON in the graph's metadata),
so that every pass leaves it alone; `restore` writes it into an exported model: a Cast at an input or output of another
float type, the axes' names, doc strings, version and domain.
"""

from __future__ import annotations

import json
from typing import Any

import onnx
from onnx import helper

from ..declared import KEY, border_types, parse
from ..graph import Graph
from ..types import Shape
from .tensors import OTHER_FLOATS

BATCH = "N"
"""The IR's name of the open first axis."""

FLOAT = int(onnx.TensorProto.FLOAT)
FIELDS = ("doc_string", "domain", "model_version")
SOURCE = ("producer_name", "producer_version")
OWN_PRODUCER = "qir"


def describe(proto: onnx.ModelProto, graph: Graph) -> str | None:
    """The JSON text for the border of a model and the graph made of it; None where there is nothing to say."""
    shapes = [{v.name: v.shape for v in part} for part in (graph.inputs, graph.outputs)]
    ends = {
        name: {i.name: _end(i, shape[i.name]) for i in infos if i.name in shape}
        for name, infos, shape in zip(
            ("inputs", "outputs"), (proto.graph.input, proto.graph.output), shapes, strict=True
        )
    }
    found: dict[str, Any] = {k: {n: e for n, e in part.items() if e} for k, part in ends.items()}
    texts: dict[str, Any] = {f: getattr(proto, f) for f in FIELDS if getattr(proto, f)}
    if proto.graph.doc_string:
        texts["graph"] = proto.graph.doc_string
    if proto.producer_name != OWN_PRODUCER:
        texts |= {f: getattr(proto, f) for f in SOURCE if getattr(proto, f)}
    else:
        before = next((p.value for p in proto.metadata_props if p.key == KEY), "")
        texts |= {f: v for f, v in parse(before)["model"].items() if f in SOURCE}
    found["model"] = texts
    return json.dumps(found, separators=(",", ":")) if any(found.values()) else None


def _end(info: onnx.ValueInfoProto, shape: Shape) -> dict[str, Any]:
    tensor = info.type.tensor_type
    out: dict[str, Any] = {}
    if tensor.elem_type in OTHER_FLOATS:
        out["type"] = onnx.TensorProto.DataType.Name(tensor.elem_type)
    pairs = enumerate(zip(tensor.shape.dim, shape, strict=False))
    axes = {str(i): d.dim_param for i, (d, now) in pairs if now == BATCH and d.dim_param not in ("", BATCH)}
    if axes:
        out["axes"] = axes
    if info.doc_string:
        out["doc"] = info.doc_string
    return out


def restore(model: onnx.ModelProto, text: str | None) -> None:
    """Write what `describe` kept into a model that was exported from the graph, in place."""
    if not text:
        return
    kept = parse(text)
    names = {str(n) for e in kept["inputs"].values() for n in e.get("axes", {}).values()}
    batch = names.pop() if len(names) == 1 else None
    for part, infos in (("inputs", model.graph.input), ("outputs", model.graph.output)):
        for info in infos:
            entry = kept[part].get(info.name, {})
            _name_axes(info, entry.get("axes", {}), batch)
            if isinstance(entry.get("doc"), str):
                info.doc_string = entry["doc"]
    _cast_ends(model.graph, kept)
    for name, value in kept["model"].items():
        if name == "graph" and isinstance(value, str):
            model.graph.doc_string = value
        elif name in FIELDS and type(value) is type(getattr(model, name)):
            setattr(model, name, value)


def _name_axes(info: onnx.ValueInfoProto, axes: Any, batch: str | None) -> None:
    for index, dim in enumerate(info.type.tensor_type.shape.dim):
        name = axes.get(str(index), batch) if isinstance(axes, dict) else batch
        if dim.dim_param == BATCH and isinstance(name, str) and name:
            dim.dim_param = name


def _cast_ends(graph: onnx.GraphProto, kept: dict[str, dict[str, Any]]) -> None:
    """Casts behind inputs and before outputs of other float types."""
    taken = {n for node in graph.node for n in (*node.input, *node.output)} | {i.name for i in graph.initializer}
    inputs = {i.name for i in graph.input}
    renamed: dict[str, str] = {}
    first: list[onnx.NodeProto] = []
    last: list[onnx.NodeProto] = []
    text = json.dumps(kept)
    for part, infos in (("inputs", graph.input), ("outputs", graph.output)):
        for info in infos:
            wanted = border_types(text, part).get(info.name)
            if wanted is None or info.type.tensor_type.elem_type != FLOAT:
                continue
            kind = int(onnx.TensorProto.DataType.Value(wanted))
            info.type.tensor_type.elem_type = kind
            if info.name in renamed or (part == "outputs" and info.name in inputs):
                continue  # an input that is an output
            inner = f"{info.name}.float32"
            while inner in taken:
                inner += "_"
            taken.add(inner)
            if part == "outputs":
                last.append(helper.make_node("Cast", [inner], [info.name], name=f"{info.name}.cast", to=kind))
            elif any(info.name in node.input for node in graph.node):
                first.append(helper.make_node("Cast", [info.name], [inner], name=f"{info.name}.cast", to=FLOAT))
            renamed[info.name] = inner
    if not renamed:
        return
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(n, n) for n in names]
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
