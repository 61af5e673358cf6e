"""What cannot become integers is said before calibration, all of it at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import helper as oh

import qir
from qir.errors import LoweringError, RefusedError, UnsupportedError


def model(nodes: list[onnx.NodeProto], x: list[int | str], *, opset: int = 17) -> onnx.ModelProto:
    """x -> nodes -> y, both float32."""
    value = oh.make_tensor_value_info
    graph = oh.make_graph(
        nodes, "g", [value("x", onnx.TensorProto.FLOAT, x)], [value("y", onnx.TensorProto.FLOAT, None)]
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset), oh.make_opsetid("acme", 1)])


def never() -> Iterator[np.ndarray]:
    """Calibration data that must not be asked for."""
    raise AssertionError("calibrated")
    yield


def test_all_operators_that_are_missing_are_named_at_once() -> None:
    proto = model(
        [
            oh.make_node("MyOp", ["x"], ["a"], name="first", domain="acme"),
            oh.make_node("Relu", ["a"], ["b"]),
            oh.make_node("Bernoulli", ["b"], ["c"], name="behind"),
            oh.make_node("Bernoulli", ["x"], ["d"], name="beside"),
            oh.make_node("Add", ["c", "d"], ["y"]),
        ],
        ["N", 4],
    )
    with pytest.raises(RefusedError) as caught:
        qir.load(proto)
    assert [e.where for e in caught.value.refusals] == [
        "acme.MyOp node 'first'", "Bernoulli node 'behind'", "Bernoulli node 'beside'",
    ]  # fmt: skip
    assert "Bernoulli node 'behind' and 1 more: operator 'Bernoulli' is not supported" in str(caught.value)
    assert isinstance(caught.value, UnsupportedError)


def test_what_cannot_be_lowered_is_said_before_calibration_and_all_of_it() -> None:
    proto = model(
        [
            oh.make_node("LogSoftmax", ["x"], ["a"], name="one"),
            oh.make_node("Relu", ["a"], ["b"]),
            oh.make_node("LogSoftmax", ["b"], ["c"], name="two"),
            oh.make_node("Neg", ["c"], ["d"]),
            oh.make_node("ReduceProd", ["d"], ["y"], name="three"),
        ],
        ["N", 4],
    )
    with pytest.raises(RefusedError, match="3 nodes cannot become integers") as caught:
        qir.quantize(proto, never())
    assert [e.where for e in caught.value.refusals] == [
        "LogSoftmax node 'one'", "LogSoftmax node 'two'", "ReduceProd node 'three'",
    ]  # fmt: skip
    assert "LogSoftmax node 'one' and 1 more: has no integer form" in str(caught.value)


def test_one_refusal_is_raised_as_it_is() -> None:
    with pytest.raises(LoweringError, match="LogSoftmax node 'one': has no integer form") as caught:
        qir.quantize(model([oh.make_node("LogSoftmax", ["x"], ["y"], name="one")], ["N", 4]), never())
    assert type(caught.value) is LoweringError


def test_many_refusals_are_counted() -> None:
    kinds = ["Bernoulli", "Det", "Multinomial", "Unique", "NonZero"]
    error = RefusedError([UnsupportedError(f"no {i}", where=f"{k} node 'n{i}'") for k in kinds for i in range(10)])
    assert len(error.refusals) == 50 and str(error).count("\n") == RefusedError.SHOWN + 1
    assert str(error).endswith("and 30 more")
