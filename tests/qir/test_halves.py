"""QDQ models with 16-bit activations: linear layers as two products of bytes."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qir.graph import Graph, Stage
from qir.io import load, to_onnx
from qir.passes import LowerToDyadic
from qir.runtime import Session
from qir.types import Array

KINDS = {"int16": (np.int16, 0), "uint16": (np.uint16, 30000), "shifted": (np.int16, -32768)}


class Qdq:
    """A QDQ model under construction; every activation has 16 bits."""

    def __init__(self, kind: str, seed: int) -> None:
        self.numpy, self.zero = KINDS[kind]
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.constants[name] = np.asarray(value, dtype)
        return name

    def pair(self, x: str, scale: float, out: str | None = None) -> str:
        """Quantized and back."""
        params = [self.constant(f"{x}_s", scale), self.constant(f"{x}_z", self.zero, self.numpy)]
        self.nodes.append(helper.make_node("QuantizeLinear", [x, *params], [f"{x}_q"]))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{x}_q", *params], [out or f"{x}_r"]))
        return out or f"{x}_r"

    def weights(self, name: str, *shape: int, axis: int) -> str:
        ints = self.constant(f"{name}_q", self.rng.integers(-127, 128, size=shape), np.int8)
        n = shape[axis]
        params = [
            self.constant(f"{name}_s", self.rng.uniform(0.002, 0.006, n)),
            self.constant(f"{name}_z", [0] * n, np.int8),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", [ints, *params], [name], axis=axis))
        return name

    def op(self, op: str, inputs: list[str], out: str, **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [out], **attrs))
        return out

    def model(self, shape: list[Any]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(v, n) for n, v in self.constants.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def convolutions(kind: str) -> onnx.ModelProto:
    """Two convolutions with a Relu, padding and a bias too large for one byte's accumulator; pool and classifier."""
    q = Qdq(kind, 0)
    x = q.pair("x", 1e-4)
    bias = q.constant("b", q.rng.normal(size=6, scale=3))
    q.op("Conv", [x, q.weights("w0", 6, 3, 3, 3, axis=0), bias], "c0", pads=[1, 1, 1, 1])
    a = q.pair(q.op("Relu", ["c0"], "r0"), 3e-4)
    q.op("Conv", [a, q.weights("w1", 6, 1, 3, 3, axis=0)], "c1", pads=[1, 1, 1, 1], group=6)
    q.op("GlobalAveragePool", [q.pair("c1", 3e-4)], "p")
    q.op("Flatten", [q.pair("p", 1e-4)], "f")
    m = q.op("MatMul", [q.pair("f", 1e-4), q.weights("w2", 6, 4, axis=1)], "m")
    q.op("Add", [m, q.constant("b2", q.rng.normal(size=4))], "a2")
    q.pair("a2", 2e-4, "y")
    return q.model(["N", 3, 8, 8])


def products(kind: str) -> onnx.ModelProto:
    """x x^T, times x, and an elementwise product of two 16-bit tensors."""
    q = Qdq(kind, 1)
    x = q.pair("x", 1e-4)
    t = q.op("Transpose", [x], "t", perm=[0, 2, 1])
    s = q.pair(q.op("MatMul", [x, t], "xxt"), 1e-3)
    v = q.pair(q.op("MatMul", [s, x], "v"), 3e-3)
    q.pair(q.op("Mul", [v, x], "vx"), 3e-3, "y")
    return q.model(["N", 5, 7])


def long_sums(kind: str) -> onnx.ModelProto:
    """A classifier whose 16-bit sums do not fit int32."""
    q = Qdq(kind, 2)
    q.op(
        "Gemm", [q.pair("x", 1e-4), q.weights("w", 8, 2000, axis=0), q.constant("b", np.arange(8) * 0.1)], "g", transB=1
    )
    q.pair("g", 5e-3, "y")
    return q.model(["N", 2000])


MODELS = {"convolutions": convolutions, "products": products, "long_sums": long_sums}


def feeds(graph: Graph) -> dict[str, Array]:
    rng = np.random.default_rng(9)
    return {"x": rng.uniform(-2, 2, size=(3, *map(int, graph.inputs[0].shape[1:]))).astype(np.float32)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_sixteen_bits_are_two_bytes(name: str, kind: str) -> None:
    graph = load(MODELS[name](kind))
    integer, _ = LowerToDyadic().apply(graph)
    assert integer.stage is Stage.INTEGER
    x = feeds(integer)
    mine = Session(integer, backend="reference").run(x)["y"]
    theirs = Session(graph, backend="reference").run(x)["y"]
    end = integer.outputs[0].producer
    assert end is not None
    error = np.abs(mine - theirs).max() / float(end.input(1).array())
    assert error <= {"convolutions": 2, "products": 40, "long_sums": 2}[name]  # steps of 16 bits
    for backend in ("onnxruntime", "cpu"):
        assert np.array_equal(mine, Session(integer, backend=backend).run(x)["y"]), backend
    again = load(to_onnx(integer))
    assert np.array_equal(mine, Session(again, backend="reference").run(x)["y"])


@pytest.mark.skipif(not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["convolutions", "products"])
def test_sixteen_bits_on_the_emulated_gpu(name: str) -> None:
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    integer, _ = LowerToDyadic().apply(load(MODELS[name]("uint16")))
    x = feeds(integer)
    mine = Session(integer, "cuda", device=EmulatedDevice(1)).run(x)["y"]
    assert np.array_equal(mine, Session(integer, backend="reference").run(x)["y"])
