"""Channel scales: outlier channels of a layer's input made smaller, its weights made larger by as much."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qir import running
from qir.graph import Graph, Node, Stage, Value
from qir.ops import op_of
from qir.types import Array

from ..manager import Pass
from ..quantization.weight_grids import quantize_weights, weight_grid
from ..report import PassReport
from .layer_rows import as_rows, from_rows

Floats = NDArray[np.float64]

POWERS = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
FLOOR = 0.6
"""A channel that hardly moved in the calibration data may move in others: its size counts as this part of the mean."""
WORTH = 0.8
"""Least improvement of the squared error for which a group of layers gets scales."""
ROWS, ROWS_A_BATCH = 1024, 128
SCALED = "channel_scales"
"""Table of a graph: names of the tensors with factors. Their grids reach from the least to the greatest seen, as those
did with which the factors were chosen: what sticks out of many small channels is no outlier any more."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChannelScales(Pass):
    """x W = (x / c) (c W), one factor c for each channel of x, so that one grid serves all  [SmoothQuant eq. 3]

    Layers that read one tensor share its factors; c is the power of the channels' sizes (and of the weights') that has
    the least error of the quantized product on rows of the calibration data that did not choose it, or none at all.
    The division goes into gamma and beta of a normalization that nothing else reads, else into the requantization that
    the layer's input needs anyway: exact on integers, and free.

    feeds: batches; read until there are enough rows.  weight_bits, activation_bits: of the layers.
    """

    name: ClassVar[str] = "channel_scales"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT, Stage.FOLDED)

    feeds: Iterable[Mapping[str, Any]] = field(repr=False)
    weight_bits: int = 8
    activation_bits: int = 8

    def run(self, graph: Graph) -> PassReport:
        """Raises what running the graph on the data raises."""
        report = self.report()
        groups = scalable(graph)
        if not groups:
            return report
        rows = collect_rows(graph, list(groups), self.feeds)
        for x, layers in groups.items():
            if len(rows[x.name]) < 8:
                continue
            c, gain = self.choose(rows[x.name], layers)
            if c is None:
                continue
            scaled = apply(graph, x, layers, c)
            graph.tables.setdefault(SCALED, {})[scaled.name] = True
            report.rewrote("channel scales", x.name)
            log.debug("channel scales on %s: squared error times %.3f", x.name, gain)
        graph.prune()
        return report

    def choose(self, rows: Array, layers: list[Node]) -> tuple[Floats | None, float]:
        """(the factors that leave the least squared error, that error over the one without), or None."""
        half = len(rows) // 2
        seen, judging = rows[:half], rows[half:]
        weights = np.concatenate([as_rows(n, n.input(1).array())[0] for n in layers]).astype(np.float32)
        wanted = judging @ weights.T
        sizes = np.abs(seen).max(axis=0).astype(np.float64)
        sizes = np.maximum(sizes, max(FLOOR * float(sizes.mean()), 1e-12))
        heavy = np.maximum(np.abs(weights).max(axis=0), 1e-12).astype(np.float64)
        plain = self._error(seen, judging, weights, np.ones_like(sizes), wanted)
        best, least = None, WORTH * plain
        for power in POWERS:
            for c in (sizes**power, sizes**power / heavy ** (1 - power)):
                c = c / np.exp(np.log(c).mean())
                error = self._error(seen, judging, weights, c, wanted)
                if error < least:
                    best, least = c, error
        return best, least / plain if plain else 1.0

    def _error(self, seen: Array, judging: Array, weights: Array, c: Floats, wanted: Array) -> float:
        """Squared error of the product of quantized rows and weights, both with these factors."""
        factor = c.astype(np.float32)
        lo, hi = (float(f) for f in ((seen / factor).min(initial=0), (seen / factor).max(initial=0)))
        step = max(hi - lo, 1e-30) / (2**self.activation_bits - 1)
        zero = np.rint(-lo / step)
        x = (np.clip(np.rint(judging / (factor * step)) + zero, 0, 2**self.activation_bits - 1) - zero) * step
        w = weights * factor
        grid = weight_grid(w, self.weight_bits, 0)
        w = quantize_weights(w, grid) * np.asarray(grid.scale, np.float32)[:, None]
        return float(((x.astype(np.float32) @ w.T - wanted) ** 2).sum(dtype=np.float64))


def scalable(graph: Graph) -> dict[Value, list[Node]]:
    """Inputs that may have factors -> the layers that read them: matrix products with constant weights.

    Normalizations, functions and sums are requantized on the way to a layer; what only moves narrow integers is not.
    """
    groups: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        # policy: products whose rows are the last axis of the input
        if node.op == "MatMul" or (node.op == "Gemm" and not node.attrs["transA"]):
            x, w = node.input(0), node.input(1)
            if x.producer is not None and w.is_constant and w.type.rank == 2 and w.use_count == 1:
                op = op_of(x.producer.op)
                if op.normalizes or op.additive or (op.pointwise and not (op.flat or op.clamps)):
                    groups.setdefault(x, []).append(node)
    return groups


def collect_rows(graph: Graph, values: list[Value], feeds: Iterable[Mapping[str, Any]]) -> dict[str, Array]:
    """Up to ROWS rows (along the last axis) of each value, float32, a few from each batch."""
    session, names = running.session(graph), [v.name for v in values]
    rng = np.random.default_rng(0)
    found: dict[str, list[Array]] = {name: [] for name in names}
    count = 0
    for batch in feeds:
        got = session.run(batch, outputs=names)
        for name in names:
            rows = got[name].reshape(-1, got[name].shape[-1])
            pick = rng.permutation(len(rows))[:ROWS_A_BATCH]
            found[name].append(np.asarray(rows[pick], np.float32))
        count += ROWS_A_BATCH
        if count >= ROWS:
            break
    mixed = {name: np.concatenate(parts) for name, parts in found.items() if parts}
    return {name: rows[rng.permutation(len(rows))] for name, rows in mixed.items()}


def apply(graph: Graph, x: Value, layers: list[Node], c: Floats) -> Value:
    """Divide x by c on its way to the layers, and multiply their weights.  Returns what the layers read now."""
    scaled = x
    if not _into_normalization(graph, x, layers, c):
        inverse = graph.add_constant(f"{x.name}.factors", (1 / c).astype(x.dtype.numpy))
        scaled = graph.add_node("Mul", [x, inverse], outputs=[graph.fresh(f"{x.name}.scaled")]).output
    for node in layers:
        w = node.input(1)
        rows = as_rows(node, w.array().astype(np.float64)) * c
        data = from_rows(node, rows, w.array().shape).astype(w.dtype.numpy)
        graph.set_input(node, 1, graph.add_constant(w.name, data))
        graph.set_input(node, 0, scaled)
    return scaled


def _into_normalization(graph: Graph, x: Value, layers: list[Node], c: Floats) -> bool:
    """1 / c in gamma and beta of the normalization that makes x, where only these layers read it."""
    node = x.producer
    # policy: the normalizations whose parameters lie along the last axis
    if node is None or node.op not in ("LayerNormalization", "RMSNormalization") or x.is_output:
        return False
    if {user for user, _ in x.uses()} != set(layers) or node.attrs["axis"] not in (-1, x.type.rank - 1):
        return False
    parameters = [(i, v) for i, v in enumerate(node.inputs) if i and v is not None]
    if any(v.data is None for _, v in parameters):
        return False
    for index, value in parameters:
        data = (value.array().astype(np.float64) / c).astype(value.dtype.numpy)
        graph.set_input(node, index, graph.add_constant(value.name, data))
    return True
