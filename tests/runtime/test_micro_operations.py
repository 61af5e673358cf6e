"""Micro-operations: what they read and write, and what they say about their numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qir.runtime.compile.micro_operations import (
    AddTensor,
    Clamp,
    Load,
    Rescale,
    Store,
    is_read,
)
from qir.runtime.compile.tensors import dense_view

VIEW = dense_view((2, 8), (0, 1), np.dtype(np.int8))
SUM = {"a_multiplier": 3, "b_multiplier": -5, "shift": 40, "a_zero_point": 2, "b_zero_point": 1, "zero_point": 7,
       "lo": -128, "hi": 127}  # fmt: skip


def rescale(multiplier: int, shift: int, limit: int, constant: int = 0) -> Rescale:
    m, c, s = (np.full((1, 8), v, np.int64) for v in (multiplier, constant, shift))
    return Rescale(0, 0, m, c, s, 0, -128, 127, limit)


def test_a_register_is_read_until_it_is_written() -> None:
    operations = [
        Load(1, VIEW),
        AddTensor.of(SUM, 0, 0, 1, (127, 127)),
        Load(1, VIEW),
        Clamp(2, 1, 0, 9),
        Store(2, VIEW),
    ]
    assert is_read(operations, 0, 0) and is_read(operations, 1, 1) and is_read(operations, 4, 2)
    assert not is_read(operations, 2, 0)
    assert not is_read(operations, 0, 1)  # loaded anew before anybody reads it
    assert not is_read(operations, 2, 2)


def test_the_constant_holds_rounding_and_zero_points() -> None:
    x, m, s = np.arange(-9, 9), np.full((1, 1), 12345, np.int64), np.full((1, 1), 17, np.int64)
    attrs = {"x_zero_point": 4, "zero_point": 0, "lo": -9, "hi": 9}
    operation = Rescale.of(attrs, 0, 0, m, s, 127)
    np.testing.assert_array_equal((x * m + operation.constant) >> s, ((x - 4) * m + (1 << 16)) >> s)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shift", [20, 31, 32, 33, 50])
def test_high_words_do_where_it_is_said(shift: int, seed: int) -> None:
    """A kernel keeps 32 bits of a pre-shifted operand and the high word of its product with the constant added."""
    rng = np.random.default_rng(seed)
    limit, m, c = (int(2 ** rng.uniform(3, 31)), int(rng.integers(1 << 30, 1 << 31)), int(2 ** rng.uniform(1, 61)))
    operation = rescale(m, shift, limit, c)
    up = int(operation.pre_shift[0, 0])
    assert up == max(32 - shift, 0)
    fits = up == 0 or ((limit << up) < 2**31 and c < 2 ** (61 - up))
    assert operation.high == fits
    if fits:
        for x in (-limit, limit, 0, 17):
            high_word = ((x << up) * m + (c << up)) >> 32
            assert high_word >> max(shift - 32, 0) == (x * m + c) >> shift


def test_constants_that_follow_rows_are_not_high() -> None:
    columns = rescale(1 << 30, 40, 100)
    rows = replace(columns, **{k: getattr(columns, k).reshape(8, 1) for k in ("multiplier", "constant", "shift")})
    assert columns.high and columns.by_column and not rows.high and not rows.by_column


def test_a_sum_with_its_operands_exchanged() -> None:
    operation = AddTensor.of(SUM, 0, 1, 2, (127, 255))
    assert operation.constant == (1 << 39) - 2 * 3 + 5
    other = operation.swapped()
    assert (other.a, other.b, other.a_multiplier, other.b_multiplier) == (2, 1, -5, 3)
    assert other.constant == operation.constant and operation.high
    assert other.limits == (255, 127) and other.bound == operation.bound
    assert not replace(operation, shift=2, limits=(1, 1 << 20)).high


def test_what_is_rewritten_keeps_its_values() -> None:
    operation = rescale(12345, 20, 100, 1 << 19)
    raised = operation.raised()
    x = np.arange(-100, 101)
    np.testing.assert_array_equal(
        (x[:, None] * operation.multiplier + operation.constant) >> operation.shift,
        (x[:, None] * raised.multiplier + raised.constant) >> raised.shift,
    )
    assert raised.shift.min() == 33 and operation.values(x[:1], x[-1:]) == raised.values(x[:1], x[-1:])
    add = AddTensor.of(SUM, 0, 0, 1, (127, 127))
    assert add.folded().zero_point == 0 and add.values((-5, 9), (3, 100)) == add.folded().values((-5, 9), (3, 100))
    crowded = replace(add, shift=61, zero_point=127)
    assert crowded.folded() is crowded  # no room for the zero point
