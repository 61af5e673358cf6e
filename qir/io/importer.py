"""Raw nodes -> Graph: adapters applied, names resolved, types inferred as the nodes come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx

from ..errors import ModelError, QirError, TypeInferenceError, UnsupportedError, named, refuse
from ..graph import Graph, Value
from ..ops import op_of
from ..types import Array, DType, TensorType
from .adapters import ADAPTERS, Raw, adapt
from .decompose import decomposition_of
from .foreign import lowering_of
from .functions import DOMAIN, operator_of
from .protos import DTYPE_ATTRS
from .structure import STANDARD
from .tensors import ir_dtype

Constant = tuple[Array, DType]


class Importer:
    """Builds one Graph, node by node; the `Scope` that adapters see."""

    def __init__(self, graph: Graph, opset: int, constants: Mapping[str, Callable[[], Constant]], names: set[str]):
        self.graph, self.opset = graph, opset
        self.lazy = dict(constants)
        self.names = names
        self.values: dict[str, Value] = {v.name: v for v in graph.inputs}
        self.made: dict[str, Constant] = {}
        self.refusals: list[QirError] = []
        self.lost: set[str] = set()  # names that nothing computes, because a node was refused

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
            if kind.is_float and np.isnan(array).any():
                raise ModelError("holds NaN", where=f"tensor {name!r}", hint="did the training diverge?")
            value = self.graph.add_constant(name, array, kind)
            self.values[name] = value
        return self.values[name]

    def define(self, name: str, constant: Constant) -> None:
        """What a Constant node computes."""
        self.made[name] = constant

    def add(self, raw: Raw) -> None:
        """A node of the file with everything it stands for.

        What cannot be taken (an operator, an attribute, shapes that do not fit) is kept in `refusals`, and the nodes
        behind it are passed over, so that `finish` can say all of it.  Raises ModelError, naming the node.
        """
        if not self.lost.isdisjoint(raw.inputs):
            self.lost.update(n for n in raw.outputs if n)
            try:
                if raw.domain in STANDARD and raw.op not in ADAPTERS and decomposition_of(raw) is None:
                    op_of(raw.op)
            except UnsupportedError as error:
                self.refusals.append(UnsupportedError(str(error), where=str(raw)))
            return
        try:
            with named(ModelError, raw):
                for node in self._expand(raw):
                    self._emit(node)
        except (UnsupportedError, TypeInferenceError) as error:
            self.refusals.append(error)
            self.lost.update(n for n in raw.outputs if n)

    def _expand(self, raw: Raw) -> Iterable[Raw]:
        lower = lowering_of(raw) or decomposition_of(raw)
        if lower is not None:
            return lower(self, raw)
        if raw.domain == DOMAIN:
            raw.attrs = plain_attrs(raw)
            return [raw]
        if raw.domain not in STANDARD:
            raise UnsupportedError(f"operator {raw.op!r} of domain {raw.domain!r} is not supported", where=str(raw))
        raw.attrs = plain_attrs(raw)
        return adapt(self, raw, self.opset)

    def _emit(self, raw: Raw) -> None:
        op = operator_of(raw.op) if raw.domain == DOMAIN else raw.op
        operator = op_of(op)
        known = set(operator.attrs)
        attrs = {k: v for k, v in raw.attrs.items() if k in known or not is_default(raw, k, v, self.opset)}
        inputs = [None if n is None else self.value(n) for n in raw.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        required = sum(not w.endswith(("?", "*")) for w in operator.inputs.split())
        if len(inputs) < required or any(v is None for v in inputs[:required]):
            raise ModelError(f"has {len(inputs)} inputs, {operator.inputs} expected", where=str(raw))
        if "*" not in operator.inputs and len(inputs) > len(operator.inputs.split()):
            raise ModelError(f"has {len(inputs)} inputs, {operator.inputs} expected", where=str(raw))
        outputs = [n or self.fresh(f"{raw.name}.unused{i}") for i, n in enumerate(raw.outputs)]
        if operator.trained:  # elsewhere an infinity may be a mask
            for value in inputs[1:]:
                if value is not None and value.data is not None and not np.isfinite(value.data).all():
                    raise ModelError(f"weights {value.name!r} are not finite", where=str(raw))
        if op == "Cast" and inputs[0] is not None and inputs[0].dtype.is_float and DType(attrs["to"]).is_float:
            self.values[outputs[0]] = inputs[0]  # the IR has one float type
            return
        node = self.graph.add_node(op, inputs, attrs, outputs=outputs, name=raw.name)
        for name, value in zip(outputs, node.outputs, strict=True):
            self.values[name] = value

    def finish(self, outputs: list[str]) -> None:
        """Set the outputs, under their names, and drop what they do not need.

        Raises UnsupportedError or TypeInferenceError where one node was refused, RefusedError where several were.
        """
        refuse(self.refusals)
        ends: list[Value] = []
        for name in outputs:
            value = self.value(name)
            if value.name != name:  # behind a Cast from one float type to another
                if value.producer is None or value in ends or value.name in outputs:
                    value = self.graph.add_node("Identity", [value], outputs=[name]).output
                else:
                    self.graph.rename(value, name)
            ends.append(value)
        self.graph.set_outputs(ends)
        self.graph.prune()


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
