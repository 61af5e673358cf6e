"""Histograms, observers, range methods and ranges files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qir.errors import DataError, ParseError, QuantizationError
from qir.passes.calibration.histogram import Histogram, width_exponent
from qir.passes.calibration.observers import SAMPLE_LIMIT, Statistics, TensorStatistics
from qir.passes.calibration.range_methods import METHODS, RangeOptions, method_of
from qir.passes.quantization.grids import affine, symmetric
from qir.passes.quantization.ranges import Ranges
from qir.types import DType

FLOATS = st.floats(-1e6, 1e6, width=32)
SAMPLES = hnp.arrays(np.float32, st.tuples(st.integers(2, 9), st.integers(1, 12)), elements=FLOATS)


def seen(*parts: np.ndarray) -> TensorStatistics:
    total = TensorStatistics()
    for part in parts:
        one = TensorStatistics()
        one.update(part)
        total.merge(one)
    return total


@given(SAMPLES, st.integers(1, 8))
@example(np.asarray([[63.0], [-1.4e-45]], dtype=np.float32), 1)
@settings(max_examples=200, deadline=None)
def test_histogram_does_not_depend_on_the_split(x: np.ndarray, at: int) -> None:
    """The same counts for one update, for two, for a merge in either order."""
    at = min(at, len(x) - 1)
    histograms = [Histogram(64) for _ in range(4)]

    def add(h: Histogram, v: np.ndarray) -> None:
        h.add(v.reshape(-1), float(v.min()), float(v.max()))

    whole, two, left, right = histograms
    add(whole, x)
    add(two, x[:at])
    add(two, x[at:])
    add(left, x[:at])
    add(right, x[at:])
    right.merge(left)
    for h in (two, right):
        assert (h.lo, h.hi, h.exponent, h.first, h.zeros) == (
            whole.lo, whole.hi, whole.exponent, whole.first, whole.zeros,
        )  # fmt: skip
        assert (h.counts == whole.counts).all()
    assert whole.total == x.size
    assert len(whole.counts) <= 64


def test_histogram_against_numpy() -> None:
    x = np.random.default_rng(1).normal(2, 3, 100_000).astype(np.float32)
    x[::10] = 0
    h = Histogram()
    h.add(x, float(x.min()), float(x.max()))
    edges = (np.arange(len(h.counts) + 1) + h.first) * h.width
    want, _ = np.histogram(x[x != 0], bins=edges)
    assert (h.counts == want).all()
    assert h.zeros == 10_000
    for p in (0.001, 0.2, 0.5, 0.9, 0.9999):
        assert h.quantile(p) == pytest.approx(np.quantile(x, p), abs=2 * h.width)
    assert 1024 < len(h.counts) <= 2048


def test_histogram_of_a_constant_and_of_nothing() -> None:
    for value in (0.0, 3.0, -1e-30, 1e30):
        h = Histogram()
        x = np.full(7, value, np.float32)
        h.add(x, float(x.min()), float(x.max()))
        assert h.total == 7
        assert h.quantile(0.5) == pytest.approx(value, rel=1e-5)
    assert Histogram().quantile(0.5) == 0.0
    assert width_exponent(1000.0, 1000.0001, 16) >= 10 - 24


@given(SAMPLES, st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_observer_merges(x: np.ndarray, at: int) -> None:
    at = min(at, len(x) - 1)
    one, two = seen(x), seen(x[:at], x[at:])
    assert (one.lo, one.hi, one.count, one.samples) == (two.lo, two.hi, two.count, two.samples)
    assert (one.channel_lo == two.channel_lo).all() and (one.channel_hi == two.channel_hi).all()
    for a, b in ((one.mean, two.mean), (one.std, two.std), (one.ema_hi, two.ema_hi), (one.ema_lo, two.ema_lo)):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4 * (1 + abs(one.hi) + abs(one.lo)))


def test_observer_moments_and_channels() -> None:
    x = np.random.default_rng(2).normal(size=(6, 5, 4, 3)).astype(np.float32) * np.arange(1, 6).reshape(5, 1, 1)
    t = seen(x.astype(np.float32))
    assert np.allclose(t.channel_mean, x.mean(axis=(0, 2, 3)), atol=1e-5)
    assert np.allclose(t.channel_std, x.std(axis=(0, 2, 3)), rtol=1e-4)
    assert t.std == pytest.approx(x.std(), rel=1e-4)
    last = TensorStatistics(axis=-1)
    last.update(x)
    assert np.allclose(last.channel_mean, x.mean(axis=(0, 1, 2)), atol=1e-5)


def test_observer_samples_large_tensors_and_bounds_rows() -> None:
    big = np.ones((2, 3 * SAMPLE_LIMIT), np.float32)
    t = TensorStatistics(keep_rows=True)
    for _ in range(3):
        t.update(big)
    assert t.histogram.total <= 6 * SAMPLE_LIMIT
    assert t.rows.size <= 1 << 20


def test_not_finite_is_named() -> None:
    with pytest.raises(DataError, match="'conv1'"):
        Statistics().update({"conv1": np.asarray([[1, np.inf]], np.float32)}, {}, frozenset(), 1)


def test_channels_may_not_change() -> None:
    with pytest.raises(DataError, match="3 channels"):
        seen(np.ones((2, 2), np.float32), np.ones((2, 3), np.float32))


# -- range methods ------------------------------------------------------------------------------
NORMAL = np.random.default_rng(5).normal(size=(64, 4096)).astype(np.float32)
OUTLIER = NORMAL.copy()
OUTLIER[3, 3] = 100.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("x", [NORMAL, OUTLIER, np.maximum(OUTLIER, 0), -np.maximum(NORMAL, 0), NORMAL * 0 + 3])
def test_methods_give_intervals_within_the_extremes(method: str, bits: int, x: np.ndarray) -> None:
    t = seen(x)
    lo, hi = method_of(method)(t, bits, RangeOptions())
    assert min(t.lo, 0) - 1e-6 <= lo <= hi <= max(t.hi, 0) + 1e-6


def quantization_error(x: np.ndarray, lo: float, hi: float, bits: int) -> float:
    q = affine(lo, hi, DType(f"uint{bits}"))
    return float(np.square(q.dequantize(q.quantize(x)) - x).mean())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "x", [NORMAL, OUTLIER, np.maximum(OUTLIER, 0), np.exp(NORMAL)], ids=["normal", "outlier", "relu", "lognormal"]
)
def test_mse_is_near_the_best_by_search(x: np.ndarray, bits: int) -> None:
    """Against an exhaustive search on the data themselves, not on the histogram."""
    lo, hi = METHODS["mse"](seen(x), bits, RangeOptions())
    found = quantization_error(x, lo, hi, bits)
    low, high = min(float(x.min()), 0.0), float(x.max())
    best = min(
        quantization_error(x, low * a, high * b, bits)
        for a in ([1.0] if low == 0 else np.linspace(0.05, 1, 20))
        for b in np.linspace(0.02, 1, 40)
    )
    assert found <= 1.25 * best


def test_percentile_ema_std() -> None:
    t = seen(OUTLIER)
    lo, hi = METHODS["percentile"](t, 8, RangeOptions(percentile=99.0))
    assert hi == pytest.approx(np.quantile(OUTLIER, 0.995), abs=0.1)
    assert lo == pytest.approx(np.quantile(OUTLIER, 0.005), abs=0.1)
    assert METHODS["ema"](t, 8, RangeOptions())[1] < 10
    lo, hi = METHODS["std"](t, 8, RangeOptions(c=2.0))
    assert hi == pytest.approx(2 * OUTLIER.std() + OUTLIER.mean(), rel=0.01)


def test_kl_cuts_an_outlier() -> None:
    lo, hi = METHODS["kl"](seen(np.maximum(OUTLIER, 0)), 8, RangeOptions())
    assert lo == 0
    assert hi < 50


def test_cross_entropy_keeps_the_largest_logit() -> None:
    """MSE cuts the rare large logits that decide the class; cross-entropy does not  [White Paper 3.1]."""
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(200, 400)).astype(np.float32)
    logits[np.arange(200), rng.integers(0, 400, 200)] += 12
    t = TensorStatistics(keep_rows=True)
    t.update(logits)
    by_mse, by_entropy = (METHODS[m](t, 4, RangeOptions())[1] for m in ("mse", "cross_entropy"))
    assert by_entropy > by_mse


def test_unknown_method() -> None:
    with pytest.raises(QuantizationError, match="minmax"):
        method_of("entropy")


def test_symmetric_search() -> None:
    lo, hi = METHODS["mse"](seen(OUTLIER), 8, RangeOptions(symmetric=True))
    assert lo == -hi


# -- grids and ranges files ---------------------------------------------------------------------
@given(FLOATS, FLOATS, st.sampled_from(["uint8", "int8", "uint4", "int4"]))
def test_grids_hold_zero_and_the_range(a: float, b: float, kind: str) -> None:
    lo, hi = sorted((a, b))
    q = affine(lo, hi, DType(kind))
    assert q.dequantize(q.quantize(np.zeros(1))) == 0
    ends = np.asarray([min(lo, 0), max(hi, 0)])
    assert np.abs(q.dequantize(q.quantize(ends)) - ends).max() <= q.scale[0] * 0.51 + 1e-9
    assert symmetric(lo, hi, DType(kind)).zero_point == (0,)


def test_ranges_file(tmp_path: Path) -> None:
    ranges = Ranges.of({"a": (-1, 2.5), "b": (0, 3)})
    path = tmp_path / "ranges.json"
    ranges.save(path)
    again = Ranges.load(path)
    assert dict(again) == dict(ranges) == {"a": (-1, 2.5), "b": (0, 3)}
    assert again.at("a", 16) == (-1, 2.5)
    assert again.updated({"a": (0, 1)})["a"] == (0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"format": "other"}', '{"format": "qir.ranges/1", "method": "x", "samples": 1}',
        json.dumps({"format": "qir.ranges/1", "method": "x", "samples": 1, "tensors": {"a": {"seen": [2, 1]}}}),
        json.dumps({"format": "qir.ranges/1", "method": "x", "samples": 1, "tensors": {"a": {"8": [1, 2]}}}),
        json.dumps({"format": "qir.ranges/1", "method": "x", "samples": 1, "tensors": {"a": {"seen": [0]}}}),
        '{"format": "qir.ranges/1", "method": "x", "samples": 1, "tensors": {"a": {"seen": [0, NaN]}}}',
    ],
)  # fmt: skip
def test_broken_ranges_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(text)
    with pytest.raises(ParseError, match=r"ranges\.json"):
        Ranges.load(path)
    with pytest.raises(ParseError):
        Ranges.load(tmp_path / "none.json")
