"""Gemm, MatMul, Conv and ConvTranspose: float meaning and integer forms, in all variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qir import DType, Graph, QuantParams, Stage, TensorType
from qir.types import Array

RNG = np.random.default_rng(20)
U8 = QuantParams.make(0.03, 120, DType.UINT8)
OUT = QuantParams.make(0.06, 128, DType.UINT8)


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (1,), (7,), (5, 1), (5, 7)])
def test_gemm(agree_with_onnxruntime: Callable[..., None], trans_a: int, trans_b: int, bias: Any) -> None:
    a, b = normal(*((4, 5) if trans_a else (5, 4))), normal(*((7, 4) if trans_b else (4, 7)))
    inputs = [a, b] if bias is None else [a, b, normal(*bias)]
    agree_with_onnxruntime("Gemm", inputs, {"transA": trans_a, "transB": trans_b, "alpha": 0.7, "beta": 1.3})


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((2, 3, 4), (2, 4, 5)),
        ((1, 3, 4), (6, 4, 5)),
    ],
)  # fmt: skip
def test_matmul(agree_with_onnxruntime: Callable[..., None], a: Any, b: Any) -> None:
    for feeds in (1, 2):
        agree_with_onnxruntime("MatMul", [normal(*a), normal(*b)], {}, feeds=feeds)


TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 7), (3, 4, 3), {}),
    ((2, 3, 7), (3, 4, 3), {"strides": [2], "pads": [1, 0], "output_padding": [1]}),
    ((1, 4, 5, 6), (4, 2, 3, 2), {"group": 2, "strides": [2, 3]}),
    ((1, 4, 5, 6), (4, 1, 3, 3), {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ((1, 3, 4, 4), (3, 2, 3, 3), {"dilations": [2, 1], "strides": [1, 2], "pads": [1, 0, 2, 1]}),
    ((1, 3, 4, 4), (3, 2, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 3, 4, 4), (3, 2, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 3, 4, 4), (3, 2, 2, 2), {"strides": [3, 2], "auto_pad": "VALID"}),
    ((1, 3, 4, 5), (3, 2, 3, 3), {"strides": [2, 2], "output_shape": [8, 10]}),
    ((1, 3, 4, 5), (3, 2, 1, 1), {"strides": [2, 2]}),
]


@pytest.mark.parametrize(("x", "w", "attrs"), TRANSPOSED)
def test_conv_transpose(agree_with_onnxruntime: Callable[..., None], x: Any, w: Any, attrs: dict[str, Any]) -> None:
    agree_with_onnxruntime("ConvTranspose", [normal(*x), normal(*w)], attrs, tol=1e-4)
    channels = w[1] * attrs.get("group", 1)
    agree_with_onnxruntime("ConvTranspose", [normal(*x), normal(*w), normal(channels)], attrs, tol=1e-4)


@pytest.fixture
def weighted(quantize_dequantize: Callable[..., Any], check_lowering: Callable[..., Graph]) -> Callable[..., Graph]:
    """Checks a linear node on quantized weights: per tensor, per channel, int8, uint8 with a zero point, int4."""

    def check(op: str, x: Array, w: Array, attrs: dict[str, Any], q: QuantParams, bias: Array | None = None) -> Graph:
        g = Graph(op, Stage.QDQ)
        feed = g.add_input("x0", TensorType(DType.FLOAT32, ("N", *x.shape[1:])))
        ints = g.add_constant("w.q", q.quantize(w), q.dtype)
        scale = np.asarray(q.scale if q.per_channel else q.scale[0], np.float32)
        zero = np.asarray(q.zero_point if q.per_channel else q.zero_point[0], q.dtype.numpy)
        numbers = [g.add_constant("w.s", scale), g.add_constant("w.z", zero, q.dtype)]
        axis = {} if q.axis is None else {"axis": q.axis}
        real = g.add_node("DequantizeLinear", [ints, *numbers], axis).output
        extra = [] if bias is None else [g.add_constant("bias", bias)]
        y = g.add_node(op, [quantize_dequantize(g, feed, U8), real, *extra], attrs, outputs=["y"]).output
        g.set_outputs([quantize_dequantize(g, y, OUT)])
        return check_lowering(g, {"x0": x}, [OUT])

    return check


def grids(channels: int, axis: int) -> list[QuantParams]:
    scales = RNG.uniform(0.002, 0.02, channels)
    return [
        QuantParams.make(0.01, 0, DType.INT8), QuantParams.make(scales, [0] * channels, DType.INT8, axis),
        QuantParams.make(0.015, 119, DType.UINT8), QuantParams.make(0.2, 0, DType.INT4),
        QuantParams.make(scales * 16, [0] * channels, DType.INT4, axis),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize("trans_b", [0, 1])
def test_integer_gemm(weighted: Callable[..., Graph], trans_b: int, kind: int) -> None:
    x, w = normal(6, 9), normal(9, 5) * 0.5
    q = grids(5, 0 if trans_b else 1)[kind]
    graph = weighted("Gemm", x, w.T.copy() if trans_b else w, {"transB": trans_b, "beta": 2.0}, q, normal(5))
    assert any(n.op == "qir.MatMul" for n in graph.nodes)


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize("shape", [(6, 9), (2, 3, 9)])
def test_integer_matmul(weighted: Callable[..., Graph], shape: Any, kind: int) -> None:
    weighted("MatMul", normal(*shape), normal(9, 5) * 0.5, {}, grids(5, 1)[kind])


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((2, 3, 9), (4, 3, 3), {"pads": [1, 2], "dilations": [2]}),
        ((2, 3, 7, 6), (4, 3, 3, 2), {"strides": [2, 1], "pads": [0, 1, 2, 0]}),
        ((2, 4, 7, 6), (4, 1, 3, 3), {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((2, 4, 7, 6), (4, 2, 3, 3), {"group": 2, "auto_pad": "SAME_LOWER"}),
    ],
)
def test_integer_conv(weighted: Callable[..., Graph], x: Any, w: Any, attrs: dict[str, Any], kind: int) -> None:
    weighted("Conv", normal(*x), normal(*w) * 0.5, attrs, grids(4, 0)[kind], normal(4))


@pytest.mark.parametrize(("x", "w", "attrs"), TRANSPOSED)
def test_integer_conv_transpose(weighted: Callable[..., Graph], x: Any, w: Any, attrs: dict[str, Any]) -> None:
    bias = normal(w[1] * attrs.get("group", 1))
    for q in [*grids(w[1], 1)[:: 1 if attrs.get("group", 1) == 1 else 2]][:3]:
        weighted("ConvTranspose", normal(*x), normal(*w) * 0.5, attrs, q, bias)


@pytest.mark.parametrize(("a", "b"), [((3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((2, 2, 3, 4), (2, 2, 4, 5))])
def test_integer_matmul_of_two_activations(integer_case: Callable[..., Graph], a: Any, b: Any) -> None:
    other = QuantParams.make(0.02, 7, DType.INT8)
    graph = integer_case("MatMul", [normal(*a), normal(*b)], {}, [U8, other], [OUT])
    assert any(n.op == "qir.MatMulActivations" for n in graph.nodes)
