"""From a range of reals to an integer grid.

asymmetric: scale = (hi - lo) / (levels - 1), zero_point = round(dtype.lo - lo / scale)     [White Paper eq. 4-8]
symmetric:  scale = max(|lo|, |hi|) / dtype.hi, zero_point = 0                               [White Paper eq. 9]
Zero always lies on the grid: padding, Relu and sparse tensors need it exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qir.types import DType, QuantParams

Floats = NDArray[np.float64]

TINY = 2.0**-40
"""Least scale."""
NOTHING = 1.0
"""Scale of a tensor that is always zero: any number would do, one in the middle keeps ratios of scales in reach."""


def affine(lo: float, hi: float, dtype: DType) -> QuantParams:
    """Asymmetric per-tensor grid of `dtype` over [lo, hi] widened to hold zero."""
    scale, zero_point = affine_arrays(np.asarray([lo]), np.asarray([hi]), dtype)
    return QuantParams.make(float(scale[0]), int(zero_point[0]), dtype)


def affine_arrays(lo: Floats, hi: Floats, dtype: DType) -> tuple[Floats, Floats]:
    """(scale rounded to float32, zero point) of many ranges at once; `affine` elementwise."""
    lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    scale = np.where(hi > lo, np.maximum((hi - lo) / (dtype.hi - dtype.lo), TINY), NOTHING)
    scale = scale.astype(np.float32).astype(np.float64)
    zero_point = np.clip(np.rint(dtype.lo - lo / scale), dtype.lo, dtype.hi)
    return scale, zero_point


def symmetric(lo: float, hi: float, dtype: DType) -> QuantParams:
    """Symmetric per-tensor grid: zero point 0 for a signed dtype (and for an unsigned one, where lo >= 0)."""
    reach = max(abs(lo), abs(hi))
    return QuantParams.make(max(reach / dtype.hi, TINY) if reach else NOTHING, 0, dtype)


def unit_interval(dtype: DType) -> QuantParams:
    """The grid of probabilities: scale 2^-8, zero point at the least value  [docs/arithmetic.md 9]."""
    return QuantParams.make(2.0**-8, dtype.lo, dtype)


def whole(lo: float, hi: float, dtype: DType) -> QuantParams | None:
    """The grid of integers, scale 1: exact.  None where [lo, hi], widened to hold zero, does not fit."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    zero_point = 0 if dtype.is_signed else round(dtype.lo - lo)
    fits = dtype.lo <= round(lo) + zero_point and round(hi) + zero_point <= dtype.hi
    return QuantParams.make(1.0, zero_point, dtype) if fits else None
