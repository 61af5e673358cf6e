"""QOperator, dynamically quantized and packed models, as the standard operators that they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from qir.graph import Stage
from qir.io import load
from qir.passes import LowerToDyadic
from qir.runtime import Session
from qir.types import Array

RNG = np.random.default_rng
FLOAT, UINT8, INT8 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8


def model(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[Any]], outputs: list[str], constants: dict[str, Array],
    opset: int = 17, kind: int = FLOAT,
) -> onnx.ModelProto:  # fmt: skip
    """A model whose inputs are all of one dtype."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(o, 0, None) for o in outputs],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    for o in graph.output:
        o.ClearField("type")
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def ort_run(proto: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(v) for v in session.run(None, feeds)]


# -- twins: one float model, quantized by onnxruntime in its two formats ----------------------------
class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, x: Array) -> None:
        self.batches: Iterator[Array] = iter(np.split(x, 4))

    def get_next(self) -> Any:
        batch = next(self.batches, None)
        return None if batch is None else {"x": batch}


def float_network(seed: int) -> onnx.ModelProto:
    """Convolutions, a residual sum, a branch that is concatenated, gate, pool and classifier."""
    rng = RNG(seed)
    f = lambda *s: rng.normal(size=s, scale=0.4).astype(np.float32)  # noqa: E731
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1]),
        node("LeakyRelu", ["c0"], ["a0"], alpha=0.1),
        node("Conv", ["a0", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], group=2),
        node("Add", ["a0", "c1"], ["s"]),
        node("Sigmoid", ["s"], ["gate"]),
        node("Mul", ["s", "gate"], ["m"]),
        node("Concat", ["m", "c1"], ["cat"], axis=1),
        node("MaxPool", ["cat"], ["mp"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["mp"], ["gap"]),
        node("Flatten", ["gap"], ["flat"]),
        node("Gemm", ["flat", "w2", "b2"], ["g"], transB=1),
        node("MatMul", ["g", "w3"], ["y"]),
    ]
    constants = {
        "w0": f(6, 3, 3, 3), "b0": f(6), "w1": f(6, 3, 3, 3), "b1": f(6), "w2": f(5, 12), "b2": f(5), "w3": f(5, 4),
    }  # fmt: skip
    return model(nodes, {"x": ["N", 3, 8, 8]}, ["y"], constants, opset=13)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_qoperator_model_has_the_integers_of_its_qdq_twin(tmp_path: Path, per_channel: bool) -> None:
    x = RNG(1).normal(size=(32, 3, 8, 8)).astype(np.float32)
    onnx.save(onnx.shape_inference.infer_shapes(float_network(0)), tmp_path / "float.onnx")
    results: list[Array] = []
    for form in (QuantFormat.QOperator, QuantFormat.QDQ):
        path = tmp_path / f"{form}.onnx"
        quantize_static(
            tmp_path / "float.onnx", path, Reader(x), quant_format=form, per_channel=per_channel,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        graph = load(path)
        assert graph.stage is Stage.QDQ
        integer, _ = LowerToDyadic().apply(graph)
        results.append(Session(integer, backend="reference").run({"x": x})["y"])
        theirs = ort_run(onnx.load(path), {"x": x})[0]
        step = np.unique(np.diff(np.unique(theirs))).min()
        assert np.abs(results[-1] - theirs).max() <= 2.01 * step  # a rounding here and there
    assert np.array_equal(results[0], results[1])


# -- each operator alone, against onnxruntime ------------------------------------------------------------
def grids(**pairs: tuple[float, int]) -> dict[str, Array]:
    out: dict[str, Array] = {}
    for name, (scale, zero) in pairs.items():
        out |= {f"{name}_s": np.asarray(scale, np.float32), f"{name}_z": np.asarray(zero, np.uint8)}
    return out


A, B, Y = (["a", "a_s", "a_z"], ["b", "b_s", "b_z"], ["y_s", "y_z"])
W = RNG(5).integers(-127, 128, size=(8, 4)).astype(np.int8)
KERNEL = RNG(6).integers(-127, 128, size=(5, 4, 3, 3)).astype(np.int8)
C = np.arange(8, dtype=np.int32) * 100

CASES: dict[str, tuple[str, list[str], dict[str, Any], list[int]]] = {
    "add": ("QLinearAdd", [*A, *B, *Y], {}, [2, 4, 6, 6]),
    "mul": ("QLinearMul", [*A, *B, *Y], {}, [2, 4, 6, 6]),
    "sigmoid": ("QLinearSigmoid", [*A, *Y], {}, [2, 4, 6, 6]),
    "leaky": ("QLinearLeakyRelu", [*A, *Y], {"alpha": 0.2}, [2, 4, 6, 6]),
    "global": ("QLinearGlobalAveragePool", [*A, *Y], {"channels_last": 0}, [2, 4, 6, 6]),
    "global_last": ("QLinearGlobalAveragePool", [*A, *Y], {"channels_last": 1}, [2, 6, 6, 4]),
    "average": ("QLinearAveragePool", [*A, *Y], {"kernel_shape": [2, 2], "strides": [2, 2]}, [2, 4, 6, 6]),
    "concat": ("QLinearConcat", [*Y, *A, *B], {"axis": 1}, [2, 4, 6, 6]),
    "softmax": ("QLinearSoftmax", [*A, *Y], {"axis": 1, "opset": 13}, [2, 8]),
    "softmax_old": ("QLinearSoftmax", [*A, *Y], {"axis": 1, "opset": 11}, [2, 3, 5]),
    "gemm": ("QGemm", [*A, "w", "w_s", "w_z", "c", *Y], {"transB": 1}, [2, 4]),
    "gemm_float": ("QGemm", [*A, "w", "w_s", "w_z", "c"], {"transB": 1, "alpha": 2.0}, [2, 4]),
    "conv_last": ("QLinearConv", [*A, "k", "w_s", "w_z", *Y], {"channels_last": 1, "pads": [1, 1, 1, 1]}, [2, 6, 6, 4]),
}


@pytest.mark.parametrize("name", CASES)
def test_operators_of_onnxruntime(name: str) -> None:
    op, inputs, attrs, shape = CASES[name]
    constants = grids(
        a=(0.05, 120), b=(0.03, 60), y=(0.04 if "soft" not in name else 1 / 256, 7 if "soft" not in name else 0)
    )
    constants |= {"w": W, "w_s": np.asarray(0.01, np.float32), "w_z": np.asarray(0, np.int8), "c": C, "k": KERNEL}
    used = {k: v for k, v in constants.items() if k in inputs}
    given = {k: shape for k in "ab" if k in inputs}
    proto = model(
        [helper.make_node(op, inputs, ["y"], domain="com.microsoft", **attrs)], given, ["y"], used, kind=UINT8
    )
    feeds = {k: RNG(i).integers(0, 256, size=shape).astype(np.uint8) for i, k in enumerate(given)}
    graph = load(proto)
    assert graph.stage is Stage.QDQ
    mine = Session(graph, backend="reference").run(feeds)["y"]
    theirs = ort_run(proto, feeds)[0]
    assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
    if mine.dtype == np.float32:
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    else:
        assert np.abs(mine.astype(int) - theirs.astype(int)).max() <= 1


def test_a_vector_has_one_axis_whatever_is_said() -> None:
    """TFLite converters write the weights' axis beside a bias."""
    constants: dict[str, Array] = {
        "w": KERNEL, "s": np.full(5, 0.01, np.float32), "z": np.zeros(5, np.int8), "b": np.arange(5, dtype=np.int32),
        "bs": np.full(5, 0.001, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wr"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["br"], axis=3),
        helper.make_node("Conv", ["x", "wr", "br"], ["y"]),
    ]
    graph = load(model(nodes, {"x": ["N", 4, 3, 3]}, ["y"], constants))
    y = Session(graph, backend="reference").run({"x": np.zeros((1, 4, 3, 3), np.float32)})["y"]
    np.testing.assert_allclose(y.reshape(-1), np.arange(5) * 0.001, rtol=1e-6)
