"""Dyadic numbers: the relative error, the windows, the ends of the range, the rounding."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qir.dyadic import common_dyadic, dyadic, dyadic_array, round_half_even, rounding_shift
from qir.errors import QuantizationError

RATIOS = st.floats(2.0**-31, 2.0**29, exclude_max=True)


@settings(max_examples=1000, deadline=None)
@given(RATIOS)
def test_relative_error_and_windows(ratio: float) -> None:
    multiplier, shift = dyadic(ratio)
    assert 2**30 <= multiplier <= 2**31 - 1 and 2 <= shift <= 62
    assert abs(Fraction(multiplier, 1 << shift) / Fraction(ratio) - 1) <= Fraction(1, 2**31)


@settings(max_examples=300, deadline=None)
@given(st.floats(5e-324, 2.0**-32, exclude_max=True))
def test_tiny_ratios_keep_shift_62(ratio: float) -> None:
    multiplier, shift = dyadic(ratio)
    assert shift == 62 and 0 <= multiplier <= 2**30
    assert abs(Fraction(multiplier, 1 << shift) - Fraction(ratio)) <= Fraction(1, 2**63)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([8, 16]), st.data())
def test_narrow_multipliers(bits: int, data: st.DataObject) -> None:
    ratio = data.draw(st.floats(2.0**-40, 2.0 ** (bits - 3), exclude_max=True))
    multiplier, shift = dyadic(ratio, multiplier_bits=bits)
    assert 2 ** (bits - 2) <= multiplier <= 2 ** (bits - 1) - 1 and 2 <= shift <= 62
    assert abs(Fraction(multiplier, 1 << shift) / Fraction(ratio) - 1) <= Fraction(1, 2 ** (bits - 1))


def test_carry_into_the_next_power_of_two() -> None:
    below = math.nextafter(1.0, 0.0)  # its 31 bits round up to 2^31
    assert dyadic(below) == dyadic(1.0) == (2**30, 30)
    assert dyadic(math.nextafter(2.0**29, 0.0)) == (2**31 - 1, 2)  # no shift below 2 to carry into
    assert dyadic(31.875, multiplier_bits=8) == (127, 2)


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.inf, -math.inf, math.nan, 2.0**29, 1e300])
def test_errors_name_the_place(ratio: float) -> None:
    with pytest.raises(QuantizationError, match="conv1"):
        dyadic(ratio, where="conv1")


def test_arrays_are_elementwise() -> None:
    ratios = np.asarray([[0.3, 1e-9], [7.0, 2.0**-70]])
    multiplier, shift = dyadic_array(ratios)
    assert multiplier.dtype == shift.dtype == np.int32 and multiplier.shape == (2, 2)
    for index in np.ndindex(2, 2):
        assert (multiplier[index], shift[index]) == dyadic(float(ratios[index]))
    assert multiplier[1, 1] == 0 and shift[1, 1] == 62
    assert dyadic_array(np.zeros((0, 1, 1)))[0].shape == (0, 1, 1)


@settings(max_examples=500, deadline=None)
@given(st.floats(1e-20, 2.0**27), st.floats(1e-20, 2.0**27), st.booleans())
def test_common_shift(a: float, b: float, negative: bool) -> None:
    b = -b if negative else b
    numerators, shift = common_dyadic([a, b])
    assert 2 <= shift <= 62 and all(abs(n) < 1 << 30 for n in numerators)
    for n, r in zip(numerators, (a, b), strict=True):
        assert abs(Fraction(n, 1 << shift) - Fraction(r)) <= Fraction(1, 1 << (shift + 1))
    assert shift == 62 or max(abs(n) for n in numerators) >= 1 << 28


@pytest.mark.parametrize("ratios", [[0.0, 0.0], [math.inf, 1.0], [math.nan, 1.0], [2.0**28, 1.0], [1.0, -(2.0**28)]])
def test_common_shift_errors(ratios: list[float]) -> None:
    with pytest.raises(QuantizationError):
        common_dyadic(ratios)


@settings(max_examples=500, deadline=None)
@given(st.integers(-(2**62), 2**62 - 1), st.integers(1, 61))
def test_rounding_shift_is_half_up(x: int, shift: int) -> None:
    got = int(rounding_shift(np.asarray([x], np.int64), np.asarray([shift], np.int64))[0])
    assert got == math.floor(Fraction(x, 1 << shift) + Fraction(1, 2))


def test_rounding_at_compile_time_is_half_even() -> None:
    got = round_half_even(np.asarray([0.5, 1.5, -0.5, -1.5, 2.4999, -2.5]))
    assert got.tolist() == [0, 2, 0, -2, 2, -2] and got.dtype == np.int64
