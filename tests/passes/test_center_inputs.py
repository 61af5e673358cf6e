"""Inputs whose features are in different units: a grid for each, and what reads them centred."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as oh

import qir
from qir.io import load, strip_border, to_onnx
from qir.runtime import Session
from qir.runtime.measure.exactness import exactness

UNITS = np.asarray([1e-3, 0.2, 1.0, 30.0, 2e3, 5e4, 1.0, 0.01], np.float32)
MEANS = np.asarray([2e-3, 0.0, 5.0, -100.0, 9e3, 0.0, -20.0, 0.3], np.float32)


def features(seed: int, *shape: int, channel: int = -1) -> Any:
    """Normal features with the units and means above."""
    x = np.random.default_rng(seed).normal(size=(*shape, 8)) * UNITS + MEANS
    return np.ascontiguousarray(np.moveaxis(x, -1, channel)).astype(np.float32)


def model(front: str, body: str, shape: list[Any]) -> onnx.ModelProto:
    """x -> standardization as `front` says -> layers as `body` says -> y."""
    rng = np.random.default_rng(7)
    constants: dict[str, Any] = {}
    nodes: list[Any] = []
    axis = 1 if body == "conv" else len(shape) - 1
    along = [1] * len(shape)
    along[axis] = -1

    def node(op: str, *inputs: Any, **attrs: Any) -> str:
        names: list[str] = []
        for value in inputs:
            if not isinstance(value, str):
                constants[f"c{len(constants)}"] = np.asarray(value, np.float32)
                value = f"c{len(constants) - 1}"
            names.append(value)
        nodes.append(oh.make_node(op, names, [f"t{len(nodes)}"], **attrs))
        return f"t{len(nodes) - 1}"

    means, units, x = MEANS.reshape(along), UNITS.reshape(along), "x"
    if "subdiv" in front:
        x = node("Div", node("Sub", x, means), units)
    elif front == "muladd":
        x = node("Add", node("Mul", x, 1 / units), -means / units)
    elif front == "batchnorm":
        x = node("BatchNormalization", x, np.ones(8), np.zeros(8), MEANS, UNITS**2, epsilon=0.0)
    if "clip" in front:
        x = node("Clip", x, -5.0, 5.0)
    w = rng.normal(size=(8, 24)) * 0.4
    if front == "none":
        w = w / UNITS[:, None]
    if body == "conv":
        x = node("Conv", x, w.T[..., None], rng.normal(size=24))
    elif body == "matmul":
        x = node("MatMul", x, w)
    else:
        x = node("Gemm", x, w, rng.normal(size=24))
    x = node("Relu", x)
    if body == "conv":
        x = node("Conv", x, rng.normal(size=(3, 24, 1)) * 0.3)
    else:
        x = node("MatMul", x, rng.normal(size=(24, 3)) * 0.3)
    kind = onnx.TensorProto.FLOAT
    graph = oh.make_graph(
        [*nodes, oh.make_node("Identity", [x], ["y"])], "g",
        [oh.make_tensor_value_info("x", kind, shape)], [oh.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)])


CASES = [
    ("none", "gemm"), ("subdiv", "gemm"), ("muladd", "gemm"), ("batchnorm", "gemm"), ("subdiv clip", "gemm"),
    ("subdiv", "matmul"), ("none", "matmul"), ("subdiv clip", "matmul"), ("none", "conv"), ("subdiv", "conv"),
]  # fmt: skip


@pytest.mark.parametrize(("front", "body"), CASES)
def test_features_in_different_units(front: str, body: str) -> None:
    several = {"gemm": (), "matmul": (5,), "conv": (6,)}[body]
    channel = 1 if body == "conv" else -1
    calib, test = ({"x": features(seed, 48, *several, channel=channel)} for seed in (0, 1))
    graph = load(model(front, body, ["N", *calib["x"].shape[1:]]))
    integer, report = qir.quantize(graph, calib)
    assert any("a grid for each channel" in p.rewrites for p in report.passes)
    (first,) = [n for n in integer.nodes if n.op == "QuantizeLinear"]
    assert first.input(1).shape == (8,)
    want, got = (Session(g, "reference").run(test)["y"].astype(np.float64) for g in (graph, integer))
    signal, noise = (want**2).sum(), ((want - got) ** 2).sum()
    assert 10 * np.log10(signal / noise) > 27, 10 * np.log10(signal / noise)
    few = {"x": test["x"][:3]}
    result = exactness(integer, few)
    assert result.exact, result.differing


def test_a_grid_for_each_channel_is_in_the_file_and_on_every_executor() -> None:
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    calib = {"x": features(0, 48)}
    integer, _ = qir.quantize(load(model("subdiv clip", "gemm", ["N", 8])), calib)
    want = Session(integer, "reference").run({"x": calib["x"][:3]})["y"]
    got = Session(integer, "cuda", device=EmulatedDevice()).run({"x": calib["x"][:3]})["y"]
    np.testing.assert_array_equal(got, want)
    assert exactness(integer, {"x": calib["x"][:3]}, backends=("reference", "cpu")).exact
    exported = to_onnx(integer)
    (node,) = [n for n in exported.graph.node if n.op_type == "QuantizeLinear"]
    assert load(exported).nodes[0].input(1).shape == (8,) and node.op_type == "QuantizeLinear"
    inner = strip_border(integer)
    quant = inner.inputs[0].quant
    assert quant is not None and quant.axis == 1 and len(quant.scale) == 8


def test_inputs_of_one_kind_keep_one_grid() -> None:
    calib = {"x": np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32) * np.float32(3)}
    _, report = qir.quantize(load(model("none", "gemm", ["N", 8])), calib)
    assert not any("a grid for each channel" in p.rewrites for p in report.passes)


def test_what_reads_an_uneven_input_otherwise_is_said() -> None:
    kind = onnx.TensorProto.FLOAT
    graph = oh.make_graph(
        [oh.make_node("Sigmoid", ["x"], ["y"])], "g", [oh.make_tensor_value_info("x", kind, ["N", 8])],
        [oh.make_tensor_value_info("y", kind, None)],
    )  # fmt: skip
    _, report = qir.quantize(load(oh.make_model(graph)), {"x": features(0, 16)})
    (miss,) = [m for p in report.passes for m in p.misses if m.rule == "a grid for each channel"]
    assert miss.node == "x"
