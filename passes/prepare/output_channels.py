"""Outputs whose columns are in different units: a 16-bit grid for each, where one grid would leave little of some.

One grid of 16 bits has reach / 32767 as its step: a column of 1/64 of the widest one's reach is left 512 steps on
either side, with the headroom that outputs have half of them, which is as good as what a layer of 8 bits gives.  A
column below that is better off with its own: the accumulator behind it is rescaled channel by channel anyway, so that
nothing is dearer.
"""

from __future__ import annotations

import numpy as np

from qir.graph import Graph, Value
from qir.ops import op_of
from qir.types import DType

from ..calibration.observers import Statistics
from ..quantization.placement import OUTPUT_CHANNELS, is_activation
from ..report import PassReport

APART = 64.0
"""How many times the narrowest column's reach the widest has, before they get grids of their own."""

FINEST = 2.0**-14
"""No column's step is finer than this share of the widest one's."""


def uneven_outputs(graph: Graph, seen: Statistics, headroom: float, report: PassReport) -> None:
    """Fill `graph.tables[OUTPUT_CHANNELS]` from what calibration saw."""
    for value in graph.outputs:
        found = _scales(value, seen, headroom)
        if found is not None:
            graph.tables.setdefault(OUTPUT_CHANNELS, {})[value.name] = found
            report.rewrote("a grid for each column of an output", value.name)


def _of_layer(value: Value) -> bool:
    """Whether a value is a layer's accumulator, or an affine map of one."""
    node = value.producer
    while node is not None and not op_of(node.op).linear:
        operands = [v for v in node.inputs if v is not None and is_activation(v)]
        if not op_of(node.op).affine or len(operands) != 1 or len(operands[0].uses()) != 1 or operands[0].is_output:
            return False
        node = operands[0].producer
    return node is not None


def _scales(value: Value, seen: Statistics, headroom: float) -> tuple[int, tuple[float, ...]] | None:
    if value.use_count or not is_activation(value) or value.name not in seen or not _of_layer(value):
        return None
    stats, rank = seen[value.name], value.type.rank
    if rank < 2 or stats.axis is None or stats.channel_count == 0:
        return None
    axis = stats.axis % rank
    if value.shape[axis] != len(stats.channel_lo):
        return None
    reach = np.maximum(np.abs(stats.channel_lo), np.abs(stats.channel_hi))
    widest = float(reach.max(initial=0.0))
    if widest == 0 or widest < APART * float(reach[reach > 0].min()):
        return None
    reach = np.maximum(np.where(reach > 0, reach, widest), FINEST * widest)
    scales = (reach * headroom / DType.INT16.hi).astype(np.float32)
    return axis, tuple(float(s) for s in scales)
