"""A rewrite of your own: two functions with one set of names, and a pass that applies it."""

from __future__ import annotations  # rules are read by their annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir import DType, Graph, TensorType, Value
from qir.passes import Pass, PassReport
from qir.passes.rewriting.rewriter import rewrite
from qir.passes.rewriting.rules import Exact, Rule
from qir.passes.rewriting.terms import Neg, Relu
from qir.runtime import Session


class DoubleNegation(Rule):
    """-(-x) = x"""

    claim = Exact()

    @staticmethod
    def lhs(x):
        return Neg(Neg(x))

    @staticmethod
    def rhs(x: Value):
        return x


class ReluTwice(Rule):
    """relu(relu(x)) = relu(x)"""

    claim = Exact()

    @staticmethod
    def lhs(x):
        return Relu(Relu(x))

    @staticmethod
    def rhs(x: Value):
        return Relu(x)


@dataclass(frozen=True)
class Tidy(Pass):
    """Both rules, until neither matches."""

    name: ClassVar[str] = "tidy"

    def run(self, graph: Graph) -> PassReport:
        report = self.report()
        rewrite(graph, [DoubleNegation, ReluTwice], report)
        graph.prune()
        return report


graph = Graph("example")
x = graph.add_input("x", TensorType(DType.FLOAT32, ("N", 4)))
y = x
for op in ("Relu", "Neg", "Neg", "Relu"):
    y = graph.add_node(op, [y]).output
graph.set_outputs([y])

tidy, report = Tidy().apply(graph)
print(graph, tidy, report, sep="\n\n")

data = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
before, after = (next(iter(Session(g).run(data).values())) for g in (graph, tidy))
assert np.array_equal(before, after) and len(tidy) == 1
