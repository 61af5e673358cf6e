"""Attributes and operands of every kind: what is not plainly one of the allowed values is refused, naming the node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qir
from qir.errors import ModelError, QirError, TypeInferenceError, VerifyError
from qir.graph import Graph
from qir.ops import REGISTRY
from qir.ops.attributes import TAKES, taken
from qir.types import DType, TensorType
from qir.verify import verify


def test_every_attribute_of_every_operator_has_a_kind() -> None:
    names = {key for op in REGISTRY.values() for key in op.attrs}
    assert names == set(TAKES)


@pytest.mark.parametrize("op", [op for op in REGISTRY.values() if op.is_integer_op], ids=lambda op: op.name)
def test_every_input_of_an_integer_operator_has_a_kind(op: Any) -> None:
    assert set(op.operands) == {word.rstrip("?") for word in op.inputs.split()}


def test_defaults_are_allowed() -> None:
    for op in REGISTRY.values():
        for key, default in op.attrs.items():
            if default is not None and repr(default) != "REQUIRED":
                assert taken(key, default) == default


WRONG: list[tuple[str, Any]] = [
    ("keepdims", 1 << 62), ("keepdims", 2), ("keepdims", -1), ("keepdims", 1.0), ("keepdims", "1"), ("ceil_mode", []),
    ("axis", 1.5), ("axis", []), ("axis", None), ("group", 0), ("group", 1 << 40), ("strides", [0, 1]), ("strides", 1),
    ("pads", [-1, 0]), ("pads", "ab"), ("dilations", [1 << 40]), ("alpha", float("nan")), ("alpha", ""), ("alpha", [1]),
    ("epsilon", float("inf")), ("auto_pad", "SAME"), ("auto_pad", 3), ("approximate", ""), ("mode", 1), ("shift", 0),
    ("shift", 63), ("multiplier", 1 << 40), ("zero_point", 0.5), ("dtype", "int5"), ("to", []), ("value", 3),
    ("block_size", -16), ("pad_value", []), ("pad_value", ["a"]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG, ids=str)
def test_wrong_values_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"attribute '{key}' is .* expected"):
        taken(key, value)


def pooled(*extra: onnx.AttributeProto) -> onnx.ModelProto:
    """A ReduceMax of opset 18 over uint8, with further attributes."""
    node = helper.make_node("ReduceMax", ["x", "axes"], ["y"], name="largest", keepdims=1)
    node.attribute.extend(extra)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.UINT8, ["N", 4, 3])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_an_attribute_given_twice() -> None:
    """The last one counts to onnxruntime, the first to others: executors gave tensors of other shapes."""
    with pytest.raises(ModelError, match=r"ReduceMax node 'largest': attribute 'keepdims' is given twice"):
        qir.load(pooled(helper.make_attribute("keepdims", 0)))


def test_a_flag_that_is_none() -> None:
    model = pooled()
    model.graph.node[0].attribute[0].i = 1 << 62
    with pytest.raises(ModelError, match=r"node 'largest': attribute 'keepdims' is 4611686018427387904, 0 or 1"):
        qir.load(model)


def test_an_attribute_of_no_function() -> None:
    reference = onnx.AttributeProto(name="noop_with_empty_axes", ref_attr_name="k", type=onnx.AttributeProto.INT)
    with pytest.raises(ModelError, match="is one of a function's, but this is none"):
        qir.load(pooled(reference))


def test_biases_have_one_number_a_channel() -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(DType.FLOAT32, ("N", 2, 4, 4)))
    w, b = graph.add_constant("w", np.ones((3, 2, 1, 1), np.float32)), graph.add_constant("b", np.ones(2, np.float32))
    with pytest.raises(TypeInferenceError, match=r"bias float32\[2\] for 3 channels"):
        graph.add_node("Conv", [x, w, b])


def node_of(graph: Graph, op: str) -> Any:
    return next(n for n in graph.nodes if n.op == op)


def replaced(graph: Graph, op: str, index: int, change: Callable[[Any], Any], dtype: DType | None = None) -> None:
    node = node_of(graph, op)
    old = node.input(index)
    graph.set_input(node, index, graph.add_constant(f"{old.name}.wrong", change(old.array()), dtype))


BROKEN: list[tuple[str, Callable[[Graph], Any], str]] = [
    ("weights in 16 bits", lambda g: replaced(g, "qir.Conv", 1, lambda a: a.astype(np.int16)), "at most 8 bits"),
    ("a multiplier in float", lambda g: replaced(g, "qir.Requantize", 1, lambda a: a.astype(np.float32)), "int32 exp"),
    ("a shift in int64", lambda g: replaced(g, "qir.Requantize", 2, lambda a: a.astype(np.int64)), "int32 expected"),
    ("a bias too short", lambda g: replaced(g, "qir.Conv", 2, lambda a: a[:1]), "for 4 channels"),
    ("a zero point outside", lambda g: node_of(g, "qir.Requantize").attrs.update(zero_point=256), "256 is outside"),
    ("strides left out", lambda g: node_of(g, "qir.Conv").attrs.update(strides=[]), "not empty expected"),
    ("two pad values", lambda g: node_of(g, "qir.Conv").attrs.update(pad_value=[3, 3]), "or one for each"),
]


@pytest.mark.parametrize(("change", "message"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_verify_knows_what_operands_may_be(two_convs: Any, change: Callable[[Graph], Any], message: str) -> None:
    graph: Graph = two_convs()
    verify(graph)
    change(graph)
    with pytest.raises(VerifyError, match=message):
        verify(graph)


def test_tables_of_a_softmax(two_convs: Any) -> None:
    from qir.ops.integer_softmax import exp_table, reciprocal_table

    for change in ("exp", "reciprocal", None):
        graph: Graph = two_convs()
        x = graph.value("c1")
        tables = {"exp": exp_table(0.1), "reciprocal": reciprocal_table()}
        if change:
            tables[change] = tables[change] * -3
        constants = [graph.add_constant(n, t) for n, t in tables.items()]
        made = graph.add_node("qir.Softmax", [x, *constants], {"axis": 1, "zero_point": 0, "dtype": "uint8"})
        graph.set_outputs([made.output])
        graph.prune()
        if change is None:
            verify(graph)
            continue
        with pytest.raises(QirError, match=f"table '{change}' leaves"):
            verify(graph)


def test_limits_of_a_clip_that_are_no_scalars() -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(DType.FLOAT32, ("N", 2)))
    for low, never in (([0.0, 1.0], True), ([0.0, -1.0], False)):
        limit = graph.add_constant("low", np.asarray(low, np.float32))
        assert REGISTRY["Clip"].never_negative(graph.add_node("Clip", [x, limit])) is never
