"""Grids of weights: symmetric, per tensor or per channel, by the extremes or by least squared error.

scale = max|w| / n, n = 127 or 7 (the least code is unused)                                  [White Paper eq. 9, 14-15]
mse:  scale = argmin over fractions of max|w| of sum (w - w_quantized)^2, for each channel      [White Paper eq. 16]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qir.errors import QuantizationError
from qir.types import Array, DType, QuantParams

from .grids import TINY

Floats = NDArray[np.float64]

WEIGHT_RANGES = ("minmax", "mse")
_FRACTIONS = np.linspace(1.0, 0.3, 71)


def weight_grid(w: Array, bits: int, axis: int | None, method: str = "minmax") -> QuantParams:
    """Grid of a weight tensor; `axis` None is one scale for all.

    Raises QuantizationError for an unknown method, unsupported bits, or weights that are not finite.
    """
    if method not in WEIGHT_RANGES:
        raise QuantizationError(f"no weight range method {method!r}", hint=f"one of {', '.join(WEIGHT_RANGES)}")
    if bits not in (4, 8):
        raise QuantizationError(f"weights of {bits} bits are not supported", hint="4 or 8")
    if not np.isfinite(w).all():
        raise QuantizationError("weights are not finite")
    dtype = DType(f"int{bits}")
    rows = w.reshape(1, -1) if axis is None else np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
    top = np.abs(rows).max(axis=1, initial=0.0).astype(np.float64)
    if method == "mse":
        top = top * best_fraction(rows, top, dtype.hi)
    return QuantParams.make(np.maximum(top / dtype.hi, TINY), 0, dtype, axis)


def best_fraction(rows: Array, top: Floats, levels: int) -> Floats:
    """For each row the fraction of its `top` that, as the clipping limit, has the least squared error."""
    rows = np.asarray(rows, dtype=np.float32)
    best, least = np.ones(len(rows)), np.full(len(rows), np.inf)
    for fraction in _FRACTIONS:
        scale = np.maximum(top * fraction / levels, TINY).astype(np.float32)[:, None]
        q = rows / scale
        np.rint(q, out=q)
        np.clip(q, -levels, levels, out=q)
        q *= scale
        q -= rows
        error = np.einsum("rk,rk->r", q, q, dtype=np.float64)
        better = error < least
        best[better], least[better] = fraction, error[better]
    return best


def quantize_weights(w: Array, q: QuantParams) -> Array:
    """Nearest integers, clipped to [-n, n]: the least code stays unused, as in TFLite."""
    return np.maximum(q.quantize(w), np.asarray(-q.dtype.hi, q.dtype.numpy))
