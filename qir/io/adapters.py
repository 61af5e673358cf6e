"""Opsets 7 to 28 brought to the IR's dialect (opset 21): one small function a change, in a table.

An adapter gets one node as it was written and returns the nodes that mean the same in opset 21.  It sees the types
of the node's inputs, because some old meanings depend on the rank (Softmax before opset 13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ..errors import UnsupportedError
from ..types import Array, DType, TensorType


@dataclass
class Raw:
    """A node as the file has it: names instead of values, None for absent inputs and unused outputs."""

    op: str
    name: str
    attrs: dict[str, Any] = field(default_factory=dict)
    inputs: list[str | None] = field(default_factory=list)
    outputs: list[str | None] = field(default_factory=list)
    domain: str = ""

    def __str__(self) -> str:
        return f"{self.domain + '.' if self.domain else ''}{self.op} node {self.name!r}"

    def input(self, index: int) -> str | None:
        return self.inputs[index] if index < len(self.inputs) else None


class Scope(Protocol):
    """What an adapter may ask of the graph being built."""

    def type(self, name: str) -> TensorType: ...
    def data(self, name: str | None) -> Array | None: ...
    def constant(self, hint: str, array: Array) -> str: ...
    def fresh(self, hint: str) -> str: ...
    def set_dtype(self, name: str, dtype: DType) -> None: ...


Adapter = Callable[[Scope, Raw], list[Raw]]
ADAPTERS: dict[str, list[tuple[int, Adapter]]] = {}
"""operator -> (first opset that no longer needs it, adapter), in the order in which they apply."""

ALWAYS = 1 << 30


def adapts(*ops: str, before: int = ALWAYS) -> Callable[[Adapter], Adapter]:
    """Register an adapter for models whose opset is below `before`."""

    def enter(adapter: Adapter) -> Adapter:
        for op in ops:
            ADAPTERS.setdefault(op, []).append((before, adapter))
        return adapter

    return enter


def adapt(scope: Scope, raw: Raw, opset: int) -> list[Raw]:
    """The node in opset 21.  Raises UnsupportedError where an old meaning has no form there."""
    nodes = [raw]
    for before, adapter in ADAPTERS.get(raw.op, []):
        if opset < before:
            nodes = [new for old in nodes for new in (adapter(scope, old) if old.op == raw.op else [old])]
    return nodes


def _ints(values: Sequence[int]) -> Array:
    return np.asarray(list(values), dtype=np.int64)


def _move(scope: Scope, raw: Raw, attr: str, index: int, array: Array | None) -> None:
    """Make an attribute an input (nothing where the attribute is absent)."""
    raw.attrs.pop(attr, None)
    if array is None:
        return
    raw.inputs += [None] * (index + 1 - len(raw.inputs))
    raw.inputs[index] = scope.constant(f"{raw.name}.{attr}", array)


# -- attributes that became inputs ------------------------------------------------------------
@adapts("Squeeze", "Unsqueeze", "ReduceSum", before=13)
@adapts(
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceSumSquare", before=18,
)  # fmt: skip
def axes_attribute(scope: Scope, raw: Raw) -> list[Raw]:
    axes = raw.attrs.get("axes")
    _move(scope, raw, "axes", 1, None if axes is None else _ints(axes))
    return [raw]


@adapts("Squeeze")
def squeeze_keeps_a_free_batch(scope: Scope, raw: Raw) -> list[Raw]:
    """Without axes: those that are 1 whatever the batch is, or a batch of one sample would lose its axis."""
    shape = scope.type(raw.inputs[0] or "").shape
    if raw.input(1) is None and any(isinstance(d, str) for d in shape):
        axes = [i for i, d in enumerate(shape) if d == 1]
        if not axes:
            return [replace(raw, op="Identity", inputs=raw.inputs[:1])]
        _move(scope, raw, "axes", 1, _ints(axes))
    return [raw]


@adapts("Clip", before=11)
def clip_6(scope: Scope, raw: Raw) -> list[Raw]:
    kind = scope.type(raw.inputs[0] or "").dtype.numpy
    for index, attr in ((1, "min"), (2, "max")):
        limit = raw.attrs.get(attr)
        _move(scope, raw, attr, index, None if limit is None else np.asarray(limit, dtype=kind))
    return [raw]


@adapts("Pad", before=11)
def pad_2(scope: Scope, raw: Raw) -> list[Raw]:
    kind = scope.type(raw.inputs[0] or "").dtype.numpy
    _move(scope, raw, "pads", 1, _ints(raw.attrs.get("pads", [])))
    _move(scope, raw, "value", 2, np.asarray(raw.attrs.get("value", 0.0), dtype=kind))
    return [raw]


@adapts("Slice", before=10)
def slice_1(scope: Scope, raw: Raw) -> list[Raw]:
    starts = raw.attrs.get("starts", [])
    axes = raw.attrs.get("axes") or list(range(len(starts)))
    for index, attr, values in ((1, "starts", starts), (2, "ends", raw.attrs.get("ends", [])), (3, "axes", axes)):
        _move(scope, raw, attr, index, _ints(values))
    return [raw]


@adapts("Split", before=13)
def split_2(scope: Scope, raw: Raw) -> list[Raw]:
    sizes = raw.attrs.get("split")
    _move(scope, raw, "split", 1, None if sizes is None else _ints(sizes))
    return [raw]


@adapts("Split", before=18)
def split_13(scope: Scope, raw: Raw) -> list[Raw]:
    if raw.input(1) is None:
        raw.attrs["num_outputs"] = len(raw.outputs)
    return [raw]


@adapts("TopK", before=10)
def topk_1(scope: Scope, raw: Raw) -> list[Raw]:
    _move(scope, raw, "k", 1, _ints([raw.attrs.get("k", 1)]))
    return [raw]


# -- meanings that changed --------------------------------------------------------------------
@adapts("Softmax", "LogSoftmax", "Hardmax", before=13)
def softmax_1(scope: Scope, raw: Raw) -> list[Raw]:
    """Before opset 13 the tensor was flattened to two axes at `axis` (default 1), and the second was normalized."""
    kind = scope.type(raw.inputs[0] or "")
    rank = kind.rank
    axis = int(raw.attrs.get("axis", 1)) % max(rank, 1)
    raw.attrs["axis"] = axis
    if all(d == 1 for d in kind.shape[axis + 1 :]):
        return [raw]
    flat, soft = scope.fresh(f"{raw.name}.flat"), scope.fresh(f"{raw.name}.soft")
    target = _ints([-1 if isinstance(d, str) else d for d in kind.shape])
    shape = scope.constant(f"{raw.name}.shape", target)
    return [
        Raw("Flatten", f"{raw.name}.flatten", {"axis": axis}, [raw.inputs[0]], [flat]),
        Raw(raw.op, raw.name, {"axis": 1}, [flat], [soft]),
        Raw("Reshape", f"{raw.name}.reshape", {}, [soft, shape], list(raw.outputs)),
    ]


@adapts("GroupNormalization", before=21)
def group_normalization_18(scope: Scope, raw: Raw) -> list[Raw]:
    """Before opset 21 scale and bias had one element a group, not a channel."""
    groups, channels = int(raw.attrs.get("num_groups", 1)), scope.type(raw.inputs[0] or "").shape[1]
    if channels == groups or isinstance(channels, str):
        return [raw]
    made: list[Raw] = []
    inputs = list(raw.inputs)
    for index, what in ((1, "scale"), (2, "bias")):
        column, wide, flat = (scope.fresh(f"{raw.name}.{what}.{part}") for part in ("column", "wide", "flat"))
        shapes = [
            scope.constant(f"{raw.name}.{what}.shape", _ints(s))
            for s in ([groups, 1], [groups, channels // groups], [channels])
        ]
        made += [
            Raw("Reshape", column, {}, [inputs[index], shapes[0]], [column]),
            Raw("Expand", wide, {}, [column, shapes[1]], [wide]),
            Raw("Reshape", flat, {}, [wide, shapes[2]], [flat]),
        ]
        inputs[index] = flat
    raw.inputs = inputs
    return [*made, raw]


@adapts("Upsample")
def upsample(scope: Scope, raw: Raw) -> list[Raw]:
    """Upsample is Resize with asymmetric coordinates rounded down."""
    scales = raw.attrs.pop("scales", None)
    name = raw.input(1) if scales is None else scope.constant(f"{raw.name}.scales", np.asarray(scales, np.float32))
    attrs = {"mode": raw.attrs.get("mode", "nearest"), **OLD_COORDINATES}
    return [Raw("Resize", raw.name, attrs, [raw.inputs[0], None, name], raw.outputs)]


OLD_COORDINATES = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


@adapts("Resize", before=11)
def resize_10(scope: Scope, raw: Raw) -> list[Raw]:
    return [replace(raw, attrs={**raw.attrs, **OLD_COORDINATES}, inputs=[raw.inputs[0], None, raw.input(1)])]


@adapts("Resize")
def resize_11(scope: Scope, raw: Raw) -> list[Raw]:
    """roi, scales and sizes that are empty tensors are absent ones; roi counts for tf_crop_and_resize only."""
    for i, name in enumerate(raw.inputs):
        data = scope.data(name)
        if i > 0 and data is not None and data.size == 0:
            raw.inputs[i] = None
    if raw.input(1) and raw.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize":
        raw.inputs[1] = None
    if raw.attrs.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        # left opset 13, but tf2onnx still writes it: floor((x + 1/2) / scale) = floor(half_pixel(x) + 1/2)
        if raw.attrs.get("mode", "nearest") != "nearest" or raw.attrs.get("nearest_mode") != "floor":
            raise UnsupportedError("tf_half_pixel_for_nn without nearest_mode floor is not supported", where=str(raw))
        raw.attrs |= {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}
    return [raw]


@adapts("Dropout")
def dropout(scope: Scope, raw: Raw) -> list[Raw]:
    training = scope.data(raw.input(2))
    if raw.input(2) is not None and (training is None or bool(training.any())):
        raise UnsupportedError("Dropout in training mode", where=str(raw), hint="export the model in eval mode")
    if len([o for o in raw.outputs if o]) > 1:
        raise UnsupportedError("the mask of a Dropout is used", where=str(raw), hint="export the model in eval mode")
    return [Raw("Identity", raw.name, {}, raw.inputs[:1], raw.outputs[:1])]


@adapts("BatchNormalization")
def batch_normalization(scope: Scope, raw: Raw) -> list[Raw]:
    if raw.attrs.pop("training_mode", 0) or raw.attrs.pop("spatial", 1) != 1 or any(raw.outputs[1:]):
        raise UnsupportedError(
            "BatchNormalization in training mode or not spatial", where=str(raw), hint="export the model in eval mode"
        )
    for training_only in ("momentum", "is_test", "spatial", "training_mode"):
        raw.attrs.pop(training_only, None)
    raw.outputs = raw.outputs[:1]
    return [raw]


@adapts("MaxPool")
def max_pool(scope: Scope, raw: Raw) -> list[Raw]:
    if any(raw.outputs[1:]):
        raise UnsupportedError("the indices of a MaxPool are used", where=str(raw))
    raw.attrs.pop("storage_order", None)  # tells the order of those indices only
    return [replace(raw, outputs=raw.outputs[:1])]


@adapts("QuantizeLinear", "DequantizeLinear")
def quantize(scope: Scope, raw: Raw) -> list[Raw]:
    """`precision` (opset 23) names the type of the division; the IR's is float32, which is what 0 means here.

    A vector has one axis, whatever is said: converters write that of the weights beside a bias.
    """
    if scope.type(raw.inputs[0] or "").rank == 1 and "axis" in raw.attrs:
        raw.attrs["axis"] = 0
    if raw.attrs.get("precision") in (0, 1, None):
        raw.attrs.pop("precision", None)
    return [raw]
