"""Hutchinson and Fisher traces against exact second derivatives; the measures agree on which layer matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qir.errors import DataError, ParseError, QuantizationError
from qir.graph import Graph
from qir.passes.gradients.hessian import fisher_traces, hessian_traces, softmax
from qir.passes.gradients.tape import Tape
from qir.passes.mixed_precision.sensitivity import MEASURES, Sensitivity, measure_sensitivity
from qir.passes.quantization.ranges import Ranges
from qir.types import Array, DType, TensorType

WEIGHTS = ("conv.w", "fc.w")


def network(seed: int, loud: float = 1.0) -> Graph:
    """Conv -> Tanh -> GlobalAveragePool -> Gemm, small enough for its exact Hessian."""
    rng = np.random.default_rng(seed)
    g = Graph()
    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 2, 4, 4)))
    w = g.add_constant("conv.w", rng.standard_normal((4, 2, 2, 2)).astype(np.float32))
    fc = g.add_constant("fc.w", (loud * rng.standard_normal((3, 4))).astype(np.float32))
    h = g.add_node("Conv", [x, w], outputs=["h"], name="conv").output
    t = g.add_node("Tanh", [h], outputs=["t"]).output
    p = g.add_node("GlobalAveragePool", [t], outputs=["p"]).output
    f = g.add_node("Flatten", [p], outputs=["f"]).output
    g.set_outputs([g.add_node("Gemm", [f, fc], {"transB": 1}, outputs=["y"], name="fc").output])
    return g


def exact(graph: Graph, x: Array, labels: Array | None) -> dict[str, float]:
    """Traces of the Hessian's diagonal blocks, one parameter after the other."""
    tape = Tape(graph, np.float64)
    y = tape.forward({"x": x})["y"]
    targets = softmax(y) if labels is None else np.eye(3)[labels]
    found: dict[str, float] = {}
    for name in WEIGHTS:
        w, total = graph.value(name).array().astype(np.float64), 0.0
        for i in range(w.size):
            ends: list[float] = []
            for sign in (1, -1):
                moved = w.copy()
                moved.reshape(-1)[i] += sign * 1e-5
                y = tape.forward({"x": x}, {name: moved})["y"]
                ends.append(float(tape.backward({"y": (softmax(y) - targets) / len(x)}, [name])[name].reshape(-1)[i]))
            total += (ends[0] - ends[1]) / 2e-5
        found[name] = total
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_labels", [True, False])
def test_hutchinson_agrees_with_the_exact_hessian(seed: int, with_labels: bool) -> None:
    rng = np.random.default_rng(100 + seed)
    graph, x = network(seed), rng.standard_normal((6, 2, 4, 4)).astype(np.float32)
    labels = rng.integers(0, 3, 6) if with_labels else None
    truth = exact(graph, x, labels)
    found = hessian_traces(
        graph, [{"x": x}], WEIGHTS, labels=None if labels is None else [labels], probes=200, seed=seed
    )
    for name in WEIGHTS:
        assert abs(found[name].trace - truth[name]) < 3.5 * found[name].error, f"seed {seed}"
        assert found[name].size == graph.value(name).array().size


@pytest.mark.parametrize("seed", range(3))
def test_the_fisher_trace_is_the_hessian_at_the_networks_own_predictions(seed: int) -> None:
    graph = network(seed)
    x = np.random.default_rng(200 + seed).standard_normal((6, 2, 4, 4)).astype(np.float32)
    truth = exact(graph, x, None)
    found = fisher_traces(graph, [{"x": x}], [*WEIGHTS, "t"], probes=800, seed=seed)
    for name in WEIGHTS:
        assert abs(found[name].trace - truth[name]) < 3.5 * found[name].error, f"seed {seed}"
        assert found[name].error < 0.15 * truth[name]
    assert found["t"].size == 4 * 3 * 3


def test_the_mse_loss_has_the_jacobians_norm() -> None:
    graph = network(4)
    x = np.random.default_rng(4).standard_normal((2, 2, 4, 4)).astype(np.float32)
    tape = Tape(graph, np.float64)
    tape.forward({"x": x})
    total = 0.0
    for i in range(2):
        for j in range(3):
            seed = np.zeros((2, 3))
            seed[i, j] = 1
            total += float((tape.backward({"y": seed}, ["conv.w"])["conv.w"] ** 2).sum()) / 2
    for estimate in (fisher_traces, hessian_traces):
        found = estimate(graph, [{"x": x}], ["conv.w"], loss="mse", probes=500)["conv.w"]
        assert abs(found.trace - total) < 3.5 * found.error


def measured(measure: str, loud: float = 1.0) -> Sensitivity:
    graph = network(5, loud)
    rng = np.random.default_rng(5)
    feeds = [{"x": rng.standard_normal((16, 2, 4, 4)).astype(np.float32)} for _ in range(2)]
    ranges = Ranges.of({"x": (-4, 4), "f": (-1, 1)})
    return measure_sensitivity(graph, feeds, ranges, measure=measure, probes=20)


@pytest.mark.parametrize("measure", MEASURES)
def test_more_bits_disturb_less(measure: str) -> None:
    found = measured(measure)
    assert set(found.layers) == {"conv", "fc"}
    for row in found.layers.values():
        assert row[4, 4] > row[4, 8] > row[8, 8] > 0


def test_results_are_saved_and_loaded(tmp_path: Path) -> None:
    found = measured("fisher")
    found.save(tmp_path / "s.json")
    assert Sensitivity.load(tmp_path / "s.json") == found
    (tmp_path / "bad.json").write_text('{"format": "other"}')
    for name in ("bad.json", "none.json"):
        with pytest.raises(ParseError):
            Sensitivity.load(tmp_path / name)


def test_errors() -> None:
    graph = network(1)
    with pytest.raises(QuantizationError, match="no measure"):
        measure_sensitivity(graph, [], Ranges.of({}), measure="taste")
    with pytest.raises(DataError):
        measure_sensitivity(graph, [], Ranges.of({}))
    with pytest.raises(DataError):
        fisher_traces(graph, [], ["conv.w"])
    for choices in ((), ((4, 3),), ((8, 16),), ((2, 8),), ((8, 8), (8, 8))):
        with pytest.raises(QuantizationError, match=r"no choices|no layer can have"):
            measure_sensitivity(graph, [], Ranges.of({}), choices=choices)
    two = [{"x": np.zeros((3, 2, 4, 4), np.float32)}] * 2
    good = np.zeros(3, np.int64)
    for labels in ([good], [good, good[:2]], [good, good - 1], [good, good + 3], [good, good + 0.5]):
        with pytest.raises(DataError, match="labels"):
            hessian_traces(graph, two, ["conv.w"], labels=labels, probes=1)
    with pytest.raises(QuantizationError, match="no range"):
        measure_sensitivity(graph, [{"x": np.zeros((1, 2, 4, 4), np.float32)}], Ranges.of({}))
