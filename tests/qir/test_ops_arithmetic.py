"""Sums, products and their kin: float meaning with broadcasting, integer forms on 8 and 16 bits, with constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qir import DType, Graph, QuantParams
from qir.types import Array

RNG = np.random.default_rng(30)
A = QuantParams.make(0.03, 120, DType.UINT8)
B = QuantParams.make(0.05, -11, DType.INT8)
W = QuantParams.make(0.0004, 0, DType.INT16)
OUT = QuantParams.make(0.07, 128, DType.UINT8)
WIDE = QuantParams.make(0.001, 0, DType.INT16)
SHAPES = [((3, 4, 5), (3, 4, 5)), ((3, 4, 5), (4, 1)), ((3, 4, 5), (5,)), ((3, 1, 5), (3, 4, 1)), ((2, 3), ()), ((2, 3), (1,))]  # fmt: skip  # noqa: E501


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("a", "b"), SHAPES)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean"])
def test_float(agree_with_onnxruntime: Callable[..., None], op: str, a: Any, b: Any) -> None:
    x, y = (np.abs(normal(*a)) + 0.2 if op == "Pow" else normal(*a)), normal(*b)
    y = np.asarray(np.where(np.abs(y) < 0.2, 0.5, y), dtype=np.float32)
    for feeds in (1, 2):
        agree_with_onnxruntime(op, [x, y], {}, feeds=feeds)


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_variadic_float(agree_with_onnxruntime: Callable[..., None], op: str, count: int) -> None:
    agree_with_onnxruntime(op, [normal(3, 4) for _ in range(count)], {}, feeds=count)


@pytest.mark.parametrize(("a", "b"), SHAPES[:4])
@pytest.mark.parametrize("grids", [(A, B), (A, A), (W, B), (W, W)], ids=["u8 i8", "u8 u8", "i16 i8", "i16 i16"])
@pytest.mark.parametrize("target", [OUT, WIDE], ids=["u8", "i16"])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Max", "Min", "Sum"])
def test_integer(integer_case: Callable[..., Graph], op: str, a: Any, b: Any, grids: Any, target: QuantParams) -> None:
    integer_case(op, [normal(*a) * 3, normal(*b) * 3], {}, list(grids), [target])


@pytest.mark.parametrize("op", ["Sum", "Max", "Min"])
def test_variadic_integer(integer_case: Callable[..., Graph], op: str) -> None:
    integer_case(op, [normal(2, 3, 4) for _ in range(3)], {}, [A, B, W], [OUT], steps=2 if op == "Sum" else 1)


@pytest.mark.parametrize("shape", [(), (1,), (4, 1), (1, 4, 1)])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
def test_integer_with_a_constant(integer_case: Callable[..., Graph], op: str, shape: Any) -> None:
    c = np.asarray(RNG.uniform(0.3, 2, shape) * RNG.choice([-1, 1], shape), dtype=np.float32)
    integer_case(op, [normal(2, 4, 5), c], {}, [A], [OUT])


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5])
def test_integer_power_with_a_constant(integer_case: Callable[..., Graph], exponent: float) -> None:
    grid = QuantParams.make(0.01, 0, DType.UINT8)
    integer_case("Pow", [np.abs(normal(3, 5)), np.asarray(exponent, np.float32)], {}, [grid], [OUT])


def test_squeeze_and_excite(integer_case: Callable[..., Graph]) -> None:
    gate = QuantParams.make(2.0**-8, 0, DType.UINT8)
    scales = 1 / (1 + np.exp(-normal(2, 4, 1, 1)))
    integer_case("Mul", [normal(2, 4, 5, 6), scales.astype(np.float32)], {}, [A, gate], [OUT], batch=True)


def test_batch_normalization(agree_with_onnxruntime: Callable[..., None], integer_case: Callable[..., Graph]) -> None:
    stats = [normal(4), normal(4), normal(4), np.abs(normal(4)) + 0.1]
    for shape in ((2, 4), (2, 4, 3), (2, 4, 3, 5)):
        agree_with_onnxruntime("BatchNormalization", [normal(*shape), *stats], {"epsilon": 1e-3})
    integer_case("BatchNormalization", [normal(2, 4, 3, 5), *stats], {"epsilon": 1e-3}, [A], [OUT])


@pytest.mark.parametrize("far", [1e-6, 1e-3, 1e3, 1e6])
def test_sum_of_operands_of_unlike_size(integer_case: Callable[..., Graph], far: float) -> None:
    other = QuantParams.make(0.05 * far, -11, DType.INT8)
    target = QuantParams.make(max(0.05 * far, 0.07), 128, DType.UINT8)
    integer_case("Add", [normal(3, 4), normal(3, 4) * far], {}, [A, other], [target])
