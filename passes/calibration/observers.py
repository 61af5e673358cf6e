"""What one pass over the calibration data keeps of each tensor: constant in memory, mergeable, for every method.

Statistics of consecutive batches are merged in the order of the batches, so the result has the same bits whether
one process did the work or many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qir.errors import DataError
from qir.types import Array

from .histogram import BINS, Histogram

Floats = NDArray[np.float64]

SAMPLE_LIMIT = 1 << 16
"""Elements of one sample of one tensor that go into the histogram; extremes and moments see all of them."""
EMA_DECAY = 0.99
"""Weight that a sample loses with each later one  [AQT 3.2]."""
ROWS, ROW_ELEMENTS = 512, 1 << 20
"""Most rows, and most elements, kept of a tensor of logits (for the cross-entropy method)."""


@dataclass
class TensorStatistics:
    """Statistics of one tensor; its first axis is the batch.

    lo, hi, count: over all elements.  histogram: of at most SAMPLE_LIMIT elements a sample, evenly strided.
    ema_*: sums of each sample's extreme weighted decay^age, with the sum of weights.  channel_*: along `axis`.
    rows: the first rows, kept whole where asked for.
    """

    axis: int | None = 1
    keep_rows: bool = False
    count: int = 0
    samples: int = 0
    lo: float = math.inf
    hi: float = -math.inf
    histogram: Histogram = field(default_factory=lambda: Histogram(BINS))
    ema_lo: float = 0.0
    ema_hi: float = 0.0
    ema_weight: float = 0.0
    channel_count: int = 0
    channel_lo: Floats = field(default_factory=lambda: np.zeros(0))
    channel_hi: Floats = field(default_factory=lambda: np.zeros(0))
    channel_sum: Floats = field(default_factory=lambda: np.zeros(0))
    channel_squares: Floats = field(default_factory=lambda: np.zeros(0))
    rows: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    # -- seeing -------------------------------------------------------------------------------
    def update(self, x: Array, where: str = "tensor") -> None:
        """See one batch.  Raises DataError where a value is not finite."""
        if x.size == 0:
            return
        x = np.asarray(x, dtype=np.float32)
        x = x.reshape(1, -1) if x.ndim < 2 else x
        if self.axis is None:
            x = x.reshape(len(x), 1, -1)
        axis = 1 if self.axis is None else self.axis % x.ndim or x.ndim - 1
        flat = x.reshape(len(x), -1)
        lo_each, hi_each, sums, squares = _by_channel(x, axis)
        lo_sample, hi_sample = lo_each.min(axis=1), hi_each.max(axis=1)
        lo, hi = float(lo_sample.min()), float(hi_sample.max())
        if not (math.isfinite(lo) and math.isfinite(hi)):
            raise DataError("is not finite on the calibration data", where=where)
        for low, high in zip(lo_sample.tolist(), hi_sample.tolist(), strict=True):
            self.ema_lo = self.ema_lo * EMA_DECAY + low
            self.ema_hi = self.ema_hi * EMA_DECAY + high
            self.ema_weight = self.ema_weight * EMA_DECAY + 1.0
        self.histogram.add(_strided(flat), lo, hi)
        self._count(x.size, len(x), lo, hi)
        self._channels(
            x.size // x.shape[axis], lo_each.min(axis=0), hi_each.max(axis=0), sums.sum(axis=0), squares.sum(axis=0)
        )
        if self.keep_rows:
            self._keep(flat)

    def merge(self, later: TensorStatistics) -> None:
        """Take over the statistics of the samples that came after these."""
        if later.count == 0:
            return
        aged = EMA_DECAY**later.samples
        self.ema_lo = self.ema_lo * aged + later.ema_lo
        self.ema_hi = self.ema_hi * aged + later.ema_hi
        self.ema_weight = self.ema_weight * aged + later.ema_weight
        self.histogram.merge(later.histogram)
        self._count(later.count, later.samples, later.lo, later.hi)
        self._channels(
            later.channel_count, later.channel_lo, later.channel_hi, later.channel_sum, later.channel_squares
        )
        self._keep(later.rows)

    def _count(self, count: int, samples: int, lo: float, hi: float) -> None:
        self.count, self.samples = self.count + count, self.samples + samples
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)

    def _channels(self, count: int, lo: Array, hi: Array, total: Array, squares: Array) -> None:
        if self.channel_count == 0:
            self.channel_lo, self.channel_hi = lo.astype(np.float64), hi.astype(np.float64)
            self.channel_sum, self.channel_squares = total.astype(np.float64), squares.astype(np.float64)
        elif len(lo) == len(self.channel_lo):
            self.channel_lo, self.channel_hi = np.minimum(self.channel_lo, lo), np.maximum(self.channel_hi, hi)
            self.channel_sum, self.channel_squares = self.channel_sum + total, self.channel_squares + squares
        else:
            raise DataError(f"{len(lo)} channels after batches of {len(self.channel_lo)}")
        self.channel_count += count

    def _keep(self, rows: Array) -> None:
        if rows.size == 0 or (len(self.rows) and rows.shape[1] != self.rows.shape[1]):
            return
        room = min(ROWS, ROW_ELEMENTS // rows.shape[1]) - len(self.rows)
        if room > 0:
            part = rows[:room].astype(np.float32)
            self.rows = np.concatenate([self.rows, part]) if len(self.rows) else part.copy()

    # -- asking -------------------------------------------------------------------------------
    @property
    def mean(self) -> float:
        return float(self.channel_sum.sum()) / max(self.count, 1)

    @property
    def std(self) -> float:
        return math.sqrt(max(float(self.channel_squares.sum()) / max(self.count, 1) - self.mean**2, 0.0))

    @property
    def channel_mean(self) -> Floats:
        return self.channel_sum / max(self.channel_count, 1)

    @property
    def channel_std(self) -> Floats:
        variance = self.channel_squares / max(self.channel_count, 1) - self.channel_mean**2
        return np.sqrt(np.maximum(variance, 0.0))


def _by_channel(x: Array, axis: int) -> tuple[Array, Array, Array, Array]:
    """(min, max, sum, sum of squares) of each sample and channel, each (samples, channels), sums in float64."""
    n, channels = x.shape[0], x.shape[axis]
    inner = int(np.prod(x.shape[axis + 1 :]))
    outer = int(np.prod(x.shape[1:axis]))
    y = x.reshape(n, outer, channels, inner)
    if inner == 1 and outer == 1:
        flat = y.reshape(n, channels)
        wide = flat.astype(np.float64)
        return flat, flat, wide, wide * wide
    squares = np.einsum("nock,nock->nc", y, y)  # pairwise-blocked in float32 by one sample and channel at a time
    total = np.add.reduce(y, axis=(1, 3), dtype=np.float32)
    return y.min(axis=(1, 3)), y.max(axis=(1, 3)), total.astype(np.float64), squares.astype(np.float64)


def _strided(flat: Array) -> NDArray[np.float32]:
    """At most about SAMPLE_LIMIT elements of each row, evenly strided; the stride is odd, to visit all columns."""
    step = -(-flat.shape[1] // SAMPLE_LIMIT)
    if step > 1:
        flat = flat[:, :: step | 1]
    return np.ascontiguousarray(flat).reshape(-1)


class Statistics(Mapping[str, TensorStatistics]):
    """Statistics of several tensors, by name."""

    def __init__(self, tensors: Mapping[str, TensorStatistics] | None = None, samples: int = 0) -> None:
        self._tensors = dict(tensors or {})
        self.samples = samples

    def __getitem__(self, name: str) -> TensorStatistics:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def update(
        self, values: Mapping[str, Array], axes: Mapping[str, int | None], rows: frozenset[str], samples: int
    ) -> None:
        """See one batch: `values` by name, their channel axes (1 where absent), which keep whole rows."""
        for name, value in values.items():
            if name not in self._tensors:
                self._tensors[name] = TensorStatistics(axis=axes.get(name, 1), keep_rows=name in rows)
            self._tensors[name].update(value, f"tensor {name!r}")
        self.samples += samples

    def merge(self, later: Statistics) -> None:
        """Take over the statistics of later samples."""
        for name, tensor in later.items():
            if name in self._tensors:
                self._tensors[name].merge(tensor)
            else:
                self._tensors[name] = tensor
        self.samples += later.samples
