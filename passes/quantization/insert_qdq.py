"""InsertQdq: quantizers into a float graph, as QuantizeLinear/DequantizeLinear pairs and integer weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from qir.errors import QuantizationError
from qir.graph import Graph, Node, Stage, Value
from qir.ops import op_of
from qir.types import Array, DType, QuantParams

from ..manager import Pass
from ..report import PassReport
from .align_scales import Key, Solution
from .given_grids import KEPT_LAYERS, given_grid
from .grids import affine, symmetric, unit_interval, whole
from .placement import (
    FUNCTION,
    INPUT_CHANNELS,
    NARROW,
    OUTPUT_CHANNELS,
    WIDE,
    QuantizerPlacement,
    Widths,
    activation_dtype,
    first_and_last,
    is_activation,
    layer_bits,
    limited,
    place,
    weights_side,
)  # fmt: skip
from .ranges import Interval, Ranges
from .weight_grids import quantize_weights, weight_grid

BITS = {"int16": WIDE, "int8": NARROW}

FUNCTION_REACH = (1 << FUNCTION - 1) - 1
"""The greatest integer of a function's grid; the least is one below its negative."""

FUNCTION_HEADROOM = 1.25
"""How far past the extremes seen a function's grid reaches: beyond it the function is constant."""


POSITIVE_HEADROOM = 1.25
"""The most for wide grids of what is never negative and whose small values count: more would cost those."""
APART = 256.0
"""A concatenation's grid this many times as coarse as an operand's own leaves nothing of the operand: where other
operators compute with it too, they get its own grid, and the concatenation a requantized copy."""


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Float -> QDQ: activations as Q/DQ pairs, weights as DequantizeLinear of integer constants.

    ranges:          activation ranges by tensor name (see `calibrate`, `data_free_ranges`).
    weight_bits:     8 or 4; per_channel: a scale for each output channel; weight_range: "minmax" or "mse".
    activation_bits: 16, 8 or 4, of the inputs of linear layers (other narrow tensors have 8).
    symmetric:       int8 activations with zero point 0 instead of uint8 asymmetric ones.
    residual:        "int16" or "int8": operands and results of sums.
    output:          "int16" or "int8": the graph's outputs.    input: the graph's inputs.
    pool:            "int8" or "int16": the least width of what an average pool reads.
    function:        "int16" or "int8": what functions (GELU, SiLU, LeakyRelu ...) read; int16 with 12 bits in use.
    first_last_bits: least bits of weights and inputs of the first and last linear layers  [AQT, HAWQ-V3].
    headroom:        wide grids cover this many times the extremes seen: what clipping costs them is nothing.
    layers:          node name -> (weight bits, input bits), over everything else (mixed precision).
    scales:          value name of a weight -> its QuantParams, where another pass has chosen (AdaRound, GPTQ).
    """

    name: ClassVar[str] = "insert_qdq"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT, Stage.FOLDED)
    ensures: ClassVar[Stage] = Stage.QDQ

    ranges: Ranges
    weight_bits: int = 8
    activation_bits: int = 8
    per_channel: bool = True
    weight_range: str = "minmax"
    symmetric: bool = False
    residual: str = "int16"
    output: str = "int16"
    input: str = "int8"
    pool: str = "int8"
    function: str = "int16"
    first_last_bits: int = 8
    headroom: float = 2.0
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    scales: Mapping[str, QuantParams] = field(default_factory=dict[str, QuantParams])

    def __post_init__(self) -> None:
        for option in ("residual", "output", "input", "pool", "function"):
            if getattr(self, option) not in BITS:
                raise QuantizationError(f"{option} is {getattr(self, option)!r}", hint=f"one of {', '.join(BITS)}")
        for option in ("weight_bits", "activation_bits", "first_last_bits"):
            allowed = (4, 8, 16) if option == "activation_bits" else (4, 8)
            if getattr(self, option) not in allowed:
                raise QuantizationError(f"{option} is {getattr(self, option)}", hint=" or ".join(map(str, allowed)))
        if not self.headroom >= 1:
            raise QuantizationError(f"headroom is {self.headroom}", hint="1 or more")

    @property
    def widths(self) -> Widths:
        """The same options as the placement wants them."""
        return Widths(
            self.activation_bits, BITS[self.residual], BITS[self.output], BITS[self.input], BITS[self.pool],
            FUNCTION if self.function == "int16" else NARROW, self.first_last_bits, self.layers,
        )  # fmt: skip

    def run(self, graph: Graph) -> PassReport:
        """Raises QuantizationError naming a tensor without a range, or weights that cannot be quantized."""
        report = self.report()
        ends = first_and_last(graph)
        plan = place(graph, self.widths)
        work = _Inserter(graph, self, plan, plan.relations.solve(), report)
        values = [v for v in (*graph.inputs, *(o for n in graph.nodes for o in n.outputs)) if v in plan.width]
        roots = set(plan.roots)
        for value in values:
            work.activation(value, value in roots)
        for value, result in work.ends:  # only now: ranges are found by name
            work.as_output(value, result)
        for node in graph.nodes:
            side = weights_side(node)
            if side is not None:
                work.weights(node, side, layer_bits(node, ends, self.widths, self.weight_bits)[0])
        return report


class _Inserter:
    """State of one run: the grids decided and the pairs made."""

    def __init__(
        self, graph: Graph, options: InsertQdq, plan: QuantizerPlacement, solution: Solution, report: PassReport
    ) -> None:
        self.graph, self.options, self.plan, self.solution, self.report = graph, options, plan, solution, report
        self.grids: dict[Key, QuantParams] = {}
        self.own: dict[Key, QuantParams | None] = {}
        self.fixed = {
            v.name: unit_interval(activation_dtype(NARROW, options.symmetric))
            for n in graph.nodes if n.op in ("Softmax", "MaskedSoftmax") for v in n.outputs
        }  # fmt: skip
        self.whole = {n.output.name for n in graph.nodes if n.op == "Cast" and not n.input(0).dtype.is_float}
        self.joined = {
            v.name for n in graph.nodes if n.op == "Concat" or limited(n) is not None for v in n.outputs
        }  # fmt: skip
        self.dequantized: dict[tuple[Value, int | None, QuantParams], Value] = {}
        self.ends: list[tuple[Value, Value]] = []

    # -- activations --------------------------------------------------------------------------
    def activation(self, value: Value, is_root: bool) -> None:
        """The pairs on one activation: at its own width where it is a root, narrower ones for uses that need them."""
        plan = self.plan
        uses = [u for u in value.uses() if u in plan.needs]
        outer = value.is_output
        bits = plan.width[value]
        producer = value.producer
        if not is_root and plan.origin[value] is value and producer is not None and producer.op != "Concat":
            return  # fused: its activation's result has the quantizer
        at = {bits: self.pair(value, value, bits)} if is_root else {bits: value}
        joint: dict[int, Value] = {}
        for node, index in uses:
            width = plan.at_use(value, (node, index))
            if width not in at:
                at[width] = self.pair(at[bits], value, width)
            given = at[width]
            if node.op == "Concat" and self.apart(value, width) is not None:
                if width not in joint:
                    joint[width] = self.on_grid(given, value, self.grid(value, width), f"{value.name}.joined")
                given = joint[width]
            if given is not value:
                self.graph.set_input(node, index, given)
        if outer and value.producer is not None:
            wanted = max(bits, BITS[self.options.output])
            result = at[bits] if is_root else self.pair(value, value, bits)
            self.ends.append((value, result))
            if wanted > bits:
                self.report.note(f"output {value.name!r} stays at {bits} bits: it only moves what is narrow already")

    def pair(self, source: Value, value: Value, bits: int) -> Value:
        """source -> QuantizeLinear -> DequantizeLinear on the grid of `value` at `bits`."""
        q = self.apart(value, bits) or self.grid(value, bits)
        if bits == FUNCTION:
            source = self.limited(source, value, q)
        return self.on_grid(source, value, q, f"{value.name}.{q.dtype}")

    def limited(self, source: Value, value: Value, q: QuantParams) -> Value:
        """source, clamped to the part of an int16 grid that a function's table has entries for."""
        g, scale, kind = self.graph, q.scale[0], source.dtype.numpy
        ends = ((end, np.asarray(n * scale, kind)) for end, n in (("lo", -FUNCTION_REACH - 1), ("hi", FUNCTION_REACH)))
        limits = [g.add_constant(f"{value.name}.{end}", data) for end, data in ends]
        return g.add_node("Clip", [source, *limits], outputs=[g.fresh(f"{value.name}.limited")]).output

    def on_grid(self, source: Value, value: Value, q: QuantParams, stem: str) -> Value:
        """source -> QuantizeLinear -> DequantizeLinear on the grid `q`."""
        g = self.graph
        scale, zero = self.constants(q, stem, source)
        attrs = {"axis": q.axis} if q.axis is not None else {}
        ints = g.add_node("QuantizeLinear", [source, scale, zero], attrs, outputs=[g.fresh(f"{stem}.q")], quant=q)
        back = g.add_node("DequantizeLinear", [ints.output, scale, zero], attrs, outputs=[g.fresh(f"{stem}.dq")])
        self.report.rewrote(f"quantize to {q.dtype}", value.name)
        return back.output

    def constants(self, q: QuantParams, stem: str, like: Value) -> tuple[Value, Value]:
        """Scale and zero point of a grid, as constants; the scale's dtype is the tensor's."""
        scales: Array = np.asarray(q.scale, dtype=like.dtype.numpy)
        zeros: Array = np.asarray(q.zero_point, dtype=q.dtype.numpy)
        if not q.per_channel:
            scales, zeros = scales.reshape(()), zeros.reshape(())
        g = self.graph
        return g.add_constant(f"{stem}.scale", scales), g.add_constant(f"{stem}.zero_point", zeros, q.dtype)

    def as_output(self, value: Value, result: Value) -> None:
        """Make `result` the graph output in place of `value`, under its public name."""
        g, name = self.graph, value.name
        g.set_outputs([result if v is value else v for v in g.outputs])
        g.swap_names(value, result)
        g.rename(value, g.fresh(f"{name}.q"))

    def grid(self, value: Value, bits: int) -> QuantParams:
        """The grid of a tensor at `bits`: its class's range, in the dtype the options say."""
        key = self.solution.root(self.plan.key(value, bits))
        if key not in self.grids:
            own = None
            for table in (INPUT_CHANNELS, OUTPUT_CHANNELS) if bits == WIDE else ():
                own = own or self.graph.tables.get(table, {}).get(value.name)
            self.grids[key] = _by_channel(*own) if own else self._grid(key, value, bits)
        return self.grids[key]

    def apart(self, value: Value, bits: int) -> QuantParams | None:
        """A tensor's own grid, where a concatenation's would leave nothing of it to others; None: they share."""
        key = self.plan.key(value, bits)
        if key not in self.own:
            self.own[key] = self._apart(key, value, bits)
        return self.own[key]

    def _apart(self, key: Key, value: Value, bits: int) -> QuantParams | None:
        name = key[0]
        producer = self.plan.origin[value].producer
        if key not in self.plan.joined or key not in self.plan.computed or name in self.joined or name in self.fixed:
            return None
        if name not in self.options.ranges or (producer is not None and producer.op == "Concat"):
            return None
        alone = self.solution.reach_alone(key)
        q = self._over([self.interval(name, bits), *([alone] if alone else [])], bits)
        lo, hi = self.options.ranges.at(name, bits)
        return q if lo < hi and self.grid(value, bits).scale[0] > APART * q.scale[0] else None

    def _grid(self, key: Key, value: Value, bits: int) -> QuantParams:
        members = [name for name, _ in self.solution.members(key)]
        joined = [name for name in members if name in self.joined and name in self.options.ranges]
        if bits == NARROW and all(name in self.fixed for name in members):
            return self.fixed[members[0]]
        reach = self.solution.reach(key)
        if joined and bits <= NARROW:
            members = joined  # what was observed of the result: the operands' joint distribution
        intervals = [self.interval(name, bits) for name in members if name in self.options.ranges or name in self.fixed]
        intervals += [reach] if reach is not None else []
        if not intervals:
            raise QuantizationError(
                "has no range", where=f"tensor {value.name!r}", hint="calibrate the graph as it is before this pass"
            )
        integers = self._integers(value, intervals, bits) if self.whole.issuperset(members) else None
        if integers is None and bits == WIDE and self.plan.positive.issuperset(members):
            top = max(i[1] for i in intervals) * min(self.options.headroom, POSITIVE_HEADROOM)
            return affine(0.0, top, activation_dtype(bits, True))
        return integers or self._over(intervals, bits)

    def _integers(self, value: Value, intervals: list[Interval], bits: int) -> QuantParams | None:
        """The grid of a tensor that a Cast makes of integers: each of them exactly, if they fit."""
        dtype = activation_dtype(bits, self.options.symmetric)
        producer = self.plan.origin[value].producer
        source = producer.input(0).dtype if producer is not None else DType.INT64
        if source.bits <= NARROW and source is not DType.BOOL:  # all that its dtype holds, not only what was seen
            grid = whole(source.lo, source.hi, dtype)
            if grid is not None:
                return grid
        return whole(min(i[0] for i in intervals), max(i[1] for i in intervals), dtype)

    def _over(self, intervals: list[Interval], bits: int) -> QuantParams:
        """The grid that holds all intervals."""
        lo, hi = min(i[0] for i in intervals), max(i[1] for i in intervals)
        dtype = activation_dtype(bits, self.options.symmetric)
        if bits == FUNCTION:
            reach = FUNCTION_HEADROOM * dtype.hi / FUNCTION_REACH
            return symmetric(lo * reach, hi * reach, dtype)
        if bits > NARROW:
            return symmetric(lo * self.options.headroom, hi * self.options.headroom, dtype)
        if self.options.symmetric:
            return symmetric(lo, hi, dtype)
        return affine(lo, hi, dtype)

    def interval(self, name: str, bits: int) -> Interval:
        """One tensor's interval at `bits`."""
        return (0.0, 1.0) if name in self.fixed else self.options.ranges.at(name, bits)

    # -- weights ------------------------------------------------------------------------------
    def weights(self, node: Node, side: int, bits: int) -> None:
        """Integer constant -> DequantizeLinear in place of a linear node's float weights."""
        w = node.input(side)
        axis = None
        if self.options.per_channel:
            axis = channel_axis(node) if side else row_axis(node)
        try:
            q = self.options.scales.get(w.name)
            given = None if q is not None else given_grid(self.graph, w, axis)
            q = q or given or weight_grid(w.array(), bits, axis, self.options.weight_range)
        except QuantizationError as error:
            raise QuantizationError(str(error), where=f"{node} weights {w.name!r}") from None
        key = (w, q.axis, q)
        if key not in self.dequantized:
            self.dequantized[key] = self.dequantize(w, q, q.quantize(w.array()) if given is not None else None)
        self.graph.set_input(node, side, self.dequantized[key])
        if given is not None:
            self.graph.tables.setdefault(KEPT_LAYERS, {})[node.name] = q
        self.report.rewrote(f"weights to {q.dtype}" if given is None else "weights kept", node.name)

    def dequantize(self, w: Value, q: QuantParams, codes: Array | None) -> Value:
        """A constant as its integers (`codes`, or the nearest on the grid) and a DequantizeLinear."""
        g = self.graph
        codes = quantize_weights(w.array(), q) if codes is None else codes
        ints = g.add_constant(f"{w.name}.q", codes, q.dtype, q)
        scale, zero = self.constants(q, w.name, w)
        attrs = {"axis": q.axis} if q.axis is not None else {}
        return g.add_node("DequantizeLinear", [ints, scale, zero], attrs, outputs=[g.fresh(f"{w.name}.dq")]).output


def _by_channel(axis: int, scales: tuple[float, ...]) -> QuantParams:
    """The 16-bit grids of the channels of an input or output."""
    return QuantParams(scales, (0,) * len(scales), DType.INT16, axis)


def channel_axis(node: Node) -> int | None:
    """Axis of a linear node's weights that runs over its output channels; None: one scale for the whole tensor.

    ConvTranspose weights are (C_in, M/group, ...): with groups no axis is the output channels.
    """
    w = node.input(1)
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1 if node.attrs.get("group", 1) == 1 else None
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return w.type.rank - 1 if w.type.rank == 2 else None


def row_axis(node: Node) -> int | None:
    """The same for weights on the left: their rows are the output channels; a product with a vector has one scale."""
    if node.op == "Gemm":
        return 1 if node.attrs.get("transA", 0) else 0
    return 0 if node.input(0).type.rank == 2 and node.input(1).type.rank > 1 else None


def linear_nodes(graph: Graph) -> list[Node]:
    """Linear nodes whose weights are constants, or dequantized constants, in topological order."""
    return [n for n in graph.nodes if op_of(n.op).linear and not is_activation(weights_of(n))]


def weights_of(node: Node) -> Value | None:
    """The constant behind a linear node's weights, through a DequantizeLinear; None where it is an activation."""
    w = node.inputs[1] if len(node.inputs) > 1 else None
    if w is None or w.is_constant:
        return w
    if w.producer is not None and w.producer.op == "DequantizeLinear" and w.producer.input(0).is_constant:
        return w.producer.input(0)
    return w
