"""The standard-ONNX bodies of structural operators in onnx.reference, in both opset profiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.reference
import pytest

from qir import DType, Graph, Stage, TensorType
from qir.io import to_onnx
from qir.ops import op_of

SUM = {"kernel_shape": [3, 2], "strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 1, 2], "pad_value": -7}
COVER = {"kernel_shape": [6, 5], "strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0], "pad_value": 0}
TAPS = [np.asarray([0, 0, 2]), np.asarray([1, 3, 4]), np.asarray([5, 6, 0], np.int32), np.asarray([3, 2, 8], np.int32)]

CASES: list[tuple[str, str, list[Any], dict[str, Any]]] = [
    ("qir.SumPool", "int8", [], SUM),
    ("qir.SumPool", "uint8", [], COVER),
    ("qir.SumPool", "int16", [], SUM),
    ("qir.ReduceSum", "uint8", [], {"axes": [1, 3], "keepdims": 0}),
    ("qir.ReduceSum", "int16", [], {"axes": [2, 3], "keepdims": 1}),
    ("qir.Interpolate", "uint8", TAPS, {"axis": 3}),
    ("qir.Interpolate", "int16", TAPS, {"axis": 2}),
    ("MaxPool", "int16", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", "uint16", [], {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER"}),
]


@pytest.mark.parametrize("opset", [21, 28])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[1]}")
def test_body_in_onnx_reference(case: Any, opset: int) -> None:
    op, kind, rest, attrs = case
    dtype = DType(kind)
    rng = np.random.default_rng(1)
    x = rng.integers(dtype.lo, dtype.hi + 1, size=(2, 3, 6, 5)).astype(dtype.numpy)
    g = Graph(stage=Stage.INTEGER)
    value = g.add_input("x", TensorType(dtype, ("N", 3, 6, 5)))
    constants = [g.add_constant("c", c) for c in rest]
    node = g.add_node(op, [value, *constants], attrs, outputs=["y"])
    g.set_outputs([node.output])
    (want,) = op_of(op).reference(node.attrs, x, *rest)
    (got,) = map(np.asarray, onnx.reference.ReferenceEvaluator(to_onnx(g, opset)).run(None, {"x": x}))
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)
    bodies = [n.op_type for f in to_onnx(g, opset).functions for n in f.node]
    assert bodies and "Div" not in bodies
