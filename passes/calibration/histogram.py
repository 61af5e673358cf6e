"""A histogram of fixed size whose bins have power-of-two widths.

Bin k holds the values of [k*w, (k+1)*w), w = 2**exponent, and w is the least that fits [min, max] into `bins`
bins.  Coarsening joins bins 2k and 2k+1, so nothing is ever resampled: the histogram is a function of the values
seen, the same for every order of batches and every way of merging.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 2048
_TINIEST = -126
"""Exponent below which float32 has no normal numbers."""

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def width_exponent(lo: float, hi: float, bins: int) -> int:
    """Least e with floor(hi / 2^e) - floor(lo / 2^e) < bins, and |k| at most 2^24 (float32's resolution)."""
    top = max(abs(lo), abs(hi))
    if top == 0:
        return _TINIEST
    e = max(math.frexp(top)[1] - 24, _TINIEST)
    while math.floor(math.ldexp(hi, -e)) - math.floor(math.ldexp(lo, -e)) >= bins:
        e += 1
    return e


@dataclass
class Histogram:
    """Counts of finite float32 values; exact zeros are counted apart, since every grid holds zero."""

    bins: int = BINS
    lo: float = math.inf
    hi: float = -math.inf
    exponent: int = _TINIEST
    first: int = 0
    zeros: int = 0
    counts: Counts = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def total(self) -> int:
        return int(self.counts.sum()) + self.zeros

    def add(self, x: NDArray[np.float32], lo: float, hi: float) -> None:
        """Count the values of a flat array whose extremes lie within [lo, hi]."""
        if x.size == 0:
            return
        self._cover(lo, hi)
        nonzeros = int(np.count_nonzero(x))
        self.zeros += x.size - nonzeros
        scaled = x * np.float32(math.ldexp(1.0, -self.exponent))  # exact: a power of two
        index = np.floor(scaled, out=scaled).astype(np.int64)
        if lo < 0:
            index -= (x < 0) & (scaled == 0)  # but below float32's least number, -0 would end up in bin 0
        index -= self.first
        self.counts += np.bincount(index, minlength=len(self.counts))[: len(self.counts)]
        if 0 <= -self.first < len(self.counts):
            self.counts[-self.first] -= x.size - nonzeros

    def merge(self, other: Histogram) -> None:
        """Take over what another histogram of the same number of bins has seen."""
        if other.lo > other.hi:
            return
        self._cover(other.lo, other.hi)
        coarse, first = _coarsen(other.counts, other.first, self.exponent - other.exponent)
        start = first - self.first
        self.counts[start : start + len(coarse)] += coarse
        self.zeros += other.zeros

    def _cover(self, lo: float, hi: float) -> None:
        """Widen the range to include [lo, hi], joining bins where it outgrows them."""
        lo, hi = min(self.lo, lo), max(self.hi, hi)
        if (lo, hi) == (self.lo, self.hi):
            return
        exponent = width_exponent(lo, hi, self.bins)
        counts, start = _coarsen(self.counts, self.first, exponent - self.exponent)
        first = math.floor(math.ldexp(lo, -exponent))
        last = math.floor(math.ldexp(hi, -exponent))
        grown = np.zeros(last - first + 1, np.int64)
        if len(counts):
            grown[start - first : start - first + len(counts)] = counts
        self.lo, self.hi, self.exponent, self.first, self.counts = lo, hi, exponent, first, grown

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self.exponent)

    def points(self) -> tuple[Floats, Floats]:
        """(values, weights): bin centres and counts of the bins that are not empty; zeros are left out."""
        kept = np.flatnonzero(self.counts)
        centres = (kept + self.first).astype(np.float64) + 0.5
        return centres * self.width, self.counts[kept].astype(np.float64)

    def quantile(self, p: float) -> float:
        """The value below which a share p of all values lies, linear inside a bin, within [lo, hi]."""
        values, weights = self.points()
        centre = np.append(values, 0.0)
        mass = np.append(weights, float(self.zeros))
        half = np.append(np.full(len(values), self.width / 2), 0.0)
        order = np.argsort(centre, kind="stable")
        centre, mass, half = centre[order], mass[order], half[order]
        reached = np.cumsum(mass)
        if reached[-1] == 0:
            return 0.0
        i = min(int(np.searchsorted(reached, p * reached[-1])), len(mass) - 1)
        inside = (p * reached[-1] - (reached[i] - mass[i])) / mass[i] if mass[i] else 0.0
        return float(np.clip(centre[i] - half[i] + 2 * half[i] * inside, self.lo, self.hi))


def _coarsen(counts: Counts, first: int, levels: int) -> tuple[Counts, int]:
    """The same counts in bins 2^levels times as wide."""
    if levels <= 0 or len(counts) == 0:
        return counts, first >> max(levels, 0)
    target = (first + np.arange(len(counts), dtype=np.int64)) >> levels
    joined = np.bincount(target - target[0], weights=counts)
    return np.rint(joined).astype(np.int64), int(target[0])
