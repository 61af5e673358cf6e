"""Simplify and StripSoftmax: the graph an exporter should have written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qir.graph import Graph, Node, Stage, Value
from qir.ops import op_of
from qir.shapes import fold_shapes

from .activation_rules import ACTIVATION_RULES
from .affine_rules import AFFINE_RULES
from .base import Pass
from .cleanup_rules import CLEANUP_RULES
from .layout_rules import LAYOUT_RULES
from .report import PassReport
from .rewriter import replace, rewrite, sweep
from .rules import Rule

RULES: tuple[type[Rule], ...] = (*CLEANUP_RULES, *ACTIVATION_RULES, *AFFINE_RULES)


@dataclass(frozen=True)
class Simplify(Pass):
    """Constants and shape computations folded; identities, dropouts and no-op movement dropped; Pads, constant factors
    and offsets into the layers next to them; Relu6, SiLU, GELU, HardSwish recognised; Transposes of NHWC exports
    moved until they cancel; dead code removed. Every rule is an equation of its own (see passes/*_rules.py).

    layout: whether Transposes are moved.
    """

    name: ClassVar[str] = "simplify"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT, Stage.FOLDED, Stage.QDQ)

    layout: bool = True

    def run(self, graph: Graph) -> PassReport:
        """Rewrite in place; linear in the nodes."""
        report = self.report()
        graph.prune()
        folded = fold_shapes(graph)
        if folded:
            report.note(f"{folded} nodes folded into constants")
        split_sums(graph, report)
        rewrite(graph, RULES, report)
        if self.layout and any(n.op == "Transpose" for n in graph.nodes):
            rewrite(graph, (*RULES, *LAYOUT_RULES), report)
        graph.prune()
        return report


def split_sums(graph: Graph, report: PassReport) -> None:
    """Sum(a, b, c, ...) = ((a + b) + c) + ..."""
    for node in graph.nodes:
        if node.op != "Sum":
            continue
        values = [v for v in node.inputs if v is not None]
        total, old = values[0], node.output
        for i, value in enumerate(values[1:]):
            last = i == len(values) - 2
            label = node.name if not last else f"{node.name}.sum"
            total = graph.add_node("Add", [total, value], outputs=[f"{old.name}.sum"], name=label).output
        if replace(graph, old, total, fresh=len(values) > 1):
            sweep(graph, [node])
            report.rewrote("SumToAdds", node.name)


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
        return report


def final_softmax(output: Value) -> Node | None:
    """The Softmax that makes an output."""
    node = output.producer
    return node if node is not None and node.op in ("Softmax", "LogSoftmax") and op_of(node.op) else None
