"""The commands on a network of an open length, with a folder of samples of many lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qir.__main__ import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.onnx: (batch, length, 6) -> (batch, length, 4), and data/: eight files of several lengths."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(5)
    w = onnx.numpy_helper.from_array((rng.normal(size=(6, 4)) / 2).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    sizes = {"x": 6, "y": 4}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "length", s]) for n, s in sizes.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [w])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "net.onnx")
    (tmp_path / "data").mkdir()
    for i, length in enumerate(rng.integers(2, 20, 8)):
        np.save(tmp_path / "data" / f"{i}.npy", rng.normal(size=(2, length, 6)).astype(np.float32))
    return tmp_path


def test_quantize_run_and_compare_over_lengths(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "net.onnx", "-o", "int.onnx", "--data", "data"]) == 0
    shape = onnx.load("int.onnx").graph.input[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in shape.dim] == ["batch", "length", 6]
    assert main(["compare", "net.onnx", "int.onnx", "--data", "data", "--backend", "onnxruntime"]) == 0
    assert main(["run", "int.onnx", "--data", "data", "-o", "y.npz", "--backend", "onnxruntime"]) == 0
    with np.load("y.npz") as found:
        assert sum(found[n].shape[0] for n in found.files) == 16
    assert "Nxlengthx4" in capsys.readouterr().out or main(["inspect", "int.onnx"]) == 0


def test_one_size_stays_open(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--input-shape", "x:2x?x6"]
    assert main(["quantize", "net.onnx", "-o", "two.onnx", "--data", "data", *given]) == 0
    shape = onnx.load("two.onnx").graph.input[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in shape.dim] == [2, "length", 6]
