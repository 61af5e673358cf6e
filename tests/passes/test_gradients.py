"""Every operator's gradient against central differences in float64."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from qir.errors import GraphError, UnsupportedError
from qir.graph import Graph
from qir.ops import REGISTRY
from qir.passes.gradients.gradient_rules import DERIVATIVES, RULES
from qir.passes.gradients.tape import Tape
from qir.types import Array, DType, TensorType


@dataclass(frozen=True)
class Case:
    """op on float inputs of `shapes` (differentiated, all of them) and constants in the places `consts` names."""

    op: str
    shapes: Sequence[Sequence[int]]
    attrs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    consts: Mapping[int, Any] = field(default_factory=dict[int, Any])
    outputs: int = 1
    lo: float = -3.0
    hi: float = 3.0

    def __str__(self) -> str:
        return f"{self.op}-{self.shapes}-{self.attrs}"


def i64(*values: int) -> Array:
    return np.asarray(values, np.int64)


X = (2, 4, 5, 6)
CASES = [
    *(Case(op, [(3, 7)], lo=0.2 if op in ("Log", "Sqrt", "Reciprocal") else -3.0) for op in DERIVATIVES),
    Case("Gelu", [(3, 7)], {"approximate": "tanh"}), Case("Swish", [(3, 7)], {"alpha": 1.7}),
    Case("Celu", [(3, 7)], {"alpha": 0.6}), Case("Elu", [(3, 7)], {"alpha": 0.6}),
    *(Case(op, [(2, 3, 4), (3, 1)]) for op in ("Add", "Sub", "Mul")),
    Case("Div", [(2, 3), (3,)], lo=0.5), Case("Pow", [(2, 3), (3,)], lo=0.5), Case("PRelu", [(2, 3, 4), (3, 1)]),
    *(Case(op, [(2, 3), (3,), (1, 1)]) for op in ("Sum", "Mean", "Max", "Min")),
    Case("Clip", [(4, 5)], consts={1: np.float64(-1.2), 2: np.float64(1.4)}), Case("Clip", [(4, 5), (), ()], lo=-1.0),
    Case("Where", [(2, 3), (3,)], consts={0: np.array([[True, False, True], [False, False, True]])}),
    Case("Softmax", [(2, 3, 4)], {"axis": 1}),
    Case("MaskedSoftmax", [(2, 3, 4)], {}, {1: np.array([[True, False, True, True], [False] * 4, [False, True] * 2])}),
    Case("LogSoftmax", [(2, 5)], {"axis": -1}),
    Case("MatMul", [(2, 3, 4), (4, 5)]), Case("MatMul", [(2, 3, 4), (2, 4, 5)]), Case("MatMul", [(4,), (4, 5)]),
    Case("MatMul", [(3, 4), (4,)]), Case("MatMul", [(1, 3, 4), (2, 4, 2)]),
    Case("Gemm", [(3, 4), (5, 4), (5,)], {"transB": 1, "alpha": 0.7, "beta": 1.3}),
    Case("Gemm", [(4, 3), (4, 5)], {"transA": 1}),
    Case("BatchNormalization", [(2, 3, 4), (3,), (3,), (3,), (3,)], {"epsilon": 1e-2}, lo=0.3),
    Case("LayerNormalization", [(2, 3, 4), (4,), (4,)], {"epsilon": 1e-2}),
    Case("LayerNormalization", [(2, 3, 4), (3, 4)], {"epsilon": 1e-2, "axis": 1}),
    Case("RMSNormalization", [(2, 3, 4), (4,)], {"epsilon": 1e-2}), Case("LpNormalization", [(3, 5)]),
    Case("LpNormalization", [(3, 5)], {"axis": 0, "p": 1}), Case("ReduceL2", [(2, 3, 4)], consts={1: i64(2, 0)}),
    Case("InstanceNormalization", [(2, 3, 4), (3,), (3,)], {"epsilon": 1e-2}),
    Case("GroupNormalization", [(2, 4, 3), (4,), (4,)], {"epsilon": 1e-2, "num_groups": 2}),
    *(Case(op, [(2, 3, 4)], consts={1: i64(2, 0)}) for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")),
    Case("ReduceMean", [(2, 3, 4)], {"keepdims": 0}, {1: i64(-1)}), Case("ReduceProd", [(2, 3, 4)], {}, {1: i64(0, 2)}),
    Case("Conv", [X, (6, 4, 3, 3), (6,)], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    Case("Conv", [X, (6, 2, 2, 3)], {"group": 2, "dilations": [2, 1], "auto_pad": "SAME_UPPER"}),
    Case("Conv", [X, (4, 1, 3, 3)], {"group": 4, "pads": [1, 1, 1, 1]}), Case("Conv", [(2, 3, 9), (4, 3, 3)]),
    Case("ConvTranspose", [X, (4, 3, 3, 3), (3,)], {"strides": [2, 3], "pads": [1, 0, 1, 2]}),
    Case("ConvTranspose", [X, (4, 2, 3, 2)], {"group": 2, "strides": [3, 2], "output_padding": [2, 1]}),
    Case("ConvTranspose", [X, (4, 2, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("ConvTranspose", [X, (4, 2, 3, 3)], {"dilations": [2, 1]}),
    Case("AveragePool", [X], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    Case("AveragePool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "count_include_pad": 1}),
    Case("AveragePool", [X], {"kernel_shape": [2, 4], "strides": [2, 3], "ceil_mode": 1}),
    Case("MaxPool", [X], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
    Case("MaxPool", [X], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    Case("GlobalAveragePool", [X]), Case("GlobalMaxPool", [X]),
    Case("Resize", [(1, 2, 3, 4)], {"mode": "linear"}, {1: None, 2: None, 3: i64(1, 2, 7, 5)}),
    Case("Resize", [(1, 2, 3, 4)], {"mode": "nearest"}, {1: None, 2: np.asarray([1, 1, 2, 1.5], np.float32)}),
    Case("Resize", [(1, 2, 4, 5)], {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
         {1: None, 2: None, 3: i64(1, 2, 2, 3)}),
    Case("DepthToSpace", [(1, 8, 2, 3)], {"blocksize": 2}), Case("SpaceToDepth", [(1, 2, 4, 6)], {"blocksize": 2}),
    Case("Expand", [(3, 1)], consts={1: i64(2, 3, 4)}), Case("Tile", [(2, 3)], consts={1: i64(2, 2)}),
    Case("Gather", [(4, 3)], {"axis": 0}, {1: i64(2, 0, 2, -1)}), Case("Transpose", [(2, 3, 4)], {"perm": [2, 0, 1]}),
    Case("Pad", [(2, 3)], consts={1: i64(1, -1, 0, 2)}),
    Case("Pad", [(2, 4)], {"mode": "reflect"}, {1: i64(0, 2, 1, 1)}),
    Case("Slice", [(5, 6)], consts={1: i64(4, 1), 2: i64(0, 9), 3: i64(0, 1), 4: i64(-2, 2)}),
    Case("Split", [(6, 2)], {"axis": 0}, {1: i64(2, 4)}, outputs=2), Case("Concat", [(2, 3), (2, 1)], {"axis": 1}),
    Case("Flatten", [(2, 3, 4)], {"axis": 2}), Case("Reshape", [(2, 6)], consts={1: i64(3, -1)}),
    Case("Squeeze", [(2, 1, 3)], consts={1: i64(1)}), Case("Unsqueeze", [(2, 3)], consts={1: i64(0, 3)}),
    Case("Identity", [(2, 3)]), Case("Dropout", [(2, 3)]),
    Case("TopK", [(3, 6)], {"axis": -1}, {1: i64(2)}, outputs=2),
]  # fmt: skip


def build(case: Case, rng: np.random.Generator) -> tuple[Graph, dict[str, Array]]:
    """A graph of the one node, and float64 feeds spaced so that no kink lies within the differences' step."""
    graph = Graph()
    inputs: list[Any] = []
    feeds: dict[str, Array] = {}
    shapes = list(case.shapes)
    for place in range(len(shapes) + len(case.consts)):
        if place in case.consts:
            data = case.consts[place]
            if data is not None:
                data = np.asarray(data)
                data = data.astype(np.float32) if data.dtype == np.float64 else data
            inputs.append(None if data is None else graph.add_constant(f"c{place}", data))
            continue
        shape = tuple(shapes.pop(0))
        inputs.append(graph.add_input(f"x{place}", TensorType(DType.FLOAT32, shape)))
        count = int(np.prod(shape, dtype=int))
        spread = np.linspace(case.lo, case.hi, max(count, 2))[:count] + 0.3 * (case.hi - case.lo) / max(count, 2) / 2
        feeds[f"x{place}"] = (rng.permutation(spread) + 0.0137 * place).reshape(shape)
    if case.op == "Clip" and len(case.shapes) == 3:
        feeds["x1"], feeds["x2"] = np.asarray(-0.41), np.asarray(0.83)
    node = graph.add_node(case.op, inputs, case.attrs, outputs=[f"y{i}" for i in range(case.outputs)])
    graph.set_outputs(node.outputs)
    return graph, feeds


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_is_what_finite_differences_say(case: Case) -> None:
    if case.op not in REGISTRY:
        pytest.skip(f"there is no operator {case.op}")
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    graph, feeds = build(case, rng)
    tape = Tape(graph, np.float64)
    outputs = tape.forward(feeds)
    seeds = {k: rng.standard_normal(v.shape) for k, v in outputs.items() if v.dtype.kind == "f"}
    grads = tape.backward(seeds, feeds)

    def loss(values: Mapping[str, Array]) -> float:
        found = Tape(graph, np.float64).forward(values)
        return sum(float((found[k] * s).sum()) for k, s in seeds.items())

    step = 1e-6
    for name, x in feeds.items():
        assert grads[name].shape == x.shape
        for i in rng.permutation(x.size)[:24]:
            ends: list[float] = []
            for sign in (1, -1):
                moved = x.copy()
                moved.reshape(-1)[i] += sign * step
                ends.append(loss({**feeds, name: moved}))
            numeric = (ends[0] - ends[1]) / (2 * step)
            assert grads[name].reshape(-1)[i] == pytest.approx(numeric, rel=2e-5, abs=2e-5), (name, int(i))


def test_every_float_operator_has_a_gradient_or_none_by_nature() -> None:
    floats = {name for name in REGISTRY if not name.startswith("qir.")}
    assert floats - set(RULES) - {n for n, op in REGISTRY.items() if op.flat} == set()
    tested = {case.op for case in CASES} | {"QuantizeLinear", "DequantizeLinear"}
    assert (floats & set(RULES)) - tested == set()


def small_net(rng: np.random.Generator) -> Graph:
    """Two branches that meet again, so that gradients add up."""
    w = rng.standard_normal
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.FLOAT32, ("N", 2, 6, 6)))
    a = graph.add_constant("a", w((3, 2, 3, 3)).astype(np.float32))
    b = graph.add_constant("b", w((3, 3, 1, 1)).astype(np.float32))
    stem = graph.add_node("Tanh", [graph.add_node("Conv", [x, a], outputs=["c0"]).output], outputs=["t0"]).output
    side = graph.add_node("Sigmoid", [graph.add_node("Conv", [stem, b], outputs=["c1"]).output], outputs=["s"]).output
    joined = graph.add_node("Add", [stem, side], outputs=["sum"]).output
    graph.set_outputs([graph.add_node("GlobalAveragePool", [joined], outputs=["y"]).output])
    return graph


def test_gradients_of_parameters_add_up_over_branches() -> None:
    rng = np.random.default_rng(8)
    graph = small_net(rng)
    x, seed = rng.standard_normal((3, 2, 6, 6)), rng.standard_normal((3, 3, 1, 1))
    tape = Tape(graph, np.float64)
    tape.forward({"x": x})
    found = tape.backward({"y": seed}, ["a", "b", "x"])
    for name in ("a", "b"):
        w = graph.value(name).array().astype(np.float64)
        v = rng.standard_normal(w.shape)
        ends = [Tape(graph, np.float64).forward({"x": x}, {name: w + s * 1e-6 * v})["y"] for s in (1, -1)]
        assert float(((ends[0] - ends[1]) * seed).sum() / 2e-6) == pytest.approx(
            float((found[name] * v).sum()), rel=1e-6
        )
    single = tape.backward({"y": seed}, ["b"])
    assert set(single) == {"b"}
    np.testing.assert_array_equal(single["b"], found["b"])


def test_errors() -> None:
    graph = small_net(np.random.default_rng(1))
    with pytest.raises(GraphError, match="not fed"):
        Tape(graph).forward({})
    with pytest.raises(GraphError, match="no value"):
        Tape(graph).forward({"z": np.zeros(1)})
    backup = RULES.pop("Tanh")
    try:
        tape = Tape(graph)
        y = tape.forward({"x": np.zeros((1, 2, 6, 6), np.float32)})["y"]
        with pytest.raises(UnsupportedError, match="Tanh has no gradient"):
            tape.backward({"y": y}, ["a"])
    finally:
        RULES["Tanh"] = backup


def test_quantizers_are_straight_through() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.FLOAT32, (5,)))
    scale, zero = graph.add_constant("s", np.asarray(0.1, np.float32)), graph.add_constant("z", np.asarray(3, np.uint8))
    q = graph.add_node("QuantizeLinear", [x, scale, zero]).output
    graph.set_outputs([graph.add_node("DequantizeLinear", [q, scale, zero], outputs=["y"]).output])
    tape = Tape(graph, np.float64)
    tape.forward({"x": np.array([-1.0, -0.3, 0.0, 2.0, 26.0])})
    found = tape.backward({"y": np.ones(5)}, ["x"])["x"]
    np.testing.assert_allclose(found, [0, 1, 1, 1, 0])
