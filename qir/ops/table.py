"""qir.Table: any function of a tensor of 4, 8 or 16 bits, and the `Mapped` form that waits to become one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LoweringError, TypeInferenceError
from ..lowering import Bounds, Clamped, Fixed, Form, Lowering, Quantized
from ..types import Array, DType, QuantParams, TensorType
from .base import INTEGER_CONSTANT, SIXTEEN_BITS, Op, register
from .intervals import interval
from .reals import real_interval

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body


@register
class Table(Op):
    """y = table[x - first], or table[c, x - first] with c the index along `axis`      [docs/arithmetic.md 7]

    x: 8 bits (256 entries), 4 (16 entries) or 16 (65,536, or n where x is known to lie in [first, first + n)).
    first: None for the least of x's dtype.  table: (n,), or (C, n) with `axis`; y has its dtype.
    """

    name = "qir.Table"
    inputs = "x table"
    operands = {"x": SIXTEEN_BITS, "table": INTEGER_CONSTANT}
    attrs = {"axis": None, "first": None}
    accumulates = True

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x, table, axis = types[0], types[1], attrs["axis"]
        assert x is not None and table is not None
        if x.dtype.bits > 16:
            raise TypeInferenceError(f"x {x} has more than 16 bits")
        entries = 1 << x.dtype.bits if attrs["first"] is None else int(table.shape[-1])
        wanted = (entries,) if axis is None else (x.shape[axis], entries)
        if table.shape != wanted or not 0 < entries <= 1 << x.dtype.bits:
            raise TypeInferenceError(f"table {table} should have shape {list(wanted)}")
        return [TensorType(table.dtype, x.shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, table = inputs
        least = attrs["first"]
        if least is None:  # 4-bit tensors live in 8-bit arrays: the table's length says where the dtype begins
            least = -(table.shape[-1] // 2) if x.dtype.kind == "i" else 0
        index = x.astype(np.int64) - least
        if attrs["axis"] is None:
            return (table[index],)
        shape = [1] * x.ndim
        shape[attrs["axis"]] = -1
        return (table[np.arange(table.shape[0]).reshape(shape), index],)

    def function_body(self, body: Body, node: Node) -> None:
        index, least = body.cast("x", DType.INT32), first_entry(node)
        axis, table, kind = node.attrs["axis"], "table", body.dtype("table")
        if kind.bits == 4:  # runtimes gather no 4-bit tensors
            table = body.widen4(table, kind)
        offset = np.asarray(-least, dtype=np.int32)
        if axis is not None:
            entries, rank = node.input(1).shape[1], body.rank("x")
            shape = [1] * rank
            shape[axis] = -1
            rows = np.arange(node.input(1).shape[0], dtype=np.int32) * np.int32(entries)
            offset = rows.reshape(shape) - np.int32(least)
            table = body.op("Reshape", table, body.int64([-1]))
        if np.any(offset):
            index = body.op("Add", index, body.constant(offset))
        packed = kind.bits == 4 and not body.wide
        found = body.op("Gather", table, index, output=None if packed else "y", axis=0)
        if packed:
            body.op("Cast", found, output="y", to=body.result_type(kind))

    def overflows(self, node: Node) -> Iterator[str]:
        if node.attrs["first"] is not None:
            (lo, hi), first, entries = interval(node.input(0)), first_entry(node), int(node.input(1).shape[-1])
            if not first <= lo <= hi < first + entries:
                yield f"x in [{lo}, {hi}] may leave a table of [{first}, {first + entries - 1}]"


def first_entry(node: Node) -> int:
    """The integer that a table's first entry is for."""
    first = node.attrs["first"]
    return node.input(0).dtype.lo if first is None else int(first)


WIDEST = 16
"""Bits of the widest tensor that has a table."""


def domain(x: Value) -> NDArray[np.int64]:
    """The integers that a table of x has entries for, ascending: all of a narrow dtype, what a wide tensor can be."""
    lo, hi = (x.dtype.lo, x.dtype.hi) if x.dtype.bits <= 8 else interval(x)
    return np.arange(lo, hi + 1, dtype=np.int64)


@dataclass(frozen=True)
class Mapped(Form):
    """A function of an integer tensor of at most 16 bits: `reals[x - x_min]` (or `reals[c, x - x_min]` along `axis`).

    Functions of functions stay tables, so a chain of elementwise operators on one 8-bit tensor costs one lookup
    and one rounding.
    """

    x: Value
    reals: NDArray[np.float64]
    axis: int | None = None

    def emit(self, low: Lowering, target: QuantParams, bounds: Bounds, name: str) -> Value:
        scale, zero = target.scale[0], target.zero_point[0]
        lo, hi = bounds.on(target)
        with np.errstate(invalid="ignore", over="ignore"):
            steps = np.nan_to_num(np.rint(self.reals / scale), nan=0.0, posinf=np.inf, neginf=-np.inf) + zero
        entries = np.clip(steps, lo, hi).astype(target.dtype.numpy)
        g = low.graph
        table = g.add_constant(f"{name}.table", entries, target.dtype)
        whole = entries.shape[-1] == 1 << self.x.dtype.bits
        attrs = {"axis": self.axis, "first": None if whole else int(interval(self.x)[0])}
        return g.add_node("qir.Table", [self.x, table], attrs, outputs=[name], quant=target).output

    def map(self, f: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Mapped:
        """f of this function."""
        with np.errstate(all="ignore"):
            return Mapped(self.x, np.asarray(f(self.reals), dtype=np.float64), self.axis)

    def per_channel(self, axis: int, channels: int) -> Mapped:
        """The same function with one row a channel."""
        if self.axis is not None:
            return self
        return Mapped(self.x, np.broadcast_to(self.reals, (channels, self.reals.shape[-1])), axis)


def as_mapped(form: Form, bits: int = 8) -> Mapped | None:
    """The form as a function of an integer tensor of at most `bits`; None where it is none."""
    if isinstance(form, Mapped):
        return form
    if isinstance(form, Quantized) and form.quant.dtype.bits <= bits and not form.quant.per_channel:
        return Mapped(form.value, form.quant.dequantize(domain(form.value)))
    if isinstance(form, Clamped):
        inner = as_mapped(form.inner, bits)
        return inner and inner.map(lambda r: np.clip(r, form.bounds.lo, form.bounds.hi))
    return None


def combine(a: Mapped, b: Mapped, f: Callable[[Array, Array], Array]) -> Mapped | None:
    """f(a, b) where both are functions of the same tensor; None where they are not."""
    if a.x is not b.x or (a.axis is not None and b.axis is not None and a.axis != b.axis):
        return None
    with np.errstate(all="ignore"):
        reals = np.asarray(f(a.reals, b.reals), dtype=np.float64)
    return Mapped(a.x, reals, a.axis if a.axis is not None else b.axis)


def lower_unary(low: Lowering, node: Node, f: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
    """The integer form of a unary function: a table, once its output grid is known.

    Raises LoweringError where the input is wider than 16 bits or not quantized at all.
    """
    value = node.input(0)
    form = low.form(value)
    if isinstance(form, Fixed):
        low.set(node.output, Fixed(np.asarray(f(form.data))))
        return
    lo, hi = real_interval(value)
    if isinstance(form, Quantized) and 0 < lo < form.quant.scale[0] / 2 and not form.quant.per_channel:
        lo = math.sqrt(lo * form.quant.scale[0] / 2)  # what rounds to zero: the middle, by factors
    low.set(node.output, require_mapped(low, node, value).map(lambda r: f(np.clip(r, lo, hi))))


def require_mapped(low: Lowering, node: Node, value: Value) -> Mapped:
    """The value as a function of an integer tensor of at most 16 bits.  Raises LoweringError."""
    mapped = as_mapped(low.form(value), WIDEST)
    if mapped is None:
        got = low.quantized(value)
        raise LoweringError(
            f"input {value.name!r} is {got.type}; a function table takes 16 bits at most, one scale", where=str(node),
            hint="quantize it to fewer bits before this operator (passes.InsertQdq does)",
        )  # fmt: skip
    return mapped
