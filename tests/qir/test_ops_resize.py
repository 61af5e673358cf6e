"""Resize: reference against onnxruntime on random floats, integer forms bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qir
from qir import DType, QuantParams
from qir.errors import LoweringError
from qir.passes import Simplify
from qir.runtime import Session
from qir.runtime.measure.exactness import exactness

A = QuantParams.make(0.05, 120, DType.UINT8)
W = QuantParams.make(0.0004, 11, DType.INT16)
COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
NEAREST = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def random_resize(seed: int, linear: bool) -> tuple[Any, list[Any], dict[str, Any]]:
    """x (N, C, H, W), [roi, scales, sizes], attributes."""
    rng = np.random.default_rng(seed)
    shape = (2, 3, int(rng.integers(2, 9)), int(rng.integers(2, 9)))
    x = rng.normal(size=shape).astype(np.float32) * 3
    attrs: dict[str, Any] = {"mode": "linear" if linear else "nearest"}
    attrs["coordinate_transformation_mode"] = str(rng.choice(COORDINATES))
    if not linear:
        attrs["nearest_mode"] = str(rng.choice(NEAREST))
    if rng.random() < 0.5:
        factors = rng.choice([0.5, 0.6, 1.0, 1.5, 2.0, 3.0, 2.7], size=2)
        return x, [None, np.asarray([1, 1, *factors], np.float32)], attrs
    sizes = rng.integers(1, 17, size=2)
    if rng.random() < 0.5:
        attrs["axes"] = [2, 3]
        return x, [None, None, sizes], attrs
    return x, [None, None, np.asarray([2, 3, *sizes])], attrs


@pytest.mark.parametrize("seed", range(80))
@pytest.mark.parametrize("linear", [False, True], ids=["nearest", "linear"])
def test_float(seed: int, linear: bool, agree_with_onnxruntime: Any) -> None:
    x, rest, attrs = random_resize(seed, linear)
    print(f"seed {seed}: {x.shape} {rest} {attrs}")
    agree_with_onnxruntime("Resize", [x, *rest], attrs, tol=1e-4)


def test_crop_and_resize(agree_with_onnxruntime: Any, integer_case: Any) -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 6, 7)).astype(np.float32)
    attrs = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0}
    for mode in ("nearest", "linear"):
        for roi in ([0, 0, 0.1, 0.2, 1, 1, 0.8, 0.9], [0, 0, -0.2, 0.2, 1, 1, 0.8, 1.3]):
            rest = [np.asarray(roi, np.float32), None, np.asarray([1, 2, 5, 9])]
            agree_with_onnxruntime("Resize", [x, *rest], {**attrs, "mode": mode}, tol=1e-4)
    with pytest.raises(LoweringError, match="extrapolates"):
        integer_case("Resize", [x, *rest], attrs, [A], [A])


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_keep_aspect_ratio(policy: str, agree_with_onnxruntime: Any) -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 6, 8)).astype(np.float32)
    attrs = {"keep_aspect_ratio_policy": policy, "axes": [2, 3], "mode": "linear"}
    agree_with_onnxruntime("Resize", [x, None, None, np.asarray([9, 20])], attrs, tol=1e-4)


@pytest.mark.parametrize("grid", [A, W], ids=["uint8", "int16"])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("linear", [False, True], ids=["nearest", "linear"])
def test_integers(seed: int, linear: bool, grid: QuantParams, integer_case: Any) -> None:
    x, rest, attrs = random_resize(seed + 500, linear)
    whole = len(rest) == 3 and "axes" not in attrs
    print(f"seed {seed}: {x.shape} {rest} {attrs}")
    # a 16-bit step is finer than the 2^-7 weights that fit beside 16-bit data in int32
    steps = 1 if not linear or grid is A else 900
    graph = integer_case("Resize", [x, *rest], attrs, [grid], [grid], batch=not whole, steps=steps)
    assert {n.op for n in graph.nodes} <= {"QuantizeLinear", "Gather", "qir.Interpolate", "qir.Requantize"}


MATRICES = [
    {"mode": "cubic"}, {"mode": "cubic", "cubic_coeff_a": -0.5}, {"mode": "cubic", "exclude_outside": 1},
    {"mode": "cubic", "coordinate_transformation_mode": "align_corners"}, {"mode": "linear", "antialias": 1},
    {"mode": "cubic", "coordinate_transformation_mode": "asymmetric"}, {"mode": "cubic", "antialias": 1},
    {"mode": "cubic", "coordinate_transformation_mode": "pytorch_half_pixel", "cubic_coeff_a": -0.6},
]  # fmt: skip


@pytest.mark.parametrize("attrs", MATRICES, ids=str)
@pytest.mark.parametrize("size", [(1, 2, 13, 9), (1, 2, 3, 4), (1, 2, 5, 16)])
def test_cubic_and_antialiased_resizing(
    agree_with_onnxruntime: Any, attrs: dict[str, Any], size: tuple[int, ...]
) -> None:
    x = np.random.default_rng(5).normal(size=(1, 2, 5, 7)).astype(np.float32)
    agree_with_onnxruntime("Resize", [x, None, None, np.asarray(size)], attrs, tol=2e-5)


def test_cubic_resizing_becomes_products_of_matrices(one_node: Any) -> None:
    x = np.random.default_rng(5).normal(size=(2, 3, 5, 7)).astype(np.float32)
    graph = one_node("Resize", [x, None, np.asarray([1, 1, 2, 1.5], np.float32)], {"mode": "cubic"})
    simple, _ = Simplify().apply(graph)
    assert [n.op for n in simple.nodes] == ["MatMul", "MatMul"]
    want, got = (Session(g, "reference").run({"x0": x})["y0"] for g in (graph, simple))
    np.testing.assert_allclose(got, want, atol=1e-5)
    integer, _ = qir.quantize(graph, {"x0": x})
    assert exactness(integer, {"x0": x}).exact
    noise = Session(integer, "reference").run({"x0": x})["y0"] - want
    assert (want**2).sum() > 1e3 * (noise**2).sum()
