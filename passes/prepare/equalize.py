"""Equalize: cross-layer equalization of weight ranges over chains of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.errors import QuantizationError
from qir.graph import Graph, Node, Stage

from ..calibration.data_free import BATCH_NORM_TABLE
from ..layers import Floats, Link, by_channel, clip_limit, find_links
from ..manager import Pass
from ..report import PassReport

CLIPS = ("keep", "clip", "relu")


@dataclass(frozen=True)
class Equalize(Pass):
    """W1 / s, b1 / s, W2 s  with  s_i = sqrt(r1_i r2_i) / r2_i = sqrt(r1_i / r2_i)              [White Paper 20-22]

    r1_i, r2_i: largest |w| of channel i in the layer before and after. Both become sqrt(r1_i r2_i), and the network
    computes what it did, because Relu, LeakyRelu, PRelu, pooling and reshapes let a positive factor pass. All links
    are swept in turn until no factor moves by more than `tolerance` (chains and depthwise triples settle that way).

    clip:       Clip(0, hi), which is Relu6: "keep" it, and no scale passes; "clip" each channel at hi / s_i (exact; a
                Min with a constant); "relu": drop the limit, as the paper does (the function changes where it acted).
    strength:   the share of log s that is applied. With 1 the weights' ranges are equal; with less the activations keep
                more of their own balance, which Relu6 gives them (every channel ends at 6).
    limit:      s stays within [1/limit, limit]: a dead channel must not blow up its bias.
    iterations: at most so many sweeps.
    """

    name: ClassVar[str] = "equalize"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)

    clip: str = "clip"
    strength: float = 1.0
    limit: float = 32.0
    tolerance: float = 1e-3
    iterations: int = 40

    def __post_init__(self) -> None:
        if self.clip not in CLIPS:
            raise QuantizationError(f"clip={self.clip!r}", hint=f"one of {', '.join(CLIPS)}")
        if not self.limit >= 1 or self.iterations < 1 or not 0 < self.strength <= 1:
            raise QuantizationError("limit must be 1 or more, strength in (0, 1], and at least one iteration made")

    def run(self, graph: Graph) -> PassReport:
        """Rescale the weights of every chain."""
        report = self.report()
        links = find_links(graph, report, rule=self.name, clips=self.clip != "keep")
        total = [np.ones(link.first.outputs) for link in links]
        sweeps, moved = 0, np.inf
        while moved > self.tolerance and sweeps < self.iterations and links:
            moved = max([self._sweep(link, total, i) for i, link in enumerate(links)])
            sweeps += 1
        for link, full in zip(links, total, strict=True):
            s = full**self.strength
            if self.strength < 1:
                self._scale(link, s / full)
            self._finish(graph, link, s)
            report.rewrote(self.name, link.first.node.name)
        for layer in dict.fromkeys(layer for link in links for layer in (link.first, link.second)):
            layer.write(graph)
        if links:
            report.note(f"{len(links)} pairs, {sweeps} sweeps, last factor within {moved:.1e} of 1")
        graph.prune()
        return report

    def _sweep(self, link: Link, total: list[Floats], i: int) -> float:
        """One pair; returns the largest |log s|."""
        r1 = link.first.output_range()
        r2 = link.second.input_range().reshape(-1, link.repeat).max(axis=1)
        live = (r1 > 0) & (r2 > 0)
        s = np.sqrt(np.divide(r1, r2, out=np.ones_like(r1), where=live))
        s = np.clip(total[i] * s, 1 / self.limit, self.limit) / total[i]
        self._scale(link, s)
        total[i] = total[i] * s
        return float(np.abs(np.log(s)).max(initial=0))

    @staticmethod
    def _scale(link: Link, s: Floats) -> None:
        link.first.scale_outputs(1 / s)
        link.second.scale_inputs(link.spread(s))

    def _finish(self, graph: Graph, link: Link, s: Floats) -> None:
        """Statistics of the first layer's output, and the limits on the way, follow the scale."""
        table = graph.tables.get(BATCH_NORM_TABLE, {})
        name = link.first.node.output.name
        if name in table:
            beta, gamma = table[name]
            table[name] = (beta / s, gamma / s)
        for node in link.path:
            if node.op == "Clip":
                self._limit(graph, node, s)

    def _limit(self, graph: Graph, node: Node, s: Floats) -> None:
        hi = clip_limit(node)
        assert hi is not None
        x, old = node.input(0), node.output
        if self.clip == "relu":
            new = graph.add_node("Relu", [x], outputs=[f"{old.name}.relu"], name=f"{node.name}.relu").output
        else:
            limit = graph.add_constant(f"{old.name}.hi", by_channel(hi / s, x.type.rank).astype(x.dtype.numpy))
            relu = graph.add_node("Relu", [x], outputs=[f"{old.name}.relu"], name=f"{node.name}.relu").output
            new = graph.add_node("Min", [relu, limit], outputs=[f"{old.name}.min"], name=f"{node.name}.min").output
        graph.replace_uses(old, new)
        graph.swap_names(old, new)
        graph.remove_node(node)
