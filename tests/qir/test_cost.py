"""Multiply-accumulates, bits and bytes, counted by hand."""

from __future__ import annotations

import numpy as np

from qir import DType, Graph, QuantParams, TensorType, cost


def test_convolution_float_and_qdq() -> None:
    g = Graph("net")
    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 4, 8, 8)))
    w = g.add_constant("w", np.zeros((6, 2, 3, 3), np.float32))
    y = g.add_node("Conv", [x, w], {"group": 2, "pads": [1, 1, 1, 1]}, outputs=["y"]).output
    q = g.add_constant("wq", np.zeros((6, 2, 1, 1), np.int8), DType.INT4)
    s = g.add_constant("s", np.asarray(0.1, np.float32))
    z = g.add_constant("z", np.asarray(0, np.int8), DType.INT4)
    dq = g.add_node("DequantizeLinear", [q, s, z]).output
    v = g.add_node("Conv", [x, dq], {"group": 2}, outputs=["v"]).output
    g.set_outputs([y, v])
    one, two = cost.layer_costs(g)
    assert (one.output, one.macs, one.weights) == ("y", 6 * 8 * 8 * 2 * 9, 6 * 2 * 9)
    assert (one.weight_bits, one.activation_bits, one.bops) == (32, 32, one.macs * 1024)
    assert (two.macs, two.weights, two.weight_bits, two.activation_bits) == (6 * 8 * 8 * 2, 12, 4, 32)
    assert cost.constants_by_dtype(g)["int4"] == (13, 7)  # two to a byte, each constant for itself
    assert cost.macs(dq.producer) == 0 if dq.producer else False


def test_integer_convolution() -> None:
    g = Graph("net")
    quant = QuantParams.make(0.5, 3, DType.UINT8)
    x = g.add_input("x", TensorType(DType.UINT8, ("N", 3, 9), quant))
    w = g.add_constant("w", np.zeros((5, 3, 2), np.int8))
    attrs = {"strides": [2], "pads": [0, 0], "dilations": [1], "pad_value": [3]}
    g.set_outputs([g.add_node("qir.Conv", [x, w], attrs, outputs=["acc"]).output])
    (one,) = cost.layer_costs(g)
    assert (one.macs, one.bops) == (5 * 4 * 3 * 2, 5 * 4 * 3 * 2 * 64)
