"""Leaving the float world: each float value of a QDQ graph gets an integer *form*.

`passes.lower_to_dyadic` walks a QDQ graph in topological order and calls every operator's `to_integer`,
which records a Form for its outputs.  A form is either `Quantized` (an integer value that stands for the reals
already: an 8-bit tensor, an int32 accumulator) or `Deferred` (a formula that needs to know the output grid, such
as a sum of two tensors).  `QuantizeLinear` knows the grid, and asks the form to `emit` itself on it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .dyadic import dyadic_array, round_half_even
from .errors import LoweringError
from .graph import Graph, Node, Value
from .types import Array, DType, QuantParams


@dataclass(frozen=True)
class Bounds:
    """A fused activation's limits, in reals."""

    lo: float = -math.inf
    hi: float = math.inf

    def intersect(self, other: Bounds) -> Bounds:
        return Bounds(max(self.lo, other.lo), min(self.hi, other.hi))

    def on(self, q: QuantParams) -> tuple[int, int]:
        """The limits on a per-tensor integer grid, rounded half to even once, inside the dtype."""
        if q.per_channel:
            if self == FREE:
                return q.dtype.lo, q.dtype.hi
            raise LoweringError("activation limits need a per-tensor output grid")
        scale, zero_point = q.scale[0], q.zero_point[0]

        def grid(limit: float, end: int) -> int:
            if math.isinf(limit):
                return end
            return int(min(max(int(round_half_even(limit / scale)) + zero_point, q.dtype.lo), q.dtype.hi))

        return grid(self.lo, q.dtype.lo), grid(self.hi, q.dtype.hi)


FREE = Bounds()


class Form(ABC):
    """The integer side of a float value."""

    @abstractmethod
    def emit(self, low: Lowering, target: QuantParams, bounds: Bounds, name: str) -> Value:
        """An integer value on the grid `target`, clamped to `bounds`, called `name` where that is free."""


@dataclass(frozen=True)
class Quantized(Form):
    """`value` (in the graph being built) is an integer tensor whose `quant` says what it stands for."""

    value: Value

    @property
    def quant(self) -> QuantParams:
        assert self.value.quant is not None
        return self.value.quant

    def emit(self, low: Lowering, target: QuantParams, bounds: Bounds, name: str) -> Value:
        lo, hi = bounds.on(target)
        if self.quant == target:
            if (lo, hi) == (target.dtype.lo, target.dtype.hi):
                return self.value
            return low.clamp(self.value, lo, hi, name)
        return low.requantize(self.value, target, bounds, name)


@dataclass(frozen=True)
class Deferred(Form):
    """A formula waiting for its output grid; emitted once for each grid that is asked for."""

    build: Callable[[QuantParams, Bounds, str], Value]
    _done: dict[tuple[QuantParams, Bounds], Value] = field(default_factory=dict)

    def emit(self, low: Lowering, target: QuantParams, bounds: Bounds, name: str) -> Value:
        key = (target, bounds)
        if key not in self._done:
            self._done[key] = self.build(target, bounds, name)
        return self._done[key]


@dataclass(frozen=True)
class Clamped(Form):
    """Another form with an activation's limits on top."""

    inner: Form
    bounds: Bounds

    def emit(self, low: Lowering, target: QuantParams, bounds: Bounds, name: str) -> Value:
        return self.inner.emit(low, target, bounds.intersect(self.bounds), name)


@dataclass(frozen=True)
class Real(Form):
    """A float at the border: a graph input (in the graph being built). Quantizing it is the border's QuantizeLinear."""

    value: Value

    def emit(self, low: Lowering, target: QuantParams, bounds: Bounds, name: str) -> Value:
        g = low.graph
        if target.dtype.bits > 16:
            raise LoweringError(f"an input is quantized to 16 bits at most, not to {target.dtype}")
        own = target.per_channel
        steps = np.asarray(target.scale if own else target.scale[0], dtype=np.float32)
        zeros = np.asarray(target.zero_point if own else target.zero_point[0], dtype=target.dtype.numpy)
        scale = g.add_constant(f"{name}.scale", steps)
        zero = g.add_constant(f"{name}.zero_point", zeros, target.dtype)
        attrs = {"axis": target.axis} if own else {}
        q = g.add_node("QuantizeLinear", [self.value, scale, zero], attrs, outputs=[f"{name}.q"], quant=target).output
        if own and bounds == FREE:
            return q
        lo, hi = bounds.on(target)
        return q if (lo, hi) == (target.dtype.lo, target.dtype.hi) else low.clamp(q, lo, hi, name)


@dataclass(frozen=True)
class Fixed(Form):
    """A constant. `data` are the reals (float64); `ints` and `quant` too where a DequantizeLinear made them."""

    data: Array
    ints: Array | None = None
    quant: QuantParams | None = None

    def emit(self, low: Lowering, target: QuantParams, bounds: Bounds, name: str) -> Value:
        q = target.quantize(np.clip(self.data, bounds.lo, bounds.hi))
        return low.graph.add_constant(name, q, target.dtype, target)


@dataclass(frozen=True)
class Plain(Form):
    """An integer tensor that stands for itself (indices of ArgMax, shapes)."""

    value: Value

    def emit(self, low: Lowering, target: QuantParams, bounds: Bounds, name: str) -> Value:
        raise LoweringError(f"plain integers {self.value.name!r} cannot be quantized")


class Lowering:
    """State of one lowering: the QDQ graph read, the integer graph built, the forms found so far."""

    def __init__(self, source: Graph, graph: Graph) -> None:
        self.source, self.graph = source, graph
        self.forms: dict[Value, Form] = {}
        self.halves: dict[Value, tuple[Value, Value]] = {}  # 16-bit operands of linear layers, by bytes (ops.halves)
        self.notes: list[str] = []
        self._shared: dict[str, Value] = {}
        self.node: Node | None = None

    # -- what operators ask -------------------------------------------------------------------
    def form(self, value: Value) -> Form:
        """The form of a value of the source graph."""
        if value not in self.forms:
            if value.data is None:
                raise LoweringError("has no integer form yet", where=f"value {value.name!r}")
            data = value.data
            is_real = value.dtype.is_float
            self.forms[value] = Fixed(data.astype(np.float64) if is_real else data)
        return self.forms[value]

    def set(self, value: Value, form: Form) -> None:
        self.forms[value] = form

    def quantized(self, value: Value) -> Value:
        """The integer value behind a quantized activation; a quantized constant is brought in as one.

        Raises LoweringError naming what lacks a QuantizeLinear.
        """
        form = self.form(value)
        if isinstance(form, Quantized):
            return form.value
        if isinstance(form, Fixed) and form.ints is not None and form.quant is not None:
            got = Quantized(self.graph.add_constant(value.name, form.ints, form.quant.dtype, form.quant))
            self.forms[value] = got
            return got.value
        what = "a float constant" if isinstance(form, Fixed) else "not quantized"
        raise LoweringError(
            f"input {value.name!r} is {what}", where=str(self.node),
            hint="insert a QuantizeLinear/DequantizeLinear pair on it (passes.InsertQdq does)",
        )  # fmt: skip

    def real_constant(self, value: Value) -> Array:
        """A constant's reals (float64, or the integers of an integer constant).  Raises LoweringError."""
        form = self.form(value)
        if not isinstance(form, Fixed):
            raise LoweringError(f"input {value.name!r} must be a constant", where=str(self.node))
        return form.data

    def is_constant(self, value: Value) -> bool:
        return isinstance(self.form(value), Fixed)

    def shared(self, name: str, data: Array) -> Value:
        """A constant that many nodes read (a table of all networks), made once."""
        if name not in self._shared:
            self._shared[name] = self.graph.add_constant(name, data)
        return self._shared[name]

    def note(self, text: str) -> None:
        """Something the report must say (a widened scale, a clipped bias)."""
        self.notes.append(f"{self.node}: {text}" if self.node else text)

    # -- what operators emit ------------------------------------------------------------------
    def requantize(self, x: Value, target: QuantParams, bounds: Bounds, name: str) -> Value:
        """x (integer, quantized) on another grid: one qir.Requantize  [docs/arithmetic.md 2]."""
        q = x.quant
        assert q is not None
        ratio = np.asarray(q.scale, dtype=np.float64) / target.scale[0]
        if len(set(q.zero_point)) != 1:
            raise LoweringError(f"{x.name!r} has a zero point for each channel", where=str(self.node))
        return self.rescale(x, self.channels(ratio, q, x.type.rank), target, bounds, name, q.zero_point[0])

    def rescale(
        self, x: Value, ratio: Array, target: QuantParams, bounds: Bounds, name: str, x_zero_point: int = 0
    ) -> Value:
        """(x - x_zero_point) * ratio on the grid `target`; `ratio` broadcasts against x."""
        multiplier, shift = dyadic_array(np.asarray(ratio, dtype=np.float64), where=str(self.node or name))
        if x.type.rank == 0:
            multiplier, shift = multiplier.reshape(()), shift.reshape(())
        lo, hi = bounds.on(target)
        g = self.graph
        node = g.add_node(
            "qir.Requantize",
            [x, g.add_constant(f"{name}.multiplier", multiplier), g.add_constant(f"{name}.shift", shift)],
            {
                "x_zero_point": x_zero_point, "zero_point": target.zero_point[0], "lo": lo, "hi": hi,
                "dtype": str(target.dtype),
            },
            outputs=[name], quant=target,
        )  # fmt: skip
        return node.output

    def clamp(self, x: Value, lo: int, hi: int, name: str) -> Value:
        """x limited to [lo, hi] on its own grid (a Clip on integers)."""
        g, kind = self.graph, x.dtype
        limits = [
            g.add_constant(f"{name}.{end}", np.asarray(v, dtype=kind.numpy), kind)
            for end, v in (("lo", lo), ("hi", hi))
        ]
        return g.add_node("Clip", [x, *limits], outputs=[name], quant=x.quant).output

    @staticmethod
    def channels(ratio: Array, q: QuantParams, rank: int) -> Array:
        """Per-channel numbers shaped to broadcast from the right against a tensor of `rank` axes."""
        if q.axis is None:
            return ratio.reshape(())
        return ratio.reshape([-1] + [1] * (rank - 1 - q.axis % rank))

    def accumulator_quant(self, x: QuantParams, w: QuantParams, axis: int) -> QuantParams:
        """Quantization of an int32 accumulator: scale s_w s_x, zero point 0, per channel where w is."""
        scale = tuple(x.scale[0] * s for s in w.scale)
        return QuantParams(scale, (0,) * len(scale), DType.INT32, axis if w.per_channel else None)
