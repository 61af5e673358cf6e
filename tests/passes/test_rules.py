"""Every registered rule: both sides on random instances, through the reference, against the rule's claim."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from qir.graph import Graph, Stage, Value
from qir.passes.prepare.fold_batchnorm import FoldBatchNorm
from qir.passes.report import PassReport
from qir.passes.rewriting.rewriter import rewrite
from qir.passes.rewriting.rules import RULES, CompiledRule, Example, compile_rule
from qir.passes.rewriting.terms import Apply, Variable
from qir.passes.simplify.tidy import RULES as SIMPLIFY_RULES
from qir.runtime import Session
from qir.types import DType, TensorType
from qir.verify import verify

INSTANCES = 12


def instance(compiled: CompiledRule, pattern: Apply, example: Example) -> Graph:
    """A graph that is the left-hand side on the example's values."""
    graph = Graph("instance", Stage.FLOAT)
    made: dict[str, Value | None] = {}

    def variable(name: str) -> Value | None:
        if name not in made:
            data = example.values[name]
            if data is None:
                made[name] = None
            elif compiled.parameters[name].kind != "value":
                made[name] = graph.add_constant(name, np.asarray(data))
            else:
                array = np.asarray(data)
                shape: tuple[Any, ...] = array.shape
                if name in example.batch and array.ndim:
                    shape = ("N", *shape[1:])
                made[name] = graph.add_input(name, TensorType(DType.of(array), shape))
        return made[name]

    def build(term: Any) -> Value | None:
        if isinstance(term, Variable):
            return variable(term.name)
        if isinstance(term, Apply):
            inputs = [build(a) for a in term.args]
            while inputs and inputs[-1] is None:
                inputs.pop()
            attrs = {**example.attrs.get(term.op, {}), **term.attrs}
            return graph.add_node(term.op, inputs, attrs).output
        return None if term is None else graph.add_constant("literal", np.asarray(term, np.float32))

    result = build(pattern)
    assert result is not None
    graph.rename(result, "result")
    after = graph.add_node("Neg", [result], outputs=["negated"])
    graph.set_outputs([after.output])  # not the result itself: an input may become it
    return graph


def feeds_of(graph: Graph, values: Mapping[str, Any]) -> dict[str, Any]:
    return {v.name: np.asarray(values[v.name]) for v in graph.inputs}


CASES = [(name, i) for name in sorted(RULES) for i in range(len(compile_rule(RULES[name]).patterns))]


@pytest.mark.parametrize(("name", "spelling"), CASES, ids=[f"{n}-{i}" for n, i in CASES])
def test_both_sides_agree(name: str, spelling: int) -> None:
    """lhs == rhs within the claim; the graph stays valid."""
    compiled = compile_rule(RULES[name])
    for k in range(INSTANCES):
        seed = zlib.crc32(f"{name}/{spelling}/{k}".encode())
        print(f"rule {name} spelling {spelling} seed {seed}")
        example = compiled.rule.example(np.random.default_rng(seed))
        graph = instance(compiled, compiled.patterns[spelling], example)
        feeds = feeds_of(graph, example.values)
        expected = Session(graph, "reference").run(feeds)["negated"]
        after = graph.clone()
        report = PassReport("test")
        assert rewrite(after, [compiled.rule], report) >= 1, report.text()
        verify(after)
        got = Session(after, "reference").run(feeds)["negated"]
        error = compiled.rule.claim.error(expected, got)
        assert error is None, f"{name}: {error} (seed {seed})"


def test_rules_are_documented() -> None:
    """Every rule states its equation."""
    assert set(RULES.values()) >= {*SIMPLIFY_RULES, *FoldBatchNorm.AFTER, *FoldBatchNorm.BEFORE}
    for cls in RULES.values():
        assert cls.__doc__ and "=" in cls.__doc__, cls.__name__
