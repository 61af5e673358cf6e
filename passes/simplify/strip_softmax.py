"""StripSoftmax: logits instead of probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qir.graph import Graph, Node, Stage, Value

from ..manager import Pass
from ..report import PassReport
from ..rewriting.rewriter import replace, sweep


@dataclass(frozen=True)
class StripSoftmax(Pass):
    """A final Softmax or LogSoftmax is dropped: the graph gives logits, whose order is the same.

    The output keeps its name.
    """

    name: ClassVar[str] = "strip_softmax"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT, Stage.FOLDED)

    def run(self, graph: Graph) -> PassReport:
        """Outputs that no Softmax makes stay as they are."""
        report = self.report()
        for output in graph.outputs:
            node = final_softmax(output)
            if node is None:
                report.missed(self.name, output.name, "is not made by a Softmax")
                continue
            if output.use_count:
                report.missed(self.name, node.name, f"{output.name!r} is used inside the graph too")
                continue
            x = node.input(0)
            if (x.shape, x.dtype) != (output.shape, output.dtype) or not replace(graph, output, x, fresh=False):
                report.missed(self.name, node.name, f"its input {x.name!r} cannot take the output's place")
                continue
            report.rewrote(self.name, node.name)
            sweep(graph, [node])
        graph.prune()
        if not report.rewrites:
            report.note("no Softmax was stripped: " + "; ".join(f"{m.node}: {m.reason}" for m in report.misses))
        return report


def final_softmax(output: Value) -> Node | None:
    """The Softmax that makes an output."""
    node = output.producer
    return node if node is not None and node.op in ("Softmax", "LogSoftmax") else None
