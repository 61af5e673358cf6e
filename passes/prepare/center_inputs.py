"""A grid for each feature of an input, where one grid for all would leave nothing of some.

Features in different units (an age beside an income) share no grid.  Such an input is quantized to 16 bits with a
scale for each channel, and what a layer reads of it is centred and scaled channel by channel, from what calibration
saw:  u = (x - m) / r,  W x + b = (W r) u + (b + W m),  m and r the middle and half the width of a channel's range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qir.graph import Graph, Node, Value
from qir.ops import op_of
from qir.types import Array, DType

from ..calibration.observers import Statistics, TensorStatistics
from ..feature_axes import feature_axis
from ..quantization.placement import INPUT_CHANNELS, is_activation
from ..quantization.ranges import Ranges, TensorRange
from ..report import PassReport

Floats = NDArray[np.float64]

STEPS = 16.0
"""A channel that takes fewer steps of the 8-bit grid of all channels gets one of its own."""
FEW, TAILS = 1024, 4.0
"""Fewer samples than this say little about extremes: a grid covers this many standard deviations then."""
LEAST_STEPS = 512.0
"""A channel's range takes this many steps of its 16-bit grid at least, or a note says so."""


@dataclass
class CenteredInputs:
    """The graph with its uneven inputs centred, and the calibration's results with what was added."""

    graph: Graph
    ranges: Ranges
    means: dict[str, Floats] = field(default_factory=dict[str, Floats])


@dataclass(frozen=True)
class Spread:
    """What the channels of a tensor hold: extremes, mean, standard deviation, and the samples these come from."""

    lo: Floats
    hi: Floats
    mean: Floats
    std: Floats
    samples: int

    @staticmethod
    def of(stats: TensorStatistics) -> Spread:
        return Spread(stats.channel_lo, stats.channel_hi, stats.channel_mean, stats.channel_std, stats.channel_count)

    @property
    def is_uneven(self) -> bool:
        """Whether one grid of 8 bits leaves a channel too little."""
        span = self.hi - self.lo
        step = (float(self.hi.max()) - float(min(self.lo.min(), 0.0))) / 255.0
        return len(span) > 1 and bool(((span > 0) & (span < STEPS * step)).any())

    @property
    def middle(self) -> Floats:
        """The middle of each channel's range, as float32 holds it."""
        return ((self.lo + self.hi) / 2).astype(np.float32).astype(np.float64)

    @property
    def half(self) -> Floats:
        """Half the width that each channel's grid covers."""
        lo, hi = self.lo, self.hi
        half = np.where(hi > lo, (hi - lo) / 2, np.maximum(np.abs(hi), 1e-3))
        half = np.maximum(half, TAILS * self.std) if self.samples < FEW else half
        return half.astype(np.float32).astype(np.float64)

    def through(self, node: Node, index: int, axis: int) -> Spread:
        """Of the result of an affine map with constants and a positive factor."""
        rank = node.output.type.rank
        shape = [1] * rank
        shape[axis] = -1

        def mapped(v: Floats) -> Floats:
            x = v.reshape(shape)
            args = [x if i == index else w.array() for i, w in enumerate(node.inputs) if w is not None]
            return np.asarray(op_of(node.op).reference(node.attrs, *args)[0], np.float64).reshape(-1)

        factor = mapped(np.ones_like(self.std)) - mapped(np.zeros_like(self.std))
        return Spread(mapped(self.lo), mapped(self.hi), mapped(self.mean), self.std * factor, self.samples)


def center_inputs(
    graph: Graph, seen: Statistics, ranges: Ranges, means: Mapping[str, Array], headroom: float, report: PassReport
) -> CenteredInputs | None:
    """None where no input needs it.  `graph` is left as it is."""
    found = {v.name: axis for v in graph.inputs if (axis := uneven(v, seen, report)) is not None}
    if not found:
        return None
    new = graph.clone()
    table: dict[str, tuple[int, tuple[float, ...]]] = {}
    tensors, all_means = dict(ranges.tensors), {k: np.asarray(v, np.float64) for k, v in means.items()}
    for name, axis in found.items():
        x, spread = new.value(name), Spread.of(seen[name])
        reach = np.maximum(np.abs(spread.lo), np.abs(spread.hi)) * headroom
        scales = np.where(reach > 0, reach, 1.0) / DType.INT16.hi
        table[name] = (axis, tuple(float(s) for s in scales.astype(np.float32)))
        steps = (spread.hi - spread.lo) / scales
        coarse = np.flatnonzero((steps > 0) & (steps < LEAST_STEPS))
        if coarse.size:
            report.note(
                f"input {name!r}: feature {int(coarse[0])} hardly varies beside its size ({coarse.size} such): "
                "subtract a constant from it before it enters the network"
            )
        for value, node, index, own in _layers_behind(x, axis, spread):
            if own.is_uneven:
                own = own if _unpadded(node) else Spread(-_reach(own), _reach(own), own.mean, own.std, own.samples)
                u = _centred(new, node, value, axis, own)
                _compensate(new, node, index, u, own.middle, own.half)
                tensors[u.name] = TensorRange((-1.0, 1.0), {8: (-1.0, 1.0)})
                all_means[u.name] = (own.mean - own.middle) / own.half
        report.rewrote("a grid for each channel", name)
    new.tables[INPUT_CHANNELS] = dict(table)
    return CenteredInputs(new, Ranges(tensors, ranges.method, ranges.samples), all_means)


def _layers_behind(x: Value, axis: int, spread: Spread) -> Iterator[tuple[Value, Node, int, Spread]]:
    """Layers that read the input, or affine maps of it: (what they read, layer, operand, its channels)."""
    for node, index in x.uses():
        value, own = x, spread
        while op_of(node.op).affine and feature_axis(node, index) == axis:
            own, value = own.through(node, index, axis), node.output
            if len(value.uses()) != 1 or value.is_output:
                break
            ((node, index),) = value.uses()
        if op_of(node.op).linear and feature_axis(node, index) == axis:
            yield value, node, index, own


def _reach(spread: Spread) -> Floats:
    return np.maximum(np.abs(spread.lo), np.abs(spread.hi))


def uneven(value: Value, seen: Statistics, report: PassReport) -> int | None:
    """The channel axis of an input whose channels need grids of their own; None where they do not, or cannot have."""
    stats = seen.get(value.name, None)
    if not is_activation(value) or value.type.rank < 2 or stats is None or stats.channel_count == 0:
        return None
    if not Spread.of(stats).is_uneven:
        return None
    axes = {feature_axis(node, index) for node, index in value.uses()}
    axis = axes.pop() if len(axes) == 1 else None
    rank, channels = value.type.rank, len(stats.channel_lo)
    watched = None if stats.axis is None else stats.axis % rank or rank - 1
    if value.is_output or axis is None or axis != watched or value.shape[axis] != channels:
        report.missed("a grid for each channel", value.name, "its channels have ranges far apart, but what reads it "
                      "is neither a layer nor an affine map by channels")  # fmt: skip
        return None
    return axis


def _unpadded(node: Node) -> bool:
    """Whether a layer reads nothing but its input: what a convolution pads with must stay 0."""
    padded = any(node.attrs.get("pads") or ()) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return node.op != "Conv" or not padded


def _centred(graph: Graph, node: Node, x: Value, axis: int, spread: Spread) -> Value:
    shape = [1] * x.type.rank
    shape[axis] = -1
    m, r = (v.reshape(shape).astype(np.float32) for v in (spread.middle, 1.0 / spread.half))
    name = f"{x.name}.for.{node.name}"
    shifted = graph.add_node("Sub", [x, graph.add_constant(f"{name}.middle", m)], outputs=[f"{name}.centred"]).output
    return graph.add_node("Mul", [shifted, graph.add_constant(f"{name}.unit", r)], outputs=[name]).output


def _compensate(graph: Graph, node: Node, index: int, u: Value, m: Floats, half: Floats) -> None:
    """The layer's weights and bias for u in place of x."""
    w = node.input(1).array().astype(np.float64)
    if node.op == "Conv":
        group = int(node.attrs.get("group", 1))
        per = w.shape[1]
        rows = np.arange(len(w)) // (len(w) // group)
        channels = rows[:, None] * per + np.arange(per)  # [out, in of its group]
        tail = (1,) * (w.ndim - 2)
        offset = (w * m[channels].reshape(*channels.shape, *tail)).reshape(len(w), -1).sum(axis=1)
        scaled = w * half[channels].reshape(*channels.shape, *tail)
    else:
        inner = 1 if node.attrs.get("transB", 0) else 0
        along = [1, 1]
        along[inner] = -1
        offset = (w * m.reshape(along)).sum(axis=inner)
        scaled = w * half.reshape(along)
    graph.set_input(node, index, u)
    graph.set_input(node, 1, graph.add_constant(f"{node.input(1).name}.scaled", scaled.astype(np.float32)))
    if not offset.any():
        return
    if node.op == "MatMul":
        _add_behind(graph, node, offset.astype(np.float32))
        return
    offset = offset * float(node.attrs.get("alpha", 1.0)) / float(node.attrs.get("beta", 1.0) or 1.0)
    bias = node.optional(2)
    total_bias = offset if bias is None else bias.array().astype(np.float64) + offset
    graph.set_input(node, 2, graph.add_constant(f"{node.name}.bias", total_bias.astype(np.float32)))


def _add_behind(graph: Graph, node: Node, offset: Array) -> None:
    """An offset of each column behind a MatMul: in the bias that is added there, or in a sum of its own."""
    old = node.output
    users = old.uses()
    if len(users) == 1 and users[0][0].op == "Add" and not old.is_output:
        add, index = users[0]
        bias = add.input(1 - index)
        if bias.data is not None and add.output.shape == old.shape:
            total = (bias.array().astype(np.float64) + offset).astype(np.float32)
            graph.set_input(add, 1 - index, graph.add_constant(f"{bias.name}.moved", total))
            return
    c = graph.add_constant(f"{node.name}.offset", offset)
    add = graph.add_node("Add", [old, c], outputs=[f"{old.name}.moved"])
    graph.replace_uses(old, add.output)
    graph.set_input(add, 0, old)
    graph.swap_names(old, add.output)
