"""Calibration: one pass, any executor, the same bits; data-free moments; bias correction."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from qir.errors import DataError, QuantizationError
from qir.graph import Graph, Stage, Value
from qir.passes.calibration.collect import calibrate, collect, ranges_from
from qir.passes.calibration.correct_bias import CorrectBias, analytic_means, empirical_means
from qir.passes.calibration.data import batches
from qir.passes.calibration.data_free import (
    BATCH_NORM_TABLE,
    analytic_moments,
    clipped_normal,
    data_free_ranges,
)
from qir.passes.calibration.observers import Statistics
from qir.passes.calibration.range_methods import METHODS
from qir.passes.quantization.insert_qdq import InsertQdq
from qir.runtime import Session
from qir.types import DType, TensorType


def net() -> Graph:
    """conv - relu - depthwise conv - relu - {conv, identity} - add - relu - pool."""
    rng = np.random.default_rng(11)
    g = Graph("net", Stage.FOLDED)
    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 3, 8, 8)))

    def conv(x: Value, name: str, m: int, k: int, group: int = 1) -> Value:
        c = int(x.shape[1])
        w = rng.normal(size=(m, c // group, k, k)) / np.sqrt(c // group * k * k)
        w = (w * rng.uniform(0.5, 3, size=(m, 1, 1, 1))).astype(np.float32)
        inputs = [x, g.add_constant(f"{name}.w", w), g.add_constant(f"{name}.b", rng.normal(size=m).astype(np.float32))]
        return g.add_node("Conv", inputs, {"group": group, "pads": [k // 2] * 4}, outputs=[name]).output

    def relu(x: Value) -> Value:
        return g.add_node("Relu", [x], outputs=[f"{x.name}.relu"]).output

    a = relu(conv(x, "a", 8, 1))
    b = relu(conv(a, "b", 8, 3, group=8))
    total = relu(g.add_node("Add", [conv(b, "c", 8, 1), a], outputs=["sum"]).output)
    y = conv(g.add_node("GlobalAveragePool", [total], outputs=["pool"]).output, "y", 5, 1)
    g.set_outputs([y])
    return g


G = net()
X = np.random.default_rng(12).normal(0.2, 1, size=(24, 3, 8, 8)).astype(np.float32)


def feeds(size: int = 4) -> Iterator[dict[str, np.ndarray]]:
    return iter(batches(X, G, batch_size=size))


def same(a: Statistics, b: Statistics) -> None:
    """Equal to the bit."""
    assert list(a) == list(b) and a.samples == b.samples
    for name, t in a.items():
        u = b[name]
        assert (t.lo, t.hi, t.ema_lo, t.ema_hi, t.count) == (u.lo, u.hi, u.ema_lo, u.ema_hi, u.count)
        assert (t.histogram.counts == u.histogram.counts).all()
        assert (t.channel_sum == u.channel_sum).all() and (t.channel_squares == u.channel_squares).all()
        assert (t.rows == u.rows).all()


def test_extremes_are_those_of_the_data() -> None:
    seen = collect(G, feeds())
    values = Session(G, "onnxruntime").run({"x": X}, outputs=list(seen))
    for name, value in values.items():
        assert seen[name].lo == pytest.approx(value.min(), rel=1e-6, abs=1e-6)
        assert seen[name].hi == pytest.approx(value.max(), rel=1e-6)
        assert np.allclose(seen[name].channel_mean, value.mean(axis=(0, 2, 3)), atol=1e-4)
    assert seen.samples == 24


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_executors_give_the_same_bits(pool: type[Executor]) -> None:
    options = {"mp_context": get_context("spawn")} if pool is ProcessPoolExecutor else {}
    with pool(2, **options) as executor:  # type: ignore[call-arg]
        same(collect(G, feeds(), threads=1), collect(G, feeds(), executor=executor))


def test_dask_gives_the_same_bits() -> None:
    distributed = pytest.importorskip("dask.distributed", reason="dask.distributed is not installed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        same(collect(G, feeds(), threads=1), collect(G, feeds(), executor=client.get_executor()))


def test_batch_size_changes_nothing_but_rounding() -> None:
    one, other = collect(G, feeds(3)), collect(G, feeds(24))
    for name in one:
        assert one[name].hi == pytest.approx(other[name].hi, rel=1e-5)
        assert one[name].mean == pytest.approx(other[name].mean, rel=1e-3, abs=1e-5)


def test_samples_and_progress() -> None:
    told: list[int] = []
    assert collect(G, feeds(5), samples=12, progress=told.append).samples == 12
    assert told == [5, 10, 12]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_from_one_pass(method: str) -> None:
    ranges = ranges_from(SEEN, method, bits=(4, 8))
    assert set(ranges) == {"x", "a.relu", "b.relu", "c", "sum.relu", "pool", "y"}
    assert dict(ranges) == dict(calibrate(G, feeds(), method=method, bits=(4, 8)))
    result, _ = InsertQdq(ranges).apply(G)
    want = Session(G, "onnxruntime").run({"x": X})["y"]
    got = Session(result, "onnxruntime").run({"x": X})["y"]
    assert 10 * np.log10(np.square(want).sum() / np.square(want - got).sum()) > 14


SEEN = collect(G, feeds())


def test_errors() -> None:
    with pytest.raises(DataError, match="no calibration data"):
        calibrate(G, [])
    with pytest.raises(DataError, match="mapping"):
        calibrate(G, [X])  # type: ignore[list-item]
    with pytest.raises(DataError, match="float32"):
        calibrate(G, [{"x": X.astype(np.int64)}])
    with pytest.raises(QuantizationError, match="no range method"):
        calibrate(G, feeds(), method="best")


# -- without data ---------------------------------------------------------------------------------
@pytest.mark.parametrize(("lo", "hi"), [(0.0, np.inf), (0.0, 6.0), (-1.0, 1.0), (-np.inf, 2.0), (-np.inf, np.inf)])
def test_clipped_normal_against_sampling(lo: float, hi: float) -> None:
    rng = np.random.default_rng(3)
    mean, std = rng.normal(size=9) * 3, rng.uniform(0.1, 4, size=9)
    x = np.clip(rng.normal(mean, std, size=(400_000, 9)), lo, hi)
    got = clipped_normal(mean, std, lo, hi)
    assert np.allclose(got[0], x.mean(0), atol=0.03)
    assert np.allclose(got[1], x.std(0), atol=0.03)


def test_moments_of_independent_inputs() -> None:
    """Uncorrelated normal inputs are what the formulas assume: their means and deviations must come out."""
    g = net()
    x = np.random.default_rng(8).normal(size=(4000, 3, 8, 8)).astype(np.float32)
    found = analytic_moments(g)
    seen = collect(g, batches(x, g, batch_size=500), names=["a", "a.relu"])
    for name in seen:
        assert np.allclose(found[name].mean, seen[name].channel_mean, atol=0.05)
        assert np.allclose(found[name].std, seen[name].channel_std, atol=0.05)
    assert set(found) == {v.name for v in g.values if not v.is_constant}


def test_batch_norm_statistics_come_first() -> None:
    g = net()
    beta, gamma = np.arange(8.0), -np.ones(8)
    g.tables[BATCH_NORM_TABLE] = {"a": (beta, gamma)}
    found = analytic_moments(g)
    assert (found["a"].mean == beta).all() and (found["a"].std == 1).all()
    ranges = data_free_ranges(g, input_ranges={"x": (-2, 2)})
    assert ranges["a.relu"] == (0.0, pytest.approx(7 + 6, abs=0.1))
    assert ranges["x"] == (-2, 2)
    assert calibrate(g, None, method="bn")["a.relu"] == ranges["a.relu"]


def test_operators_without_a_formula_still_have_moments() -> None:
    g = Graph("odd", Stage.FOLDED)
    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 4, 6, 6)))
    s = g.add_node("Sigmoid", [x], outputs=["s"]).output
    p = g.add_node("MaxPool", [s], {"kernel_shape": [2, 2], "strides": [2, 2]}, outputs=["p"]).output
    f = g.add_node("Flatten", [p], outputs=["f"]).output
    g.set_outputs([f, g.add_node("Concat", [x, s], {"axis": 1}, outputs=["c"]).output])
    found = analytic_moments(g)
    assert np.allclose(found["s"].mean, 0.5, atol=1e-3)
    assert found["f"].mean.shape == (36,)
    assert np.allclose(found["c"].mean, [0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5], atol=1e-3)
    assert 0.95 < found["s"].interval(6.0)[1] <= 1


# -- bias correction ------------------------------------------------------------------------------
def shift(qdq: Graph, x: np.ndarray) -> float:
    want = Session(G, "onnxruntime").run({"x": x})["y"]
    got = Session(qdq, "onnxruntime").run({"x": x})["y"]
    return float(np.abs((got - want).mean(axis=(0, 2, 3))).max())


def test_empirical_correction_removes_the_shift() -> None:
    qdq, _ = InsertQdq(ranges_from(SEEN), weight_bits=4, first_last_bits=4, per_channel=False).apply(G)
    corrected, report = CorrectBias(G, empirical_means(SEEN)).apply(qdq)
    assert report["correct_bias"].count == 4
    fresh = np.random.default_rng(99).normal(0.2, 1, size=(64, 3, 8, 8)).astype(np.float32)
    for x in (X, fresh):
        assert shift(corrected, x) < 0.5 * shift(qdq, x)


def test_correction_is_exact_for_one_layer() -> None:
    """E over constant inputs: the corrected layer's mean output is the float layer's  [White Paper eq. 26]."""
    means = {"x": np.asarray([0.5, -1.0, 2.0])}
    qdq, _ = InsertQdq(ranges_from(SEEN), weight_bits=4, first_last_bits=4).apply(G)
    corrected, _ = CorrectBias(G, means).apply(qdq)
    x = np.broadcast_to(means["x"].reshape(1, 3, 1, 1), (1, 3, 8, 8)).astype(np.float32)
    want = Session(G, "onnxruntime").run({"x": x}, outputs=["a"])["a"]
    q = SEEN["x"]
    got = Session(corrected, "onnxruntime").run({"x": x}, outputs=["a"])["a"]
    step = (q.hi - q.lo) / 255  # what remains is the rounding of x itself
    assert np.abs(got - want).max() < 3 * step


def test_analytic_correction_helps() -> None:
    x = np.random.default_rng(5).normal(size=(256, 3, 8, 8)).astype(np.float32)
    ranges = calibrate(G, iter(batches(x, G, batch_size=64)))
    qdq, _ = InsertQdq(ranges, weight_bits=4, first_last_bits=4, per_channel=False).apply(G)
    corrected, _ = CorrectBias(G, analytic_means(G)).apply(qdq)
    assert shift(corrected, x) < shift(qdq, x)


def test_unknown_means_are_reported() -> None:
    qdq, _ = InsertQdq(ranges_from(SEEN)).apply(G)
    same_graph, report = CorrectBias(G, {"x": np.zeros(7)}).apply(qdq)
    assert len(report["correct_bias"].misses) == 4
    assert "7 channels" in report["correct_bias"].misses[0].reason
    assert str(same_graph) == str(qdq)
