"""Raw nodes -> Graph: adapters, types, and the subgraphs that compute shapes.

Exporters write `Reshape(x, Concat(Shape(x)[0], ...))` where the IR wants constants.  Values that depend on nothing
but shapes are therefore evaluated while the graph is built, at two probe batches: what agrees is a constant, what
scales with the batch becomes ONNX's own notation for it (0 or -1 in Reshape, an axis left out in Resize ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from ..errors import ModelError, QirError, TypeInferenceError, UnsupportedError
from ..graph import Graph, Node, Value
from ..ops import REGISTRY, op_of
from ..ops.base import BATCHES, dim_at
from ..types import Array, DType, TensorType
from .adapters import Raw, adapt
from .functions import DOMAIN
from .protos import DTYPE_ATTRS
from .qonnx import DOMAINS as QONNX_DOMAINS
from .qonnx import lower_quant
from .structure import STANDARD
from .tensors import ir_dtype

Constant = tuple[Array, DType]
Probes = tuple[Array, Array]

MAX_PROBE = 1 << 16
"""Elements up to which a tensor is taken for part of a shape computation."""


class Importer:
    """Builds one Graph, node by node; the `Scope` that adapters see."""

    def __init__(self, graph: Graph, opset: int, constants: Mapping[str, Callable[[], Constant]], names: set[str]):
        self.graph, self.opset = graph, opset
        self.lazy = dict(constants)
        self.names = names
        self.values: dict[str, Value] = {v.name: v for v in graph.inputs}
        self.dtypes: dict[str, DType] = {}
        self.probes: dict[Value, Probes] = {}
        self.made: dict[str, Constant] = {}

    # -- what adapters ask (Scope) ------------------------------------------------------------
    def type(self, name: str) -> TensorType:
        if name in self.values:
            return self.values[name].type
        array, kind = self._constant(name)
        return TensorType(kind, tuple(array.shape))

    def data(self, name: str | None) -> Array | None:
        if name is None:
            return None
        if name in self.values:
            return self.values[name].data
        return self._constant(name)[0]

    def constant(self, hint: str, array: Array) -> str:
        name = self.fresh(hint)
        self.made[name] = (array, DType.of(array))
        return name

    def set_dtype(self, name: str, dtype: DType) -> None:
        self.made[name] = (self.made[name][0], dtype)

    def fresh(self, hint: str) -> str:
        name, n = hint, 0
        while name in self.names:
            n += 1
            name = f"{hint}_{n}"
        self.names.add(name)
        return name

    def _constant(self, name: str) -> Constant:
        if name not in self.made:
            if name not in self.lazy:
                raise ModelError("is used before it is computed", where=f"tensor {name!r}")
            self.made[name] = self.lazy[name]()
        return self.made[name]

    # -- building -----------------------------------------------------------------------------
    def value(self, name: str) -> Value:
        """A value by its name in the file; constants enter the graph when they are first used."""
        if name not in self.values:
            array, kind = self._constant(name)
            value = self.graph.add_constant(name, array, kind)
            self.values[name] = value
        return self.values[name]

    def define(self, name: str, constant: Constant) -> None:
        """What a Constant node computes."""
        self.made[name] = constant

    def add(self, raw: Raw) -> None:
        """A node of the file with everything it stands for.

        Raises UnsupportedError (operator, attribute), TypeInferenceError, naming the node.
        """
        try:
            for node in self._expand(raw):
                self._emit(node)
        except QirError as error:
            if error.where is None:
                raise type(error)(str(error), where=str(raw), hint=None) from error
            raise
        except (ValueError, IndexError, TypeError, KeyError, OverflowError) as error:
            raise ModelError(f"is malformed: {error}", where=str(raw)) from error

    def _expand(self, raw: Raw) -> list[Raw]:
        if raw.domain in QONNX_DOMAINS:
            return lower_quant(self, raw)
        if raw.domain == DOMAIN:
            return [raw]
        if raw.domain == "com.microsoft" and raw.op == "Gelu":
            return [Raw("Gelu", raw.name, {}, raw.inputs, raw.outputs)]
        if raw.domain not in STANDARD:
            raise UnsupportedError(f"operator {raw.op!r} of domain {raw.domain!r} is not supported", where=str(raw))
        raw.attrs = plain_attrs(raw)
        return adapt(self, raw, self.opset)

    def _emit(self, raw: Raw) -> None:
        op = ir_name(raw)
        operator = op_of(op)
        known = set(operator.attrs)
        attrs = {k: v for k, v in raw.attrs.items() if k in known or not is_default(raw, k, v, self.opset)}
        inputs = [None if n is None else self.value(n) for n in raw.inputs]
        inputs = [self._settled(v) for v in inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        inputs, attrs = self._batch_free(op, inputs, attrs)
        required = sum(not w.endswith(("?", "*")) for w in operator.inputs.split())
        if len(inputs) < required or any(v is None for v in inputs[:required]):
            raise ModelError(f"has {len(inputs)} inputs, {operator.inputs} expected", where=str(raw))
        if "*" not in operator.inputs and len(inputs) > len(operator.inputs.split()):
            raise ModelError(f"has {len(inputs)} inputs, {operator.inputs} expected", where=str(raw))
        outputs = [n or self.fresh(f"{raw.name}.unused{i}") for i, n in enumerate(raw.outputs)]
        node = self.graph.add_node(op, inputs, attrs, outputs=outputs, name=raw.name)
        for name, value in zip(outputs, node.outputs, strict=True):
            self.values[name] = value
        self._probe(node)

    # -- shapes -------------------------------------------------------------------------------
    def _settled(self, value: Value | None) -> Value | None:
        """The value, or a constant in its place where the same data come out at every batch."""
        if value is None or value.data is not None or value not in self.probes:
            return value
        a, b = self.probes[value]
        if a.shape != b.shape or not np.array_equal(a, b):
            return value
        return self.graph.add_constant(f"{value.name}.const", a, value.dtype)

    def _batch_free(
        self, op: str, inputs: list[Value | None], attrs: dict[str, Any]
    ) -> tuple[list[Value | None], dict[str, Any]]:
        """Shape arguments that follow the batch, in the notation that ONNX has for them."""
        index = {"Reshape": 1, "Expand": 1, "Resize": 3}.get(op)
        value = inputs[index] if index is not None and index < len(inputs) else None
        if index is None or value is None or value not in self.probes or inputs[0] is None:
            return inputs, attrs
        a, b = self.probes[value]
        if a.shape != b.shape:
            return inputs, attrs
        x = inputs[0].shape
        moving = [i for i in range(a.size) if a[i] != b[i]]
        if any(a[i] * BATCHES[1] != b[i] * BATCHES[0] for i in moving):
            raise TypeInferenceError("a size is no multiple of the batch", where=f"value {value.name!r}")
        target = a.copy()
        if op == "Reshape":
            for i in moving:
                same = i < len(x) and isinstance(x[i], str) and dim_at(x[i], BATCHES[0]) == a[i]
                target[i] = 0 if same and not attrs.get("allowzero") else -1
        elif op == "Expand":
            offset = len(x) - len(target)
            if any(not (0 <= i + offset and isinstance(x[i + offset], str)) for i in moving):
                return inputs, attrs
            target[moving] = 1
        else:
            if "axes" in attrs and attrs["axes"] is not None:
                return inputs, attrs
            keep = [i for i in range(a.size) if i not in moving]
            target, attrs = a[keep], {**attrs, "axes": keep}
        inputs[index] = self.graph.add_constant(f"{value.name}.const", target)
        return inputs, attrs

    def _probe(self, node: Node) -> None:
        """What a node of a shape computation yields at the two probe batches."""
        if node.op in ("Shape", "Size"):
            args = [[np.broadcast_to(np.uint8(0), [dim_at(d, n) for d in node.input(0).shape])] for n in BATCHES]
        elif node.op.startswith(("qir.", "Quantize", "Dequantize")) or not node.inputs:
            return
        else:
            known = [self._known(v) for v in node.inputs]
            if any(k is None and v is not None for k, v in zip(known, node.inputs, strict=True)):
                return
            args = [[None if k is None else k[i] for k in known] for i in range(2)]
        try:
            runs = [op_of(node.op).reference(node.attrs, *a) for a in args]
        except (QirError, ValueError, IndexError, TypeError, ArithmeticError):
            return
        for value, a, b in zip(node.outputs, runs[0], runs[1], strict=False):
            if a.size <= MAX_PROBE:
                self.probes[value] = (a, b)

    def _known(self, value: Value | None) -> Probes | None:
        if value is None:
            return None
        if value.data is not None:
            return (value.data, value.data) if value.data.size <= MAX_PROBE else None
        return self.probes.get(value)

    def finish(self, outputs: list[str]) -> None:
        """Set the outputs and drop what they do not need."""
        self.graph.set_outputs([self.value(n) for n in outputs])
        self.graph.prune()


def ir_name(raw: Raw) -> str:
    """The registry's name: qir functions lose the number that tells their bodies apart."""
    if raw.domain != DOMAIN:
        return raw.op
    stem, _, number = raw.op.rpartition("_")
    stem = stem if number.isdigit() and stem else raw.op
    return f"qir.{stem}" if f"qir.{stem}" in REGISTRY or stem not in REGISTRY else stem


def plain_attrs(raw: Raw) -> dict[str, Any]:
    """Attributes with element types as dtype names."""
    attrs = dict(raw.attrs)
    for key in DTYPE_ATTRS & set(attrs):
        if isinstance(attrs[key], int):
            kind = attrs.pop(key)
            if kind:
                attrs[key] = str(ir_dtype(kind, str(raw)))
    return attrs


def is_default(raw: Raw, key: str, value: Any, opset: int) -> bool:
    """Whether an attribute that the IR does not know says only what ONNX's default says."""
    try:
        schema = onnx.defs.get_schema(raw.op, opset, "")
        default = onnx.helper.get_attribute_value(schema.attributes[key].default_value)
    except (KeyError, ValueError, onnx.defs.SchemaError):
        return False
    return value == (default.decode() if isinstance(default, bytes) else default)
