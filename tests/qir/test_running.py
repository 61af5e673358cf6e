"""Passes run graphs with the runner they are handed."""

from __future__ import annotations

from typing import Any

import numpy as np

import qir
from qir import running
from qir.passes.calibration.collect import collect
from qir.runtime import Session


def small() -> qir.Graph:
    g = qir.Graph("small")
    x = g.add_input("x", qir.TensorType(qir.DType.FLOAT32, ("N", 3)))
    g.set_outputs([g.add_node("Relu", [x], outputs=["y"]).output])
    return g


def test_calibration_uses_the_runner_handed_in() -> None:
    asked: list[str | None] = []

    def runner(graph: qir.Graph, backend: str | None = None, **options: Any) -> running.RunningGraph:
        asked.append(backend)
        return Session(graph, "reference")

    feeds = [{"x": np.asarray([[1.0, -2.0, 3.0]], np.float32)}]
    with running.using(runner):
        mine = collect(small(), feeds)
    assert asked == ["onnxruntime"]
    assert collect(small(), feeds)["y"].hi == mine["y"].hi == 3.0
    assert asked == ["onnxruntime"]
