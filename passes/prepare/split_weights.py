"""Weights of 16 bits as two of 8, for layers whose small sums count (spectra before a logarithm).

W = W1 + W2, W1 the weights as 8 bits hold them, W2 the rest, whose own grid is 256 times as fine: W x = W1 x + W2 x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.graph import Graph, Node, Stage
from qir.ops import op_of

from ..manager import Pass
from ..quantization.insert_qdq import channel_axis, row_axis
from ..quantization.placement import fine_values, weights_side
from ..quantization.weight_grids import quantize_weights, weight_grid
from ..report import PassReport


@dataclass(frozen=True)
class SplitWeights(Pass):
    """Layers with constant weights whose input and output are both of `fine_values`: two layers and a sum."""

    name: ClassVar[str] = "split_weights"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT, Stage.FOLDED)

    def run(self, graph: Graph) -> PassReport:
        report = self.report()
        fine = fine_values(graph)
        for node in graph.nodes:
            side = weights_side(node) if op_of(node.op).linear else None
            if side is None or node.output not in fine or node.input(1 - side).producer is not None:
                continue
            self._split(graph, node, side)
            report.rewrote("W1 + W2", node.name)
        return report

    def _split(self, graph: Graph, node: Node, side: int) -> None:
        value, old = node.input(side), node.output
        w = value.array()
        q = weight_grid(w, 8, channel_axis(node) if side else row_axis(node), "minmax")
        first = q.dequantize(quantize_weights(w, q)).astype(np.float32)
        rest = (w.astype(np.float64) - first).astype(np.float32)
        inputs = list(node.inputs[:2])
        inputs[side] = graph.add_constant(f"{value.name}.rest", rest)
        twin = graph.add_node(node.op, inputs, node.attrs, outputs=[f"{old.name}.rest"], name=f"{node.name}.rest")
        graph.set_input(node, side, graph.add_constant(f"{value.name}.first", first))
        total = graph.add_node("Add", [old, twin.output], outputs=[f"{old.name}.first"], name=f"{node.name}.sum")
        graph.replace_uses(old, total.output)
        graph.set_input(total, 0, old)
        graph.swap_names(old, total.output)
