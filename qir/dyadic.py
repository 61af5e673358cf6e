"""Dyadic numbers and rounding: the only place (with its CUDA counterpart) where rounding is written down.

The canon is TOSA RESCALE, SINGLE_ROUND, 32-bit multiplier  [HAWQ-V3 eq. 6-7].
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import overload

import numpy as np
from numpy.typing import NDArray

from .errors import QuantizationError

MIN_SHIFT, MAX_SHIFT = 2, 62
MAX_RATIO = 2.0**29

Int64 = NDArray[np.int64]


def dyadic(ratio: float, *, multiplier_bits: int = 32, where: str | None = None) -> tuple[int, int]:
    """DN(r) -> (multiplier, shift), r = multiplier * 2**-shift to a relative 2**-(multiplier_bits - 1).

    multiplier in [2**(b-2), 2**(b-1) - 1] for b = multiplier_bits, shift in [2, 62]; a ratio too small for
    shift 62 lets the multiplier fall (to zero included).
    Raises QuantizationError for r <= 0, not finite, or r >= 2**29 (2**(b-3) in general).
    """
    if not math.isfinite(ratio) or ratio <= 0:
        raise QuantizationError(f"rescaling ratio {ratio} is not a positive finite number", where=where)
    if ratio >= 2.0 ** (multiplier_bits - 3):
        raise QuantizationError(
            f"rescaling ratio {ratio:g} is 2^{multiplier_bits - 3} or more", where=where,
            hint="the scales before and after this operator are too far apart; widen the output range",
        )  # fmt: skip
    _, exponent = math.frexp(ratio)  # ratio = mantissa * 2**exponent, mantissa in [0.5, 1)
    shift = min(multiplier_bits - 1 - exponent, MAX_SHIFT)
    multiplier = round(Fraction(ratio) * (1 << shift))
    if multiplier == 1 << (multiplier_bits - 1):
        if shift == MIN_SHIFT:  # the last step below the largest ratio
            return multiplier - 1, shift
        multiplier, shift = multiplier >> 1, shift - 1
    return multiplier, shift


def dyadic_array(
    ratios: NDArray[np.float64], *, multiplier_bits: int = 32, where: str | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """`dyadic` on every element: (multiplier int32, shift int32), the shape of `ratios`."""
    flat = [dyadic(float(r), multiplier_bits=multiplier_bits, where=where) for r in np.ravel(ratios)]
    pairs = np.asarray(flat, dtype=np.int32).reshape(*np.shape(ratios), 2)
    return np.ascontiguousarray(pairs[..., 0]), np.ascontiguousarray(pairs[..., 1])


def common_dyadic(ratios: list[float], *, where: str | None = None) -> tuple[list[int], int]:
    """Signed numerators, each below 2**30 in size, over one 2**shift (shift in [2, 62])  [HAWQ-V3 eq. 9].

    Raises QuantizationError where a ratio is not finite or all are zero or one is 2**28 or more.
    """
    top = max(abs(r) for r in ratios)
    if not math.isfinite(top) or top == 0 or top >= 2.0**28:
        raise QuantizationError(f"rescaling ratios {ratios} have no common dyadic form", where=where)
    _, exponent = math.frexp(top)
    shift = min(30 - exponent, MAX_SHIFT)
    numerators = [round(Fraction(r) * (1 << shift)) for r in ratios]
    if any(abs(n) >= 1 << 30 for n in numerators):
        shift -= 1
        numerators = [round(Fraction(r) * (1 << shift)) for r in ratios]
    return numerators, shift


@overload
def rounding(shift: int) -> int: ...
@overload
def rounding(shift: Int64) -> Int64: ...
def rounding(shift: int | Int64) -> int | Int64:
    """2**(shift-1): what is added before a shift to the right, so that it rounds half up."""
    return 1 << (shift - 1) if isinstance(shift, int) else np.int64(1) << (shift - 1)


def rounding_shift(x_i64: Int64, shift: Int64) -> Int64:
    """(x + 2**(shift-1)) >> shift, arithmetic: round half up."""
    return (x_i64 + rounding(shift)) >> shift


def round_half_even(x: NDArray[np.float64] | float) -> NDArray[np.int64]:
    """Compile-time rounding of reals (biases, tables, bounds), saturated at 2^62, where no proof holds any more.

    Raises QuantizationError on NaN.
    """
    reals = np.asarray(x, dtype=np.float64)
    if np.isnan(reals).any():
        raise QuantizationError("NaN cannot be rounded to an integer")
    return np.clip(np.rint(reals), -(2.0**62), 2.0**62).astype(np.int64)
