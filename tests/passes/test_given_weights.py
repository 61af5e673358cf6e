"""Weight-only, dynamically and partly quantized models: the weights' integers stay, the rest is calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

import qir
from qir.errors import LoweringError
from qir.graph import Graph
from qir.io import load
from qir.passes import LowerToDyadic, UndoQdq
from qir.passes.calibration.data import batches
from qir.passes.diagnose import diagnose
from qir.passes.quantization.given_grids import explained
from qir.passes.recipes import recipe_of
from qir.runtime import Session
from qir.types import Array, DType

RNG = np.random.default_rng
X = RNG(0).uniform(-1, 1, size=(256, 16)).astype(np.float32)


def model(nodes: list[onnx.NodeProto], constants: dict[str, Any], opset: int = 21, rank: int = 2) -> onnx.ModelProto:
    """x (N, 16) -> y."""
    shape = ["N", 16] if rank == 2 else ["N", 3, 8, 8]
    given = [v if isinstance(v, onnx.TensorProto) else numpy_helper.from_array(v, n) for n, v in constants.items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], given,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def sqnr(reference: Array, other: Array) -> float:
    error = float(((reference.astype(np.float64) - other) ** 2).sum())
    return 10 * np.log10(float((reference.astype(np.float64) ** 2).sum()) / max(error, 1e-30))


def ort_run(proto: onnx.ModelProto, x: Array) -> Array:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def integers(graph: Graph) -> list[Array]:
    """Weights of the integer layers."""
    return [n.input(1).array() for n in graph.nodes if n.op in ("qir.Conv", "qir.MatMul")]


def checked(proto: onnx.ModelProto, bar: float, x: Array = X) -> Graph:
    """The integer graph, of equal bits on two executors and near the float model."""
    integer, _ = qir.quantize(proto, x[: len(x) // 2])
    test = x[len(x) // 2 :]
    mine = Session(integer, backend="reference").run({"x": test})["y"]
    assert np.array_equal(mine, Session(integer, backend="onnxruntime").run({"x": test})["y"])
    assert sqnr(ort_run(proto, test), mine) > bar
    return integer


def test_weight_only_keeps_the_integers_of_the_file() -> None:
    rng = RNG(1)
    w = rng.integers(-128, 128, size=(16, 24)).astype(np.int8)
    w[0] = -128  # a code that qir's own grids leave out
    constants = {
        "w": w, "s": rng.uniform(0.001, 0.01, 24).astype(np.float32), "z": np.zeros(24, np.int8),
        "b": rng.normal(size=24).astype(np.float32), "v": rng.normal(size=(24, 5)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wr"], axis=1),
        helper.make_node("MatMul", ["x", "wr"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    integer = checked(model(nodes, constants), 30)
    assert np.array_equal(integers(integer)[0], w)


def test_a_folded_batch_normalization_leaves_the_integers() -> None:
    rng = RNG(2)
    w = rng.integers(-127, 128, size=(6, 3, 3, 3)).astype(np.int8)
    f = lambda lo, hi, n: rng.uniform(lo, hi, n).astype(np.float32)  # noqa: E731
    constants = {
        "w": w, "s": f(0.001, 0.01, 6), "z": np.zeros(6, np.int8), "gamma": f(0.5, 2, 6), "beta": f(-1, 1, 6),
        "mean": f(-1, 1, 6), "var": f(0.5, 2, 6),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wr"], axis=0),
        helper.make_node("Conv", ["x", "wr"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    x = rng.normal(size=(16, 3, 8, 8)).astype(np.float32)
    assert np.array_equal(integers(checked(model(nodes, constants, rank=4), 30, x))[0], w)


@pytest.mark.parametrize("block", [8, 16])
def test_four_bits_with_a_scale_for_each_block(block: int) -> None:
    """One block a column is a grid of the column; more of them need a new grid, of eight bits."""
    rng = RNG(3)
    w, s = rng.integers(-8, 8, size=(16, 24)), rng.uniform(0.01, 0.1, (16 // block, 24)).astype(np.float32)
    packed = helper.make_tensor("w", TensorProto.INT4, w.shape, w.reshape(-1).tolist())
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wr"], axis=0, block_size=block),
        helper.make_node("MatMul", ["x", "wr"], ["y"]),
    ]
    integer = checked(model(nodes, {"w": packed, "s": s}), 35)
    if block == 16:
        assert np.array_equal(integers(integer)[0], w)


@pytest.mark.parametrize(("bits", "block", "zeros"), [(4, 16, False), (4, 16, True), (8, 16, False)])
def test_matmul_nbits(bits: int, block: int, zeros: bool) -> None:
    rng = RNG(4)
    k, n = 16, 8
    ints = rng.integers(0, 1 << bits, size=(n, k)).astype(np.uint8)
    packed = ints if bits == 8 else ints[:, ::2] | (ints[:, 1::2] << 4)
    s = rng.uniform(0.01, 0.1, n * k // block).astype(np.float32)
    constants: dict[str, Any] = {"w": packed.reshape(n, k // block, -1), "s": s}
    z = rng.integers(0, 16, size=n).astype(np.uint8) if zeros else np.full(n, 1 << (bits - 1), np.uint8)
    if zeros:
        constants["z"] = z.reshape(n, 1)  # one block: the high half of each byte is padding
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s", *(["z"] if zeros else [])], ["y"], domain="com.microsoft",
        K=k, N=n, bits=bits, block_size=block,
    )  # fmt: skip
    proto = model([node], constants)
    made = Session(load(proto), backend="reference").run({"x": X})["y"]
    expected = X @ ((ints.astype(np.float32) - z[:, None]) * s.reshape(n, 1)).T
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)
    integer, _ = qir.quantize(proto, X)
    layer = next(n for n in integer.nodes if n.op == "qir.MatMul")
    codes = layer.input(1).array().astype(int) - layer.attrs["weight_zero_point"]
    assert np.array_equal(codes, (ints.astype(int) - z[:, None]).T)
    assert sqnr(expected, Session(integer, backend="reference").run({"x": X})["y"]) > 35


@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamically_quantized_models_of_onnxruntime(tmp_path: Path, per_channel: bool) -> None:
    rng = RNG(5)
    f = lambda *s: rng.normal(size=s, scale=0.3).astype(np.float32)  # noqa: E731
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    constants = {"w": f(16, 24), "b": f(24), "v": f(24, 5)}
    onnx.save(model(nodes, constants, opset=17), tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "q.onnx", per_channel=per_channel, weight_type=QuantType.QInt8)
    proto = onnx.load(tmp_path / "q.onnx")
    theirs = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    integer = checked(proto, 30)
    for mine, name in zip(integers(integer), "wv", strict=True):
        assert np.array_equal(mine, theirs[f"{name}_quantized"])


def test_a_dynamically_quantized_convolution() -> None:
    rng = RNG(6)
    w = rng.integers(0, 256, size=(4, 3, 3, 3)).astype(np.uint8)
    constants = {"w": w, "ws": np.asarray(0.01, np.float32), "wz": np.asarray(120, np.uint8)}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("ConvInteger", ["q", "w", "z", "wz"], ["i"], pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["sw"]),
        helper.make_node("Mul", ["f", "sw"], ["y"]),
    ]
    x = rng.normal(size=(16, 3, 8, 8)).astype(np.float32)
    integer = checked(model(nodes, constants, rank=4), 30, x)
    layer = next(n for n in integer.nodes if n.op == "qir.Conv")
    assert np.array_equal(layer.input(1).array().astype(int) - layer.attrs["weight_zero_point"], w.astype(int) - 120)


def partly() -> onnx.ModelProto:
    """A quantized convolution without its Relu, a MaxPool on integers, a float end."""
    rng = RNG(7)
    constants = {
        "xs": np.asarray(0.03, np.float32), "xz": np.asarray(128, np.uint8), "cs": np.asarray(0.02, np.float32),
        "cz": np.asarray(0, np.uint8), "w": rng.integers(-127, 128, size=(4, 3, 3, 3)).astype(np.int8),
        "ws": np.full(4, 0.004, np.float32), "wz": np.zeros(4, np.int8),
        "v": rng.normal(size=(64, 5)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xr"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wr"], axis=0),
        helper.make_node("Conv", ["xr", "wr"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "cs", "cz"], ["cq"]),
        helper.make_node("MaxPool", ["cq"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("DequantizeLinear", ["p", "cs", "cz"], ["pr"]),
        helper.make_node("Flatten", ["pr"], ["flat"]),
        helper.make_node("MatMul", ["flat", "v"], ["y"]),
    ]
    return model(nodes, constants, rank=4)


def test_partly_quantized_models_keep_ranges_and_the_limits_of_their_grids() -> None:
    proto = partly()
    x = RNG(8).normal(size=(32, 3, 8, 8)).astype(np.float32)
    integer = checked(proto, 30, x)
    grids = {v.quant.scale[0] for v in integer.values if v.quant is not None and v.dtype is DType.UINT8}
    assert {np.float32(0.03), np.float32(0.02)} <= grids
    with pytest.raises(LoweringError, match="calibration data"):
        qir.quantize(proto)


def test_diagnose_takes_partly_quantized_models() -> None:
    graph = load(partly())
    x = RNG(8).normal(size=(16, 3, 8, 8)).astype(np.float32)
    found = diagnose(graph, batches(x, graph), recipe_of("w8a8"))
    assert found.culprits and found.recipe_sqnr > 20 and not found.warnings


def test_undo_qdq_is_the_graph_behind(tmp_path: Path) -> None:
    proto = partly()
    x = RNG(8).normal(size=(8, 3, 8, 8)).astype(np.float32)
    graph, _ = UndoQdq().apply(load(proto))
    mine = Session(graph, backend="reference").run({"x": x})["y"]
    assert sqnr(ort_run(proto, x), mine) > 30
    assert not any(n.op in ("QuantizeLinear", "DequantizeLinear") for n in graph.nodes)


def test_what_is_quantized_throughout_is_lowered_as_it_is() -> None:
    rng = RNG(9)
    constants = {
        "xs": np.asarray(0.03, np.float32), "xz": np.asarray(128, np.uint8),
        "w": rng.integers(-127, 128, size=(16, 4)).astype(np.int8), "ws": np.asarray(0.004, np.float32),
        "wz": np.asarray(0, np.int8), "ys": np.asarray(0.1, np.float32), "yz": np.asarray(128, np.uint8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xr"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wr"]),
        helper.make_node("MatMul", ["xr", "wr"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "ys", "yz"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "ys", "yz"], ["y"]),
    ]
    graph = load(model(nodes, constants))
    with_data, alone = qir.quantize(graph, X)[0], LowerToDyadic().apply(graph)[0]
    assert str(with_data) == str(alone)


def test_grids_are_found_from_numbers() -> None:
    rng = RNG(10)
    ints = rng.integers(-127, 128, size=(5, 40))
    w = (ints * rng.uniform(0.001, 1, (5, 1))).astype(np.float32)
    w[3] = 0
    q = explained(w, 0)
    assert q is not None and np.allclose(q.dequantize(q.quantize(w)), w, rtol=1e-5, atol=1e-9)
    assert explained(rng.normal(size=(5, 40)).astype(np.float32), 0) is None
    shifted = explained(((ints + 90) * 0.01).astype(np.float32), None)
    assert shifted is not None and shifted.dtype is DType.UINT8
