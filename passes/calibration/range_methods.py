"""Range setting: from one tensor's statistics to the interval that its grid should cover.

Every method reads the same `TensorStatistics`, so one pass over the data serves them all.

min-max        [White Paper eq. 14-15]      mse            [White Paper eq. 16]
ema            [AQT 3.2]                    cross_entropy  [White Paper eq. 17], MSE for all but the logits
std            mean +- c*std [AQT 3.2]      percentile, kl (relative entropy of the clipped and quantized histogram)
BN-based ranges [White Paper eq. 18-19] need no statistics: see data_free.py.

Limits learned from the network's output were tried and left out: 4-bit limits moved one at a time wherever the logits'
squared error on 64 calibration images fell took 23 % (mlperf_resnet8) and 34 % (mlperf_vww) off it, but on 128 other
images activations alone went from 21.5 to 21.2 dB and from 8.8 to 8.3, W4A4 from 20.2 to 20.3 and from 10.7 to 9.8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qir.errors import QuantizationError
from qir.types import DType

from ..quantization.grids import affine_arrays
from .observers import TensorStatistics

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RangeOptions:
    """percentile: share of the values kept, in percent, split evenly between the tails of a two-sided tensor.

    c: width of the `std` method in standard deviations.  symmetric: the grid will be symmetric.
    """

    percentile: float = 99.99
    c: float = 6.0
    symmetric: bool = False


Method = Callable[[TensorStatistics, int, RangeOptions], tuple[float, float]]


def minmax(t: TensorStatistics, bits: int, options: RangeOptions) -> tuple[float, float]:
    """The extremes seen."""
    return t.lo, t.hi


def ema(t: TensorStatistics, bits: int, options: RangeOptions) -> tuple[float, float]:
    """Exponential moving average of each sample's extremes, corrected for its start."""
    return t.ema_lo / t.ema_weight, t.ema_hi / t.ema_weight


def percentile(t: TensorStatistics, bits: int, options: RangeOptions) -> tuple[float, float]:
    """Quantiles of the histogram."""
    tail = 1.0 - options.percentile / 100.0
    one_sided = t.lo >= 0 or t.hi <= 0
    share = tail if one_sided else tail / 2
    lo = t.lo if t.lo >= 0 else t.histogram.quantile(share)
    hi = t.hi if t.hi <= 0 else t.histogram.quantile(1.0 - share)
    return lo, hi


def std(t: TensorStatistics, bits: int, options: RangeOptions) -> tuple[float, float]:
    """mean -+ c * standard deviation, within the extremes seen."""
    reach = options.c * t.std
    return max(t.lo, t.mean - reach), min(t.hi, t.mean + reach)


def mse(t: TensorStatistics, bits: int, options: RangeOptions) -> tuple[float, float]:
    """The interval whose grid reproduces the histogram with the least squared error."""
    values, weights = t.histogram.points()

    def loss(lo: Floats, hi: Floats) -> Floats:
        return np.square(_grid_error(values, lo, hi, bits)) @ weights

    return _search(t, options, loss)


def cross_entropy(t: TensorStatistics, bits: int, options: RangeOptions) -> tuple[float, float]:
    """For logits H(softmax(v), softmax(v_quantized)) over the rows kept; for other tensors `mse`."""
    if t.rows.shape[0] == 0 or t.rows.shape[1] < 2:
        return mse(t, bits, options)
    rows = t.rows.astype(np.float64)
    target = _softmax(rows)

    def loss(lo: Floats, hi: Floats) -> Floats:
        each = [rows + _grid_error(rows, lo[i : i + 1], hi[i : i + 1], bits)[0] for i in range(len(lo))]
        return np.asarray([-(target * _log_softmax(v)).sum() for v in each])

    return _search(t, options, loss, candidates=24)


def kl(t: TensorStatistics, bits: int, options: RangeOptions) -> tuple[float, float]:
    """The interval for which the clipped, quantized histogram loses the least information (relative entropy)."""
    values, weights = t.histogram.points()
    least = min(t.histogram.width * 2**bits, max(t.hi, 0.0) - min(t.lo, 0.0))

    def loss(lo: Floats, hi: Floats) -> Floats:
        """With fewer bins than levels inside, nothing would be lost by definition: such intervals are left out."""
        lo, hi = (np.where(hi - lo < least, np.nan, end) for end in (lo, hi))
        return np.asarray([_divergence(values, weights, a, b, bits) for a, b in zip(lo, hi, strict=True)])

    return _search(t, options, loss, candidates=36, ends=False)


METHODS: dict[str, Method] = {
    "minmax": minmax, "ema": ema, "percentile": percentile, "mse": mse, "kl": kl, "cross_entropy": cross_entropy,
    "std": std,
}  # fmt: skip


def method_of(name: str) -> Method:
    """The method called `name`.  Raises QuantizationError naming those there are."""
    try:
        return METHODS[name]
    except KeyError:
        known = ", ".join(METHODS)
        raise QuantizationError(f"no range method {name!r}", hint=f"one of {known}") from None


# -- searching ----------------------------------------------------------------------------------
def _search(
    t: TensorStatistics,
    options: RangeOptions,
    loss: Callable[[Floats, Floats], Floats],
    candidates: int = 48,
    ends: bool = True,
) -> tuple[float, float]:
    """Shrink both ends in proportion, and to a common limit; then finely; then (ends) each alone; keep the least loss.

    Each round starts with the best so far, the first with the extremes, and a tie keeps the earlier candidate.
    """
    full = min(t.lo, 0.0), max(t.hi, 0.0)
    if full[0] == full[1]:
        return full
    if options.symmetric:
        full = -max(-full[0], full[1]), max(-full[0], full[1])
    coarse, fine = np.geomspace(1.0, 0.01, candidates), np.linspace(1.15, 0.85, candidates // 2)
    limit = max(-full[0], full[1]) * (coarse[1:] if full[0] < 0 < full[1] else coarse[:0])
    a = np.concatenate([full[0] * coarse, np.maximum(full[0], -limit)])
    b = np.concatenate([full[1] * coarse, np.minimum(full[1], limit)])
    best = int(np.argmin(loss(a, b)))
    lo, hi = float(a[best]), float(b[best])
    rounds = [(fine, 0, 1)]
    if ends and not options.symmetric and lo < 0 < hi:
        wide = np.linspace(1.4, 0.3, candidates // 2)
        rounds += [(wide, 0), (wide, 1)]
    for ratios, *which in rounds:
        a, b = (np.full(len(ratios) + 1, end) for end in (lo, hi))
        if 0 in which:
            a[1:] = np.maximum(lo * ratios, full[0])
        if 1 in which:
            b[1:] = np.minimum(hi * ratios, full[1])
        best = int(np.argmin(loss(a, b)))
        lo, hi = float(a[best]), float(b[best])
    return lo, hi


def _grid_error(values: Floats, lo: Floats, hi: Floats, bits: int) -> Floats:
    """quantized - value for each candidate (first axis) and value, on the unsigned asymmetric grid of `bits`."""
    dtype = DType(f"uint{bits}")
    scale, zero_point = affine_arrays(lo, hi, dtype)
    shape = (-1, *[1] * values.ndim)
    s, z = scale.reshape(shape), zero_point.reshape(shape)
    q = values[None] / s
    np.rint(q, out=q)
    np.clip(q, dtype.lo - z, dtype.hi - z, out=q)
    q *= s
    q -= values[None]
    return q


def _divergence(values: Floats, weights: Floats, lo: float, hi: float, bits: int) -> float:
    """KL(P || Q): P the histogram with its tails piled on the ends, Q each level's mass spread over its bins."""
    if np.isnan(lo):
        return float("inf")
    dtype = DType(f"uint{bits}")
    scale, zero_point = affine_arrays(np.asarray([lo]), np.asarray([hi]), dtype)
    level = np.clip(np.rint(values / scale[0]) + zero_point[0], 0, dtype.hi).astype(np.int64)
    inside = (values >= lo) & (values <= hi)
    if not inside.any():
        return float("inf")
    first, last = int(np.argmax(inside)), len(inside) - 1 - int(np.argmax(inside[::-1]))
    p = weights[first : last + 1].copy()
    clean = p.copy()
    p[0] += weights[:first].sum()
    p[-1] += weights[last + 1 :].sum()
    level = level[first : last + 1]
    mass = np.bincount(level, weights=clean)
    bins = np.bincount(level)
    q = mass[level] / bins[level]
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _log_softmax(v: Floats) -> Floats:
    shifted = v - v.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _softmax(v: Floats) -> Floats:
    return np.exp(_log_softmax(v))
