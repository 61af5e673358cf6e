"""The noise of each tensor, its bookkeeping checked against plain NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qir import DType, Graph, QuantParams, Stage, TensorType
from qir.errors import DataError
from qir.runtime.measure.compare import PairMoments, compare_graphs, shared_tensors


def test_moments_are_the_definition() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(3, 4, 5)) for _ in range(3)]
    noisy = [p + 0.01 * rng.normal(size=p.shape) for p in parts]
    m = PairMoments()
    for f, q in zip(parts, noisy, strict=True):
        m.add(f, q)
    f, q = np.concatenate(parts), np.concatenate(noisy)
    assert m.sqnr == pytest.approx(10 * math.log10((f**2).sum() / ((f - q) ** 2).sum()), abs=1e-6)
    assert m.fitted_sqnr >= m.sqnr


def test_fit_sees_through_channel_scales() -> None:
    rng = np.random.default_rng(1)
    f = rng.normal(size=(8, 4, 5))
    q = (f + 0.01 * rng.normal(size=f.shape)) * np.asarray([1, 5, 0.2, 3])[None, :, None] + 1.5
    m = PairMoments()
    m.add(f, q)
    assert m.sqnr < 5 < 38 < m.fitted_sqnr < 42
    same = PairMoments()
    same.add(f, f)
    assert same.sqnr == math.inf


def networks() -> tuple[Graph, Graph]:
    """y = 2x in float, and on integers with scales 1/64 -> 1/32."""
    f = Graph("float")
    x = f.add_input("x", TensorType(DType.FLOAT32, ("N", 3)))
    mid = f.add_node("Relu", [x], outputs=["mid"]).output
    f.set_outputs([f.add_node("Identity", [mid], outputs=["y"]).output])
    q = Graph("integer", Stage.INTEGER)
    fine, coarse = QuantParams.make(1 / 64, 128, DType.UINT8), QuantParams.make(1 / 32, 0, DType.UINT8)
    x = q.add_input("x", TensorType(DType.FLOAT32, ("N", 3)))
    s, z = q.add_constant("s", np.asarray(1 / 64, np.float32)), q.add_constant("z", np.asarray(128, np.uint8))
    xq = q.add_node("QuantizeLinear", [x, s, z], outputs=["x.q"], quant=fine).output
    m, h = q.add_constant("m", np.asarray(1 << 30, np.int32)), q.add_constant("h", np.asarray(31, np.int32))
    attrs = {"x_zero_point": 128, "zero_point": 0, "lo": 0, "hi": 255, "dtype": "uint8"}
    mid = q.add_node("qir.Requantize", [xq, m, h], attrs, outputs=["mid"], quant=coarse).output
    s2, z2 = q.add_constant("s2", np.asarray(1 / 32, np.float32)), q.add_constant("z2", np.asarray(0, np.uint8))
    q.set_outputs([q.add_node("DequantizeLinear", [mid, s2, z2], outputs=["y"]).output])
    return f, q


@pytest.mark.parametrize("backend", ["reference", "onnxruntime"])
def test_two_graphs(backend: str) -> None:
    f, q = networks()
    assert shared_tensors(f, q) == ["mid"]
    x = np.random.default_rng(2).uniform(-1.5, 1.5, (40, 3)).astype(np.float32)
    result = compare_graphs(f, q, [{"x": x[:25]}, {"x": x[25:]}], backend=backend)
    grid = np.rint(np.floor(np.maximum(np.rint(x * 64), 0) / 2 + 0.5)) / 32
    want = np.maximum(x, 0)
    sqnr = 10 * math.log10((want**2).sum() / ((want - grid) ** 2).sum())
    (tensor,), (output,) = result.tensors, result.outputs
    assert result.samples == 40
    assert (tensor.name, tensor.op, tensor.dtype) == ("mid", "qir.Requantize", "uint8")
    assert tensor.score == pytest.approx(sqnr, abs=1e-6) and not tensor.rescaled
    assert output.sqnr == pytest.approx(sqnr, abs=1e-4)
    assert output.agreement == pytest.approx((want.argmax(1) == grid.argmax(1)).mean())
    assert output.largest_difference == pytest.approx(np.abs(want - grid).max(), rel=1e-5)


def test_what_cannot_be_compared() -> None:
    f, q = networks()
    with pytest.raises(DataError, match="no samples"):
        compare_graphs(f, q, [])
    f.set_outputs([*f.outputs, f.value("mid")])
    with pytest.raises(DataError, match="different inputs or outputs"):
        compare_graphs(f, q, [])
