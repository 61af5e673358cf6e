"""Outputs whose columns are in different units have a grid for each; comparisons show the worst column."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import qir
from qir.graph import Graph
from qir.io import audit, load, save
from qir.runtime import Session
from qir.runtime.measure.compare import compare_graphs
from qir.types import Array, DType, TensorType

UNITS = np.asarray([1e-3, 1e-2, 0.1, 1, 10, 1e3])


def network(kind: str, units: Array) -> tuple[Graph, Array]:
    """A hidden layer, and outputs whose columns have these sizes; (graph, data)."""
    rng = np.random.default_rng(0)
    g = Graph(kind)
    c = lambda name, value: g.add_constant(name, np.asarray(value, np.float32))  # noqa: E731
    n = len(units)
    if kind == "conv":
        x = rng.uniform(-1, 1, size=(32, 4, 6, 6)).astype(np.float32)
        v = g.add_node("Relu", [g.add_input("x", TensorType(DType.FLOAT32, ("N", 4, 6, 6)))], outputs=["r"]).output
        w, b = rng.normal(size=(n, 4, 3, 3)) * units[:, None, None, None], rng.normal(size=n) * units
        v = g.add_node("Conv", [v, c("w", w), c("b", b)], {"pads": [1] * 4}, outputs=["y"]).output
    else:
        inner = (5,) if kind == "matmul" else ()
        x = rng.uniform(-1, 1, size=(64, *inner, 8)).astype(np.float32)
        v = g.add_node("Relu", [g.add_input("x", TensorType(DType.FLOAT32, ("N", *inner, 8)))], outputs=["r"]).output
        w, b = rng.normal(size=(8, n)) * units, rng.normal(size=n) * units
        if kind == "matmul":
            v = g.add_node("MatMul", [v, c("w", w)], outputs=["m"]).output
            v = g.add_node("Add", [v, c("b", b)], outputs=["y"]).output
        else:
            v = g.add_node("Gemm", [v, c("w", w), c("b", b)], outputs=["h"]).output
            v = g.add_node(
                "Tanh" if kind == "tanh" else "Identity", [v], outputs=["y" if kind != "tanh" else "t"]
            ).output
        if kind == "tanh":
            v = g.add_node("Mul", [v, c("units", units)], outputs=["y"]).output
    g.set_outputs([v])
    return g, x


@pytest.mark.parametrize("kind", ["gemm", "conv", "matmul"])
def test_every_column_is_kept(tmp_path: Path, kind: str) -> None:
    g, x = network(kind, UNITS)
    integer, report = qir.quantize(g, x)
    result = compare_graphs(g, integer, [{"x": x}], per_layer=False).outputs[0]
    assert result.column_sqnr is not None and result.column_sqnr > 28
    end = integer.outputs[0].producer
    assert end is not None and end.op == "DequantizeLinear"
    if kind != "matmul":
        assert len(end.input(1).array()) == len(UNITS)
        assert "a grid for each column of an output" in report["calibrate"].rewrites
    expected = Session(integer, "reference").run({"x": x})["y"]
    for backend in ("onnxruntime", "cpu"):
        assert np.array_equal(expected, Session(integer, backend).run({"x": x})["y"]), backend
    save(integer, tmp_path / "q.onnx")
    assert audit(onnx.load(tmp_path / "q.onnx")) == []
    assert np.array_equal(Session(load(tmp_path / "q.onnx")).run({"x": x})["y"], expected)
    save(integer, tmp_path / "i.onnx", io="integer")
    inner = load(tmp_path / "i.onnx")
    ints = Session(inner).run({"x": inner.inputs[0].quant.quantize(x)})["y"]  # type: ignore[union-attr]
    quant = inner.outputs[0].quant
    assert quant is not None
    np.testing.assert_allclose(quant.dequantize(ints), expected, rtol=1e-6)


@pytest.mark.skipif(not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="needs a C++ compiler")
@pytest.mark.parametrize("kind", ["gemm", "conv"])
def test_columns_on_the_emulated_gpu(kind: str) -> None:
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    g, x = network(kind, UNITS)
    integer, _ = qir.quantize(g, x)
    got = Session(integer, "cuda", device=EmulatedDevice(1)).run({"x": x})["y"]
    assert np.array_equal(got, Session(integer, "reference").run({"x": x})["y"])


def test_columns_of_one_unit_share_a_grid() -> None:
    g, x = network("gemm", np.ones(6))
    integer, _ = qir.quantize(g, x)
    end = integer.outputs[0].producer
    assert end is not None and end.input(1).array().shape == ()


def test_the_worst_column_shows_what_the_whole_hides() -> None:
    g, x = network("gemm", np.asarray([1.0, 1.0, 1e-4]))
    integer, _ = qir.quantize(g, x, output="int8", residual="int8")
    result = compare_graphs(g, integer, [{"x": x}], per_layer=False).outputs[0]
    assert result.sqnr > 30 and result.column == 2 and result.column_sqnr is not None and result.column_sqnr < 5
    _, report = qir.quantize(g, x, output="int8", residual="int8")
    assert report["quality"].data["outputs"][0]["column"] == 2
