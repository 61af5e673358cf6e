"""Balance: cross-layer equalization with an eye on the activation between the layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.graph import Graph

from ..calibration.data_free import ChannelMoments, analytic_moments
from ..layers import Floats, Link, clip_limit, find_links
from ..report import PassReport
from .equalize import Equalize


@dataclass(frozen=True)
class Balance(Equalize):
    """W1 / s, b1 / s, W2 s  with  s_i = sqrt(a_i / r2_i),  a_i = max(r1_i, activations * rx_i)

    r1_i, r2_i: largest |w| of channel i in the layer before and after; rx_i: how far channel i of the activation
    between them reaches, |beta_i| + 3 |gamma_i| from batch-norm statistics, or moments carried through the weights, cut
    by Relu6's limit. Each is taken relative to the tensor's largest. [White Paper eq. 22] is the case activations = 0:
    it shrinks a channel of small weights until its activation, with the one scale that all channels share, is all
    that sets the grid. s_i is the geometric middle between the least factor that keeps channel i of W1 and of the
    activation within their tensors' ranges and the greatest that W2 allows. The constants were chosen on calibration
    images (benchmarks/choose_constants.md).
    """

    name: ClassVar[str] = "balance"

    iterations: int = 30
    activations: float = 0.5
    limit: float = 128.0
    damping: float = 0.7

    def run(self, graph: Graph) -> PassReport:
        """Rescale the weights of every chain."""
        report = self.report()
        links = find_links(graph, report, rule=self.name, clips=self.clip != "keep")
        moments = analytic_moments(graph) if links else {}
        reach = [self._reach(link, moments[link.first.node.output.name]) for link in links]
        total = [np.ones(link.first.outputs) for link in links]
        sweeps, moved = 0, np.inf
        while moved > self.tolerance and sweeps < self.iterations and links:
            moved = max([self._balance(link, total, i, reach[i]) for i, link in enumerate(links)])
            sweeps += 1
        for link, s in zip(links, total, strict=True):
            self._finish(graph, link, s)
            report.rewrote(self.name, link.first.node.name)
        for layer in dict.fromkeys(layer for link in links for layer in (link.first, link.second)):
            layer.write(graph)
        if links:
            report.note(f"{len(links)} pairs, {sweeps} sweeps, last factor within {moved:.1e} of 1")
        graph.prune()
        return report

    @staticmethod
    def _reach(link: Link, moments: ChannelMoments) -> Floats:
        """How far each channel of the activation reaches."""
        far = np.maximum(np.abs(moments.mean) + 3 * moments.std, 1e-12)
        for node in link.path:
            limit = clip_limit(node) if node.op == "Clip" else None
            far = far if limit is None else np.minimum(far, limit)
        return np.broadcast_to(far, (link.first.outputs,))

    def _balance(self, link: Link, total: list[Floats], i: int, reach: Floats) -> float:
        """One pair; returns the largest |log s|."""
        r1 = link.first.output_range()
        r2 = link.second.input_range().reshape(-1, link.repeat).max(axis=1)
        live = (r1 > 0) & (r2 > 0)
        if not live.any():
            return 0.0
        now = reach / total[i]
        need = np.maximum(r1 / r1.max(), self.activations * now / now.max())
        s = np.sqrt(np.divide(need, r2 / r2.max(), out=np.ones_like(r1), where=live))
        s = np.where(live, s / np.exp(np.log(s[live]).mean()), 1.0)  # a factor that all share changes nothing
        s = np.clip(total[i] * s**self.damping, 1 / self.limit, self.limit) / total[i]
        link.first.scale_outputs(1 / s)
        link.second.scale_inputs(link.spread(s))
        total[i] = total[i] * s
        return float(np.abs(np.log(s)).max(initial=0))
