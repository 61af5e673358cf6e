"""Functions of one tensor: float meaning, and tables that are right in every entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qir import DType, Graph, QuantParams, Stage, TensorType
from qir.ops import op_of
from qir.runtime import Session
from qir.types import Array

U8 = QuantParams.make(0.04, 100, DType.UINT8)
I8 = QuantParams.make(0.05, -20, DType.INT8)
U4 = QuantParams.make(0.4, 5, DType.UINT4)
POSITIVE = QuantParams.make(0.03, 0, DType.UINT8)
OUT = QuantParams.make(0.03, 110, DType.UINT8)
WIDE = QuantParams.make(0.002, 0, DType.INT16)

FUNCTIONS: list[tuple[str, dict[str, Any]]] = [
    ("Relu", {}), ("LeakyRelu", {"alpha": 0.1}), ("Sigmoid", {}), ("Tanh", {}), ("HardSigmoid", {"alpha": 0.3}),
    ("HardSwish", {}), ("Gelu", {}), ("Gelu", {"approximate": "tanh"}), ("Elu", {"alpha": 0.7}),
    ("Celu", {"alpha": 2.0}),
    ("Selu", {}), ("Softplus", {}), ("Softsign", {}), ("Mish", {}), ("Erf", {}), ("ThresholdedRelu", {"alpha": 0.5}),
    ("Exp", {}), ("Abs", {}), ("Neg", {}), ("Floor", {}), ("Ceil", {}), ("Round", {}), ("Sign", {}),
]  # fmt: skip
JUMPS = ("Floor", "Ceil", "Round", "Sign", "ThresholdedRelu")
"""Where float32 numbers may fall on the wrong side of a jump; on these grids they are exact."""
POSITIVE_ONLY: list[tuple[str, dict[str, Any]]] = [("Sqrt", {}), ("Log", {}), ("Reciprocal", {})]


@pytest.mark.parametrize(("op", "attrs"), FUNCTIONS)
def test_float(agree_with_onnxruntime: Callable[..., None], op: str, attrs: dict[str, Any]) -> None:
    x = (np.random.default_rng(1).normal(size=(3, 4, 5)) * 3).astype(np.float32)
    agree_with_onnxruntime(op, [x], attrs, tol=1e-4 if op == "Gelu" else 1e-5)


@pytest.mark.parametrize(("op", "attrs"), POSITIVE_ONLY)
def test_float_of_positive_numbers(agree_with_onnxruntime: Callable[..., None], op: str, attrs: dict[str, Any]) -> None:
    agree_with_onnxruntime(op, [np.random.default_rng(2).uniform(0.01, 9, (3, 4)).astype(np.float32)], attrs)


def exact_for(op: str, q: QuantParams) -> QuantParams:
    """The grid, or one near it whose numbers are exact in float32."""
    return QuantParams.make(2.0**-4, q.zero_point[0], q.dtype) if op in JUMPS else q


def every_value(q: QuantParams) -> Array:
    """All the numbers of a grid."""
    return q.dequantize(np.arange(q.dtype.lo, q.dtype.hi + 1)).astype(np.float32).reshape(1, -1)


@pytest.mark.parametrize("grid", [U8, I8, U4], ids=["uint8", "int8", "uint4"])
@pytest.mark.parametrize(("op", "attrs"), FUNCTIONS)
def test_integer_on_every_input(
    integer_case: Callable[..., Graph], op: str, attrs: dict[str, Any], grid: QuantParams
) -> None:
    grid = exact_for(op, grid)
    graph = integer_case(op, [every_value(grid)], attrs, [grid], [OUT])
    (value,) = graph.outputs
    x = Session(graph, "reference").run({"x0": every_value(grid)})[value.name]
    reals = grid.dequantize(np.arange(grid.dtype.lo, grid.dtype.hi + 1)).reshape(1, -1)
    want = op_of(op).reference(op_of(op).complete(attrs, ""), reals)[0].astype(np.float64)
    step = np.abs(x - np.clip(want / OUT.scale[0] + OUT.zero_point[0], 0, 255)).max()
    assert step <= 0.5 + 1e-4  # rounded once


@pytest.mark.parametrize(("op", "attrs"), [f for f in FUNCTIONS if f[0] not in ("Relu",)])
def test_integer_to_sixteen_bits(integer_case: Callable[..., Graph], op: str, attrs: dict[str, Any]) -> None:
    grid = exact_for(op, I8)
    integer_case(op, [every_value(grid)], attrs, [grid], [WIDE])


@pytest.mark.parametrize(("op", "attrs"), [("Sqrt", {})])
def test_integer_of_positive_numbers(integer_case: Callable[..., Graph], op: str, attrs: dict[str, Any]) -> None:
    integer_case(op, [every_value(POSITIVE)], attrs, [POSITIVE], [OUT])


@pytest.mark.parametrize("slope", [(), (1,), (4, 1), (1, 4, 1)])
def test_prelu(agree_with_onnxruntime: Callable[..., None], integer_case: Callable[..., Graph], slope: Any) -> None:
    rng = np.random.default_rng(3)
    alpha = rng.normal(size=slope).astype(np.float32)
    agree_with_onnxruntime("PRelu", [rng.normal(size=(2, 4, 5)).astype(np.float32), alpha], {})
    x = np.broadcast_to(every_value(U8)[:, None], (1, 4, 256)).copy()
    integer_case("PRelu", [x, alpha], {}, [U8], [OUT])


@pytest.mark.parametrize("limits", [(0.0, 6.0), (-1.0, 1.0), (None, 2.0), (0.33, None), (None, None)])
@pytest.mark.parametrize("target", [OUT, WIDE, U8], ids=["narrow", "wide", "same"])
def test_clip(
    agree_with_onnxruntime: Callable[..., None], integer_case: Callable[..., Graph], limits: Any, target: QuantParams
) -> None:
    ends = [None if v is None else np.asarray(v, np.float32) for v in limits]
    agree_with_onnxruntime("Clip", [np.random.default_rng(4).normal(size=(3, 4)).astype(np.float32) * 3, *ends], {})
    integer_case("Clip", [every_value(U8), *ends], {}, [U8], [target])


@pytest.mark.parametrize("source", [DType.UINT8, DType.INT8, DType.UINT4, DType.INT4])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.3, 1.7, 31.0, 1e-3, 1e-12])
def test_requantize_on_every_8_bit_input(integer_case: Callable[..., Graph], source: DType, ratio: float) -> None:
    """Two quantizers in a row: exactly round-half-up of the product of scales, for all inputs."""
    grid = QuantParams.make(0.05, source.lo + 3, source)
    target = QuantParams.make(float(np.float32(0.05 / ratio)), 77, DType.UINT8)
    g = Graph("twice", Stage.QDQ)
    value: Any = g.add_input("x", TensorType(DType.FLOAT32, ("N",)))
    for i, q in enumerate((grid, target)):
        numbers = [
            g.add_constant("s", np.asarray(q.scale[0], np.float32)),
            g.add_constant("z", np.asarray(q.zero_point[0], q.dtype.numpy), q.dtype),
        ]
        ints = g.add_node("QuantizeLinear", [value, *numbers], outputs=[f"q{i}"]).output
        value = g.add_node("DequantizeLinear", [ints, *numbers], outputs=[f"d{i}"]).output
    g.set_outputs([value])
    from qir.passes import LowerToDyadic

    integer, _ = LowerToDyadic().apply(g)
    x = every_value(grid).reshape(-1)
    name = integer.outputs[0].producer.input(0).name  # type: ignore[union-attr]
    got = Session(integer, "reference").run({"x": x}, outputs=[name])[name]
    np.testing.assert_array_equal(got, Session(integer, "onnxruntime", threads=1).run({"x": x}, outputs=[name])[name])
    n = np.arange(source.lo, source.hi + 1) - grid.zero_point[0]
    exact = np.floor(n * (grid.scale[0] / target.scale[0]) * (1 + 1e-15) + 0.5) + 77
    np.testing.assert_allclose(got, np.clip(exact, 0, 255), atol=0 if ratio != 0.5 else 1)
