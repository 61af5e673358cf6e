"""Integer operators as model-local ONNX functions (domain `qir`): standard operators on integer tensors only.

Each body is written for one node's attributes, input dtypes and ranks; equal bodies share one FunctionProto,
different ones of the same operator are numbered: Conv, Conv_2 ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..graph import Graph, Node, Stage, Value
from ..types import Array, DType

if TYPE_CHECKING:
    from ..ops import Op

DOMAIN = "qir"

_KNOWN = set(onnx.TensorProto.DataType.keys())

ONNX_TYPE: dict[DType, int] = {d: int(onnx.TensorProto.DataType.Value(d.name)) for d in DType if d.name in _KNOWN}
ONNX_TYPE[DType.FLOAT32] = int(onnx.TensorProto.FLOAT)
ONNX_TYPE[DType.FLOAT64] = int(onnx.TensorProto.DOUBLE)

STANDARD_PREFIX = "Standard"
"""qir.Max is called Max in the file; ONNX's own Max, where it needs a function, is called StandardMax."""


def function_stem(op: Op) -> str:
    """The name of an operator's first function."""
    return op.name.removeprefix("qir.") if op.is_integer_op else STANDARD_PREFIX + op.name


def operator_of(function: str) -> str:
    """The registry's name for a function of domain `qir`: the inverse of `function_stem`, numbers dropped."""
    stem, _, number = function.rpartition("_")
    stem = stem if stem and number.isdigit() else function
    return stem.removeprefix(STANDARD_PREFIX) if stem.startswith(STANDARD_PREFIX) else f"qir.{stem}"


def without_tail(names: Sequence[str]) -> list[str]:
    """Input names without the absent ones at the end: one way to write a node, and equal bodies are equal bytes."""
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def carries_wide(graph: Graph, opset: int) -> bool:
    """Whether 4-bit activations of a graph travel as 8-bit tensors in its file (4-bit constants never do).

    So they do in integer graphs of the profile that runs today: ONNX Runtime before 1.31 writes over the ends of 4-bit
    activations, and every version would only unpack and pack them around each operator.
    """
    return graph.stage is Stage.INTEGER and opset < 28


def eight_bits(kind: DType) -> DType:
    """The 8-bit dtype that holds a 4-bit one."""
    return DType.INT8 if kind.is_signed else DType.UINT8


def wire_dtype(value: Value, wide: bool) -> DType:
    """The dtype that a value has in the file; wide: see `carries_wide`."""
    return eight_bits(value.dtype) if wide and value.dtype.bits == 4 and value.data is None else value.dtype


class Body:
    """Builds one function body. Inputs are called by the operator's own input names, the output is `y`.

    wide: 4-bit activations come and go as 8-bit tensors (`carries_wide`).
    """

    def __init__(self, node: Node, input_names: list[str], opset: int, wide: bool) -> None:
        self.node, self.inputs, self.opset, self.wide = node, input_names, opset, wide
        self.nodes: list[onnx.NodeProto] = []
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    # -- pieces -------------------------------------------------------------------------------
    def fresh(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def op(self, op_type: str, *inputs: str, output: str | None = None, **attrs: Any) -> str:
        """One standard operator with one output; returns the output's name."""
        out = output or self.fresh()
        self.nodes.append(helper.make_node(op_type, without_tail(inputs), [out], **attrs))
        return out

    def ops(self, op_type: str, *inputs: str, count: int, **attrs: Any) -> list[str]:
        """One standard operator with several outputs."""
        outs = [self.fresh() for _ in range(count)]
        self.nodes.append(helper.make_node(op_type, without_tail(inputs), outs, **attrs))
        return outs

    def constant(self, array: Array) -> str:
        """A constant inside the body (integers only; large data belong into the node's inputs)."""
        array = np.asarray(array)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=numpy_helper.from_array(array))
        return self._constants[key]

    def int64(self, value: Any) -> str:
        return self.constant(np.asarray(value, dtype=np.int64))

    def cast(self, x: str, dtype: DType) -> str:
        return self.op("Cast", x, to=ONNX_TYPE[dtype])

    def result_type(self, dtype: DType) -> int:
        """The number in ONNX of the element type in which a result of `dtype` leaves the function."""
        return ONNX_TYPE[eight_bits(dtype) if self.wide and dtype.bits == 4 else dtype]

    def wire(self, name: str) -> DType:
        """The dtype in which one of the node's inputs comes."""
        return wire_dtype(self._value(name), self.wide)

    def widen4(self, x: str, kind: DType) -> str:
        """A 4-bit tensor as int8/uint8.

        By way of int32, and of a Clip that changes nothing: ONNX Runtime before 1.31 gives the result of a direct Cast
        the 4-bit tensor's own buffer, which is half as large, and writes over its end; two Casts in a row it joins.
        """
        limits = (self.constant(np.asarray(end, np.int32)) for end in (kind.lo, kind.hi))
        wide = self.op("Clip", self.cast(x, DType.INT32), *limits)
        return self.cast(wide, eight_bits(kind))

    def dtype(self, name: str) -> DType:
        """dtype of one of the node's inputs, by its operator's input name."""
        return self._value(name).dtype

    def reach(self, name: str, zero_point: int = 0) -> int:
        """A bound of |x - zero_point| for one of the node's inputs, from its dtype."""
        kind = self.dtype(name)
        return max(kind.hi - zero_point, zero_point - kind.lo)

    def rank(self, name: str) -> int:
        return self._value(name).type.rank

    def has(self, name: str) -> bool:
        return self.node.optional(self.inputs.index(name)) is not None

    def _value(self, name: str) -> Any:
        return self.node.input(self.inputs.index(name))

    # -- the two profiles ---------------------------------------------------------------------
    def rounding_shift(self, x_i64: str, shift_i64: str) -> str:
        """(x + 2^(shift-1)) >> shift on int64, arithmetic; shift in [1, 62] as an int64 tensor."""
        one = self.int64(1)
        half = self.power_of_two(self.op("Sub", shift_i64, one))
        return self.shift_right(self.op("Add", x_i64, half), shift_i64)

    def power_of_two(self, exponent_i64: str) -> str:
        """1 << exponent, int64."""
        if self.opset >= 28:
            return self.op("BitShift", self.int64(1), exponent_i64, direction="LEFT")
        one = self.constant(np.asarray(1, dtype=np.uint64))
        u = self.op("BitShift", one, self.cast(exponent_i64, DType.UINT64), direction="LEFT")
        return self.cast(u, DType.INT64)

    def shift_right(self, x_i64: str, shift_i64: str) -> str:
        """Arithmetic x >> shift on int64, shift in [0, 62], |x| < 2^62.

        Opset 21 shifts unsigned integers only: add 2^62, shift as uint64, subtract 2^(62-shift).
        """
        if self.opset >= 28:
            return self.op("BitShift", x_i64, shift_i64, direction="RIGHT")
        raised = self.cast(self.op("Add", x_i64, self.int64(1 << 62)), DType.UINT64)
        u = self.op("BitShift", raised, self.cast(shift_i64, DType.UINT64), direction="RIGHT")
        offset = self.power_of_two(self.op("Sub", self.int64(62), shift_i64))
        return self.op("Sub", self.cast(u, DType.INT64), offset)

    def shift_right_natural(self, x_i64: str, shift: int) -> str:
        """x >> shift for x that is never negative, up to 2^63 - 1."""
        if self.opset >= 28:
            return self.op("BitShift", x_i64, self.int64(shift), direction="RIGHT")
        by = self.constant(np.asarray(shift, np.uint64))
        return self.cast(self.op("BitShift", self.cast(x_i64, DType.UINT64), by, direction="RIGHT"), DType.INT64)

    def store(self, x_i64: str, attrs: Mapping[str, Any], reach: int) -> None:
        """+ zero_point, clamp to [lo, hi], cast to the output dtype, as `y`.

        reach: a bound of |x|.  onnxruntime's vectorized Clip, Min and Max of int64 compare the low halves as signed
        numbers (seen in 1.31.1: Clip(-3506357618, -32768, 32767) returns it as it is), so that they are right within
        int32 only; beyond it the clamp is written with comparisons.
        """
        if attrs["zero_point"]:
            x_i64 = self.op("Add", x_i64, self.int64(attrs["zero_point"]))
        lo, hi = self.int64(attrs["lo"]), self.int64(attrs["hi"])
        if reach + abs(attrs["zero_point"]) < 1 << 31:
            clipped = self.op("Clip", x_i64, lo, hi)
        else:
            raised = self.op("Where", self.op("Less", x_i64, lo), lo, x_i64)
            clipped = self.op("Where", self.op("Greater", raised, hi), hi, raised)
        self.op("Cast", clipped, output="y", to=self.result_type(DType(attrs["dtype"])))

    def proto(self, name: str, output_names: list[str]) -> onnx.FunctionProto:
        """The finished FunctionProto; the call node's attributes are declared so that it stays a valid call."""
        return helper.make_function(
            DOMAIN, name, self.inputs, output_names, self.nodes, [helper.make_opsetid("", self.opset)],
            attributes=sorted(k for k, v in self.node.attrs.items() if v is not None),
        )  # fmt: skip
