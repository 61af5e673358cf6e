"""Simplify: the graph an exporter should have written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qir.graph import Graph, Stage
from qir.shapes import fold_shapes

from ..manager import Pass
from ..report import PassReport
from ..rewriting.rewriter import replace, rewrite, sweep
from ..rewriting.rules import Rule
from .activation_rules import ACTIVATION_RULES, GateOfSix
from .affine_rules import AFFINE_RULES, DivToMul, SubToAdd
from .cleanup_rules import CLEANUP_RULES
from .clip_rules import CLIP_RULES
from .layout_rules import LAYOUT_RULES
from .normalization_rules import NORMALIZATION_RULES
from .pad_rules import PAD_RULES
from .resize_matrices import resizes_to_products

RECOGNITION: tuple[type[Rule], ...] = (
    *CLEANUP_RULES, *PAD_RULES, *NORMALIZATION_RULES, *ACTIVATION_RULES, *CLIP_RULES, SubToAdd, DivToMul,
)  # fmt: skip
"""Applied first: the constants that spell an activation must not be folded into a layer before it is recognised."""

RULES: tuple[type[Rule], ...] = (*RECOGNITION, GateOfSix, *AFFINE_RULES)


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
        resizes_to_products(graph, report)
        rewrite(graph, RECOGNITION, report)
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
