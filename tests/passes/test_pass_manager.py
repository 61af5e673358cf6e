"""The pass manager's guard: order, stages, clones, verification, hooks; reports."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from qir.errors import GraphError, StageError, VerifyError
from qir.graph import Graph, Stage
from qir.passes.hooks import compare_numerically, dump_text
from qir.passes.manager import Pass, PassManager
from qir.passes.report import PassReport
from qir.passes.rewriting.rewriter import rewrite
from qir.passes.rewriting.rules import Example, Rule
from qir.passes.rewriting.terms import Neg, Relu
from qir.types import DType, TensorType


def graph_of(*ops: str, stage: Stage = Stage.FLOAT) -> Graph:
    graph = Graph("g", stage)
    value = graph.add_input("x", TensorType(DType.FLOAT32, ("N", 3)))
    for op in ops:
        value = graph.add_node(op, [value]).output
    graph.set_outputs([value])
    return graph


@dataclass(frozen=True)
class Fold(Pass):
    """Raises the stage."""

    name: ClassVar[str] = "fold"
    ensures: ClassVar[Stage] = Stage.FOLDED

    def run(self, graph: Graph) -> PassReport:
        return self.report()


@dataclass(frozen=True)
class Break(Pass):
    """Leaves a graph that is not valid, or fails half way."""

    name: ClassVar[str] = "break"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT, Stage.FOLDED)
    fail: bool = False

    def run(self, graph: Graph) -> PassReport:
        node = graph.nodes[0]
        if self.fail:
            graph.set_outputs([graph.inputs[0]])
            raise GraphError("half way", where=str(node))
        node.output.type = TensorType(DType.FLOAT32, ("N", 4))
        return self.report()


@dataclass(frozen=True)
class Negate(Pass):
    """Changes the numbers."""

    name: ClassVar[str] = "negate"

    def run(self, graph: Graph) -> PassReport:
        old = graph.outputs[0]
        new = graph.add_node("Neg", [old]).output
        graph.set_outputs([new])
        graph.swap_names(old, new)
        report = self.report()
        report.rewrote("negate", "x")
        report.missed("other", "y", "it is not so")
        report.missed("other", "y", "it is not so")
        return report


def test_a_wrong_order_is_found_before_anything_runs() -> None:
    """The whole pipeline is checked statically; the message says what to put where."""
    ran: list[str] = []
    manager = PassManager([Negate(), Fold(), Negate()], before=[lambda step, graph: ran.append(step.name)])
    with pytest.raises(StageError, match=r"pass negate: takes a graph of stage FLOAT.*fold gives is FOLDED"):
        manager.run(graph_of("Relu"))
    assert not ran
    assert PassManager([Negate(), Fold()]).check(Stage.FLOAT) is Stage.FOLDED


@pytest.mark.parametrize("fail", [False, True])
def test_a_failure_leaves_the_input_untouched(fail: bool) -> None:
    graph = graph_of("Relu", "Neg")
    text = str(graph)
    with pytest.raises(GraphError if fail else VerifyError):
        Break(fail).apply(graph)
    assert str(graph) == text


def test_report(caplog: pytest.LogCaptureFixture) -> None:
    """Counts before and after, rewrites, near misses once, text and JSON; a line in the log."""
    graph = graph_of("Relu")
    with caplog.at_level(logging.INFO, "qir.passes"):
        after, report = PassManager([Negate(), Fold()]).run(graph)
    assert after.stage is Stage.FOLDED and graph.stage is Stage.FLOAT and after is not graph
    one = report["negate"]
    assert one.before == {"Relu": 1} and one.after == {"Relu": 1, "Neg": 1} and one.count == 1 and len(one.misses) == 1
    assert "not other at y: it is not so" in str(report) and "Neg 0 -> 1" in str(report)
    assert json.loads(report.to_json())["passes"][0]["rewrites"] == {"negate": ["x"]}
    assert any("negate: 1 -> 2 nodes" in r.getMessage() for r in caplog.records)


def test_hooks(tmp_path: Path) -> None:
    """Text of every step in a folder; numbers before and after compared."""
    graph = graph_of("Relu")
    PassManager([Negate(), Fold()], after=[dump_text(tmp_path)]).run(graph)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.input.txt", "1.negate.txt", "2.fold.txt"]
    compare = compare_numerically({"x": np.ones((2, 3), np.float32)}, backend="reference")
    _, report = PassManager([Fold()], after=[compare]).run(graph)
    assert "differs by 0.00e+00" in report["fold"].notes[0]
    with pytest.raises(GraphError, match=r"pass negate: output .* changed by"):
        PassManager([Negate()], after=[compare]).run(graph)


class Grow(Rule):
    """neg(x) = neg(relu(x)), which is wrong, and never settles"""

    @staticmethod
    def lhs(x: Any) -> Any:
        return Neg(x)

    @staticmethod
    def rhs(x: Any) -> Any:
        return Neg(Relu(x))

    rhs.__annotations__["x"] = "Value"

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({"x": rng.normal(size=(2, 3)).astype(np.float32)})


def test_a_rule_that_does_not_settle_is_named() -> None:
    with pytest.raises(GraphError, match=r"rule Grow at Neg node 'neg.*': does not settle"):
        rewrite(graph_of("Neg"), [Grow], PassReport("test"))


def test_options_are_fields() -> None:
    assert Break(True).options == {"fail": True} and str(Break(True)) == "break(fail=True)"
