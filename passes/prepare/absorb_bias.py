"""AbsorbBias: what is always there in a layer's output moves into the next layer's bias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from qir.graph import Graph, Node, Stage
from qir.running import session
from qir.types import Array

from ..calibration.data_free import BATCH_NORM_TABLE
from ..channel_math import unpadded
from ..layers import MOVES_CONSTANTS, Floats, Link, find_links
from ..manager import Pass
from ..report import PassReport

Minima = Mapping[str, Sequence[float]]
"""Tensor name -> the least value seen in each channel."""


@dataclass(frozen=True)
class AbsorbBias(Pass):
    """b1 - c, b2 + W2 c  for  y = W2 relu(W1 x + b1) + b2                                       [White Paper 23-24]

    c_i = max(0, min_x (W1 x + b1)_i) over calibration data where `minima` has the tensor (exact on those data), else
    c_i = max(0, beta_i - 3 |gamma_i|) from the batch norm that was folded (exact for 99.87 % of a normal
    distribution).

    minima:     least values of the layers' outputs, of each channel (`channel_minima` finds them).
    deviations: 3 in the paper.
    padded:     also where the second layer pads: then W2 c is added at the border too, where padded zeros take no part
                in it, an error at border pixels only. The zeros' true value, -c, is below the grid of a Relu's output.
    """

    name: ClassVar[str] = "absorb_bias"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FOLDED,)

    minima: Minima | None = None
    deviations: float = 3.0
    padded: bool = False

    def run(self, graph: Graph) -> PassReport:
        """Move what can be moved; every link that cannot is a near miss."""
        report = self.report()
        changed: dict[int, Any] = {}
        for link in find_links(graph, report, rule=self.name):
            reason = self._obstacle(link)
            if reason is not None:
                report.missed(self.name, link.first.node.name, reason)
                continue
            c = self._constant(graph, link)
            if c is None:
                why = "neither batch-norm statistics nor minima are known for its output"
                report.missed(self.name, link.first.node.name, why)
                continue
            if not c.any():
                continue
            link.first.add_bias(-c)
            link.second.add_bias(link.second.response(link.spread(c)))
            changed |= {id(link.first): link.first, id(link.second): link.second}
            self._record(graph, link, c)
            report.rewrote(self.name, link.first.node.name)
            report.note(f"{link.first.node.name}: {int((c > 0).sum())} channels, up to {c.max():.3g}")
        for layer in changed.values():
            layer.write(graph)
        graph.prune()
        return report

    def _obstacle(self, link: Link) -> str | None:
        if not any(n.op == "Relu" for n in link.path):
            return "no Relu between the layers"
        for node in link.path:
            if node.op not in MOVES_CONSTANTS and not _plain_average(node):
                return f"{node} does not let a constant pass"
        second = link.second.node
        # policy: layers whose response to a constant `Layer.response` computes
        if second.op not in ("Conv", "Gemm"):
            return f"{second} has no bias, or pads by its nature"
        if second.op == "Conv" and not unpadded(second.attrs) and not self.padded:
            return f"{second} pads with zeros, which stand for something else then"
        return None

    def _constant(self, graph: Graph, link: Link) -> Floats | None:
        name = link.first.node.output.name
        if self.minima is not None and name in self.minima:
            least = np.asarray(self.minima[name], np.float64)
            return np.maximum(0.0, np.broadcast_to(least, (link.first.outputs,)))
        table = graph.tables.get(BATCH_NORM_TABLE, {})
        if name not in table:
            return None
        beta, gamma = (np.asarray(v, np.float64) for v in table[name])
        return np.maximum(0.0, beta - self.deviations * np.abs(gamma))

    @staticmethod
    def _record(graph: Graph, link: Link, c: Floats) -> None:
        """beta of the first layer's output follows."""
        table = graph.tables.get(BATCH_NORM_TABLE, {})
        name = link.first.node.output.name
        if name in table:
            beta, gamma = table[name]
            table[name] = (beta - c, gamma)


def _plain_average(node: Node) -> bool:
    """An AveragePool that counts no padding."""
    return node.op == "AveragePool" and (unpadded(node.attrs) or not node.attrs["count_include_pad"])


def channel_minima(
    graph: Graph, batches: Iterable[Mapping[str, Array]], *, backend: str = "onnxruntime"
) -> dict[str, list[float]]:
    """Least value of each output channel of every layer that a link starts from, over all batches (one at a time).

    Run it on the graph that AbsorbBias is to change, that is after Equalize.
    """
    links = find_links(graph, PassReport("channel_minima"), rule="channel_minima")
    names = [link.first.node.output.name for link in links]
    running, least = session(graph, backend), dict[str, Floats]()
    for feeds in batches:
        for name, array in running.run(dict(feeds), outputs=names).items():
            low = array.min(axis=tuple(i for i in range(array.ndim) if i != 1)).astype(np.float64)
            least[name] = np.minimum(least[name], low) if name in least else low
    return {name: low.tolist() for name, low in least.items()}
