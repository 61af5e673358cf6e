"""Exported rescalings far beyond int32: onnxruntime's Clip of int64 is wrong there, the export must not use it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir import DType, Graph, QuantParams, Stage, TensorType
from qir.runtime import Session
from qir.types import Array

GRID = QuantParams.make(1.0, 0, DType.INT16)
RESULT = {"zero_point": 0, "lo": -32768, "hi": 32767, "dtype": "int16"}


def both(op: str, arrays: list[Array], consts: list[Array], attrs: dict[str, Any], opset: int = 21) -> Array:
    g = Graph("g", Stage.INTEGER)
    inputs = [g.add_input(f"x{i}", TensorType(DType.of(a), ("N",))) for i, a in enumerate(arrays)]
    consts_ = [g.add_constant("c", c) for c in consts]
    g.set_outputs(g.add_node(op, [*inputs, *consts_], attrs, outputs=["y"], quant=GRID).outputs)
    feeds = {f"x{i}": a for i, a in enumerate(arrays)}
    want = Session(g, "reference").run(feeds)["y"]
    np.testing.assert_array_equal(Session(g, "onnxruntime", threads=1).run(feeds)["y"], want)
    return want


@pytest.mark.parametrize("shift", [2, 7, 20, 29, 30, 31, 40, 62])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_requantize_saturates_at_any_ratio(dtype: Any, shift: int) -> None:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(shift)
    small = rng.integers(max(info.min, -300), min(info.max, 300), 400).astype(dtype)
    x = np.concatenate(
        [rng.integers(info.min, info.max, 400, endpoint=True).astype(dtype), small, [info.min, info.max]]
    )
    numbers = [np.asarray([1760053863], np.int32), np.asarray([shift], np.int32)]
    zero = 255 if dtype == np.uint8 else 0
    y = both("qir.Requantize", [x.astype(dtype)], numbers, {**RESULT, "x_zero_point": zero})
    exact = [((int(v) - zero) * 1760053863 + (1 << (shift - 1))) >> shift for v in x]
    np.testing.assert_array_equal(y, np.clip(np.asarray(exact, dtype=object), -32768, 32767).astype(np.int16))


@pytest.mark.parametrize("shift", [2, 8, 30, 31, 45, 62])
def test_add_at_the_ends_of_int32(shift: int) -> None:
    ends = np.asarray([-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 1], np.int32)
    rng = np.random.default_rng(shift)
    a = np.concatenate([np.repeat(ends, 6), rng.integers(-(2**31), 2**31, 500).astype(np.int32)])
    b = np.concatenate([np.tile(ends, 6), rng.integers(-(2**31), 2**31, 500).astype(np.int32)])
    for m_a, m_b in ((2**30 - 1, 2**30 - 1), (2**30 - 1, -(2**30 - 1)), (1, 2**29), (0, 5)):
        attrs = {**RESULT, "a_multiplier": m_a, "b_multiplier": m_b, "shift": shift}
        y = both("qir.Add", [a, b], [], attrs)
        exact = [(int(p) * m_a + int(q) * m_b + (1 << (shift - 1))) >> shift for p, q in zip(a, b, strict=True)]
        np.testing.assert_array_equal(y, np.clip(np.asarray(exact, dtype=object), -32768, 32767).astype(np.int16))


@pytest.mark.parametrize("shift", [2, 9, 31, 50])
def test_mul_of_wide_operands(shift: int) -> None:
    rng = np.random.default_rng(shift)
    a, b = (rng.integers(-32768, 32768, 800).astype(np.int16) for _ in range(2))
    attrs = {**RESULT, "a_zero_point": 0, "b_zero_point": 0, "multiplier": 2**31 - 1, "shift": shift}
    y = both("qir.Mul", [a, b], [], attrs)
    exact = [(int(p) * int(q) * (2**31 - 1) + (1 << (shift - 1))) >> shift for p, q in zip(a, b, strict=True)]
    np.testing.assert_array_equal(y, np.clip(np.asarray(exact, dtype=object), -32768, 32767).astype(np.int16))
