"""Networks whose sizes stay open: equal bits on all executors at any size, plans that come and go."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qir
from qir.errors import DataError
from qir.graph import Graph
from qir.io.audit import audit
from qir.runtime import Session
from qir.runtime.cuda.device.emulated import EmulatedDevice
from qir.types import Array

SHAPES = ((2, 3, 33, 41), (1, 3, 64, 64), (3, 3, 17, 100))


def network(*tail: tuple[str, list[Any], dict[str, Any]], channels: int = 6) -> onnx.ModelProto:
    """A strided convolution of an open image, then `tail`, then a convolution."""
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.normal(size=(channels, 3, 3, 3)) / 5, "v": rng.normal(size=(2, channels, 3, 3)) / 7,
        "b": rng.normal(size=channels),
    }  # fmt: skip
    held = {n: a.astype(np.float32) for n, a in weights.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["t0"]),
    ]
    for i, (op, rest, attrs) in enumerate(tail):
        names = [f"t{i}"]
        for j, data in enumerate(rest):
            names.append("" if data is None else f"k{i}_{j}")
            if data is not None:
                held[names[-1]] = np.asarray(data)
        nodes.append(helper.make_node(op, names, [f"t{i + 1}"], **attrs))
    nodes.append(helper.make_node("Conv", [f"t{len(tail)}", "v"], ["y"], pads=[1, 1, 1, 1]))
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "height", "width"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(
        nodes, "g", values, outputs, [onnx.numpy_helper.from_array(a, n) for n, a in held.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def images(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def quantized(model: onnx.ModelProto) -> tuple[Graph, Graph]:
    graph = qir.load(model)
    return graph, qir.quantize(graph, images((8, 3, 32, 40)))[0]


def assert_equal_bits(graph: Graph, feeds: dict[str, Array]) -> dict[str, Array]:
    """Every tensor on reference, onnxruntime, cpu and the emulated GPU."""
    names = [v.name for v in graph.values if v.producer is not None]
    want = Session(graph, "reference").run(feeds, outputs=names)
    for backend, options in (("onnxruntime", {}), ("cpu", {"threads": 1}), ("cuda", {"device": EmulatedDevice()})):
        got = Session(graph, backend, **options).run(feeds, outputs=names)
        for name in names:
            assert got[name].dtype == want[name].dtype, (backend, name)
            assert np.array_equal(got[name], want[name]), (backend, name, want[name].shape)
    return want


TWICE = np.asarray([1, 1, 2, 2], np.float32)
TAILS: dict[str, list[Any]] = {
    "linear": [("Resize", [None, TWICE], {"mode": "linear"})],
    "align_corners": [
        ("Resize", [None, TWICE], {"mode": "linear", "coordinate_transformation_mode": "align_corners"})
    ],
    "nearest": [
        ("Resize", [None, TWICE], {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"})
    ],
    "pools": [
        ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("AveragePool", [], {"kernel_shape": [2, 2], "ceil_mode": 0}),
    ],
    "transpose": [("ConvTranspose", [images((6, 6, 3, 3), 5) / 6], {"strides": [2, 2], "pads": [1, 1, 1, 1]})],
}  # fmt: skip


@pytest.mark.parametrize("tail", TAILS)
def test_an_open_image(tail: str) -> None:
    graph, integer = quantized(network(*TAILS[tail]))
    exported = qir.io.to_onnx(integer)
    assert [d.dim_param or d.dim_value for d in exported.graph.input[0].type.tensor_type.shape.dim] == [
        "batch", 3, "height", "width",
    ]  # fmt: skip
    assert audit(exported) == []
    again = qir.load(exported)
    for shape in SHAPES:
        x = images(shape, 3)
        y = assert_equal_bits(integer, {"x": x})["y"]
        assert np.array_equal(Session(again, "reference").run({"x": x})["y"], y)
        real = Session(graph, "onnxruntime").run({"x": x})["y"]
        assert 10 * np.log10((real**2).mean() / ((real - y) ** 2).mean()) > 25


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_plans_of_changing_sizes_do_not_grow(backend: str) -> None:
    _, integer = quantized(network(*TAILS["linear"]))
    session = Session(integer, backend, **({"threads": 1} if backend == "cpu" else {"device": EmulatedDevice()}))

    def walk(rounds: int) -> int:
        for i in range(9 * rounds):
            session.run({"x": images((1, 3, 8 + i % 9, 9 + i % 9))})
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    walk(1)
    before = walk(1)
    grown = walk(3) - before
    tracemalloc.stop()
    assert grown < 50_000


def test_sizes_that_a_network_cannot_take() -> None:
    graph = qir.load(network(*[("MaxPool", [], {"kernel_shape": [9, 9]})]))
    with pytest.raises(DataError, match=r"cannot take a batch of 1, height = 8, width = 40: MaxPool"):
        Session(graph, "reference").run({"x": images((1, 3, 8, 40))})


@pytest.mark.parametrize("op", ["GlobalAveragePool", "ReduceSum", "ReduceMean"])
def test_means_over_open_axes(op: str) -> None:
    attrs: dict[str, Any] = {} if op == "GlobalAveragePool" else {"keepdims": 1}
    rest = [] if op == "GlobalAveragePool" else [np.asarray([2, 3])]
    graph, integer = quantized(network((op, rest, attrs)))
    for shape in SHAPES if op != "ReduceSum" else [(2, 3, 32, 40)]:
        x = images(shape, 4)
        y = assert_equal_bits(integer, {"x": x})["y"]
        real = Session(graph, "onnxruntime").run({"x": x})["y"]
        assert 10 * np.log10((real**2).mean() / ((real - y) ** 2).mean()) > 25


def test_calibration_over_lengths() -> None:
    """Scores of an open length, a mean over it, samples of many lengths."""
    rng = np.random.default_rng(3)
    held = {n: (rng.normal(size=(8, 8)) / 2).astype(np.float32) for n in "qkv"}
    nodes = [helper.make_node("MatMul", ["x", n], [n.upper()]) for n in "qkv"]
    nodes += [
        helper.make_node("Transpose", ["K"], ["T"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["Q", "T"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "V"], ["a"]),
        helper.make_node("ReduceMean", ["a"], ["y"], axes=[1], keepdims=0),
    ]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    tensors = [onnx.numpy_helper.from_array(a, n) for n, a in held.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values, outputs, tensors), opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )  # fmt: skip
    graph = qir.load(model)
    samples = [rng.normal(size=(int(n), 8)).astype(np.float32) for n in rng.integers(3, 30, 20)]
    integer, _ = qir.quantize(graph, iter(samples))
    for n in (1, 4, 77):
        x = rng.normal(size=(2, n, 8)).astype(np.float32)
        y = assert_equal_bits(integer, {"x": x})["y"]
        real = Session(graph, "onnxruntime").run({"x": x})["y"]
        assert 10 * np.log10((real**2).mean() / ((real - y) ** 2).mean()) > 20
