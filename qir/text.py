"""The canonical text of a graph: goldens, error messages and small tests are written in it.

    graph "net" stage=FLOAT {
      size H "height" step 2 long
      input %x: float32[N,3,H,8]
      const %w: float32[4,3,3,3] = ...
      const %limit: float32[] = 6.0
      %y: float32[N,4,H,8] = Conv(%x, %w) {pads=[1, 1, 1, 1]} "conv1"
      return %y
    }

Names that are not plain words are quoted (`%"a b"`), an absent input before others is `-`, attributes at their
default are left out,
a node's name is left out where it is its first output's.  Constants of more than 8 elements are elided (`...`), and so
are per-channel scales (`scale=...`); `elided(graph)` collects what the parser (`qir.text_parser`) wants back for them.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from .graph import Graph, Node, Value
from .ops import op_of
from .sizes import BATCH, Symbol
from .types import Array, TensorType

INLINE = 8
"""Constants and scales of up to this many elements are written out."""

WORD = re.compile(r"[A-Za-z0-9_./:~@+\-]+(?<!:)")


def format_graph(graph: Graph) -> str:
    """Text of the whole graph, in topological order; constants come before their first use."""
    lines = [f"graph {json.dumps(graph.name)} stage={graph.stage.name} {{"]
    lines += [f"  metadata {json.dumps(k)} = {json.dumps(v)}" for k, v in sorted(graph.metadata.items())]
    lines += [
        f"  size {s}{_symbol(k)}" for s, k in graph.symbols.items() if s != BATCH or k not in (Symbol(), Symbol(BATCH))
    ]
    lines += [f"  input {_ref(v)}: {format_type(v.type)}" for v in graph.inputs]
    written: set[Value] = set()
    for node in graph.nodes:
        for value in node.inputs:
            if value is not None and value.data is not None and value not in written:
                written.add(value)
                lines.append(f"  {_constant(value)}")
        lines.append(f"  {format_node(node)}")
    lines += [f"  {_constant(v)}" for v in graph.constants if v not in written]
    lines += [f"  return {', '.join(_ref(v) for v in graph.outputs)}", "}"]
    return "\n".join(lines) + "\n"


def _symbol(kind: Symbol) -> str:
    """ "name" step 2 long: what is not the default."""
    words = [json.dumps(kind.name)] if kind.name else []
    words += [f"step {kind.step}"] if kind.step != 1 else []
    return "".join(f" {w}" for w in (*words, *(["long"] if kind.long else [])))


def format_node(node: Node) -> str:
    """One node on one line."""
    outs = ", ".join(f"{_ref(v)}: {format_type(v.type)}" for v in node.outputs)
    given = list(node.inputs)
    while given and given[-1] is None:
        given.pop()
    ins = ", ".join("-" if v is None else _ref(v) for v in given)
    defaults = op_of(node.op).attrs
    attrs = [f"{k}={_attr(v)}" for k, v in sorted(node.attrs.items()) if k not in defaults or not _same(v, defaults[k])]
    text = f"{outs} = {node.op}({ins})"
    if attrs:
        text += f" {{{', '.join(attrs)}}}"
    if not node.outputs or node.name != node.outputs[0].name:
        text += f" {json.dumps(node.name)}"
    return text


def format_type(kind: TensorType) -> str:
    """dtype[shape], and the quantization where there is one."""
    text = f"{kind.dtype}[{','.join(str(d) for d in kind.shape)}]"
    q = kind.quant
    if q is None:
        return text
    scales = [repr(float(s)) for s in q.scale]
    zeros = [str(z) for z in q.zero_point]
    if q.axis is None:
        return f"{text} @scale={scales[0]} zp={zeros[0]}"
    scale = "..." if len(scales) > INLINE else f"[{', '.join(scales)}]"
    same = len(set(zeros)) == 1
    zero = zeros[0] if same else "..." if len(zeros) > INLINE else f"[{', '.join(zeros)}]"
    return f"{text} @axis={q.axis} scale={scale} zp={zero}"


def elided(graph: Graph) -> dict[str, Array]:
    """What `format_graph` leaves out: constants by name, long scales under `name@scale`, zero points `name@zp`."""
    out: dict[str, Array] = {}
    for value in graph.values:
        if value.data is not None and value.data.size > INLINE:
            out[value.name] = value.data
        q = value.quant
        if q is not None and len(q.scale) > INLINE:
            out[f"{value.name}@scale"] = np.asarray(q.scale, dtype=np.float64)
            if len(set(q.zero_point)) > 1:
                out[f"{value.name}@zp"] = np.asarray(q.zero_point, dtype=np.int64)
    return out


def _ref(value: Value) -> str:
    return f"%{value.name}" if WORD.fullmatch(value.name) else f"%{json.dumps(value.name)}"


def _constant(value: Value) -> str:
    data = value.array()
    text = "..." if data.size > INLINE else json.dumps(data.tolist() if data.ndim == 0 else data.reshape(-1).tolist())
    return f"const {_ref(value)}: {format_type(value.type)} = {text}"


def _attr(value: Any) -> str:
    if isinstance(value, np.ndarray):
        flat: list[Any] = value.reshape(-1).tolist()
        return json.dumps({"array": flat, "dtype": str(value.dtype), "shape": list(value.shape)})
    if isinstance(value, np.generic):
        value = value.item()
    return json.dumps(value)


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, np.ndarray) or isinstance(default, np.ndarray):
        return False
    return type(value) is type(default) and value == default
