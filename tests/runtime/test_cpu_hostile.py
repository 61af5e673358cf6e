"""Legal graphs that no exporter writes: found by mutating files, once errors of the planner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir.errors import TypeInferenceError
from qir.graph import Graph
from qir.runtime import Session


def same(graph: Graph, feeds: dict[str, Any]) -> None:
    wanted = Session(graph, "reference").run(feeds)
    for name, array in Session(graph, "cpu").run(feeds).items():
        np.testing.assert_array_equal(array, wanted[name])


@pytest.mark.parametrize(("starts", "ends", "steps"), [([1], [7], [1 << 62]), (1, 7, 2), ([0], [2**63 - 1], [3])])
def test_slices(two_convs: Any, starts: Any, ends: Any, steps: Any) -> None:
    graph: Graph = two_convs()
    x = graph.value("c1")
    inputs = [
        graph.add_constant(n, np.asarray(a)) for n, a in (("s", starts), ("e", ends), ("axes", [2]), ("t", steps))
    ]
    inputs[3:] = [graph.add_constant("steps", np.reshape(steps, -1))]
    graph.set_outputs([graph.add_node("Slice", [x, *inputs], outputs=["y"]).output])
    graph.prune()
    same(graph, {"x": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)})


def test_shifts_of_more_channels_than_multipliers(two_convs: Any) -> None:
    graph: Graph = two_convs()
    m, s = (
        graph.add_constant("one", np.asarray(1 << 30, np.int32)),
        graph.add_constant("many", np.full(8, 38, np.int32)),
    )
    attrs = {"lo": 0, "hi": 255, "dtype": "uint8"}
    with pytest.raises(TypeInferenceError, match=r"int32\[8\] does not broadcast to int32\[\]"):
        graph.add_node("qir.Requantize", [graph.value("c1.acc"), m, s], attrs)
