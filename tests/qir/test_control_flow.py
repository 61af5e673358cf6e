"""If and Loop that fold away with constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper as oh

import qir
from qir.errors import UnsupportedError
from qir.runtime import Session

FLOAT, INT64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL
X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def info(name: str, kind: int = FLOAT, shape: Any = None) -> onnx.ValueInfoProto:
    return oh.make_tensor_value_info(name, kind, shape)


def tensor(name: str, value: Any) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(value), name)


def model(nodes: list[Any], constants: list[Any], inputs: list[Any] | None = None, opset: int = 17) -> Any:
    graph = oh.make_graph(nodes, "g", [info("x", FLOAT, ["N", 4]), *(inputs or [])], [info("y")], constants)
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=9)


def check(proto: Any) -> qir.Graph:
    want: Any
    (want,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": X})
    before = proto.SerializeToString()
    graph = qir.load(proto)
    assert proto.SerializeToString() == before
    np.testing.assert_allclose(Session(graph, "reference").run({"x": X})["y"], want, rtol=1e-6, atol=1e-6)
    return graph


def branches(inner: str = "h") -> dict[str, Any]:
    """then: h = x + w, relu(h); else: the outer tensor x."""
    then = oh.make_graph(
        [oh.make_node("Add", ["x", "w"], [inner]), oh.make_node("Relu", [inner], ["t"])], "then", [], [info("t")],
        [tensor("w", np.float32(0.25))],
    )  # fmt: skip
    return {
        "then_branch": then,
        "else_branch": oh.make_graph([oh.make_node("Identity", ["x"], ["e"])], "else", [], [info("e")]),
    }


@pytest.mark.parametrize("taken", [True, False])
def test_a_constant_condition(taken: bool) -> None:
    proto = model([oh.make_node("If", ["c"], ["y"], **branches())], [tensor("c", taken)])
    assert [n.op for n in check(proto).nodes] == (["Add", "Relu"] if taken else ["Identity"])


def test_names_of_a_branch_are_its_own() -> None:
    """`h` and `w` are outside, too; two Ifs have the same branch."""
    nodes = [
        oh.make_node("Constant", [], ["c"], value=tensor("", True)),
        oh.make_node("If", ["c"], ["a"], **branches()),
        oh.make_node("If", ["c"], ["b"], **branches()),
        oh.make_node("Add", ["a", "b"], ["h0"]),
        oh.make_node("Mul", ["h0", "w0"], ["y"]),
    ]
    check(model(nodes, [tensor("w0", np.float32(3.0))]))


def body(scan: bool, nested: bool = False) -> Any:
    """v' = v w + i; scan output: v'."""
    nodes = [
        oh.make_node("Identity", ["going"], ["go"]),
        oh.make_node("Cast", ["i"], ["real"], to=FLOAT),
        oh.make_node("Mul", ["v", "w"], ["m"]),
        oh.make_node("Add", ["m", "real"], ["v2"]),
    ]
    if nested:
        inner = oh.make_graph([oh.make_node("Neg", ["v"], ["neg"])], "then", [], [info("neg")])
        nodes[2] = oh.make_node("If", ["yes"], ["m"], then_branch=inner, else_branch=inner)
    outputs = [info("go", BOOL, []), info("v2")] + [info("row")] * scan
    if scan:
        nodes.append(oh.make_node("Abs", ["v2"], ["row"]))
    return oh.make_graph(nodes, "body", [info("i", INT64, []), info("going", BOOL, []), info("v")], outputs)


CONSTANTS = [
    tensor("n", np.int64(3)),
    tensor("go0", True),
    tensor("w", np.full(4, 0.5, np.float32)),
    tensor("yes", np.asarray(True)),
]


@pytest.mark.parametrize("condition", ["go0", ""])
@pytest.mark.parametrize("nested", [False, True])
def test_a_loop_of_constant_length(condition: str, nested: bool) -> None:
    loop = oh.make_node("Loop", ["n", condition, "x"], ["y"], body=body(False, nested))
    assert sum(n.op == "Add" for n in check(model([loop], CONSTANTS)).nodes) == 3


@pytest.mark.parametrize("opset", [11, 17])
def test_rows_of_a_loop(opset: int) -> None:
    loop = oh.make_node("Loop", ["n", "go0", "x"], ["last", "rows"], body=body(True))
    check(model([loop, oh.make_node("Add", ["rows", "last"], ["y"])], CONSTANTS, opset=opset))


def test_a_condition_that_is_fed_is_refused() -> None:
    proto = model([oh.make_node("If", ["c"], ["y"], **branches())], [], [info("c", BOOL, [])])
    with pytest.raises(UnsupportedError, match="control flow"):
        qir.load(proto)


def test_a_loop_that_is_too_long_is_refused() -> None:
    loop = oh.make_node("Loop", ["n", "go0", "x"], ["y"], body=body(False))
    with pytest.raises(UnsupportedError, match="more than 100,000 nodes"):
        qir.load(model([loop], [tensor("n", np.int64(1 << 40)), *CONSTANTS[1:]]))
