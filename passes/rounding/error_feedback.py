"""Rounding with error feedback on a layer's input second moments: the cores, on arrays.

A layer is a batch of G groups of M rows of K weights, y = W x. With e = W - Q (Q the weights on their grid) and
H = E[x x^T], the mean squared error of the output is J = sum over rows of e H e^T; rounding to nearest minimizes
|e|^2 instead.  With the Cholesky factor H = L L^T, J = sum_k (sum_{j >= k} e_j L_jk)^2, so the columns are rounded from
the last one down, each to the grid point that makes its own term least given the errors already made. This is GPTQ
(Frantar et al. 2022) without its inverse, i.e. Babai's nearest plane; heavy columns go first.  [White Paper eq. 31]

`refine` then goes on by coordinate descent, and moves each row's scale to its best value for the integers found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qir.types import Array

from ..quantization.grids import TINY

Floats = NDArray[np.float64]

BLOCK = 128
"""Columns rounded before the errors are taken to all the rest in one product."""


@dataclass(frozen=True)
class Grid:
    """scale: (G, M) float64, float32-representable; integers in [-top, top]."""

    scale: Floats
    top: int

    def nearest(self, w: Array) -> Floats:
        """Nearest integers, as float64."""
        return np.clip(np.rint(w / self.scale[..., None]), -self.top, self.top)


@dataclass(frozen=True)
class Metric:
    """h: (G, K, K) positive definite.  order: (G, K), light columns first.  factor: L of H in that order, H = L L^T."""

    h: Floats
    order: NDArray[np.int64]
    factor: Floats

    def solve(self, b: Array) -> Floats:
        """H^-1 B for B (G, K, M): a block of columns at a time, most of the work in products."""
        k = self.factor.shape[1]
        y = np.take_along_axis(np.asarray(b, np.float64), self.order[:, :, None], axis=1)
        blocks = [slice(start, min(start + BLOCK, k)) for start in range(0, k, BLOCK)]
        inner = [np.linalg.inv(self.factor[:, own, own]) for own in blocks]
        for own, inverse in zip(blocks, inner, strict=True):
            rest = y[:, own] - np.matmul(self.factor[:, own, : own.start], y[:, : own.start])
            y[:, own] = np.matmul(inverse, rest)
        for own, inverse in zip(reversed(blocks), reversed(inner), strict=True):
            rest = y[:, own] - np.matmul(np.swapaxes(self.factor[:, own.stop :, own], 1, 2), y[:, own.stop :])
            y[:, own] = np.matmul(np.swapaxes(inverse, 1, 2), rest)
        x = np.empty_like(y)
        np.put_along_axis(x, self.order[:, :, None], y, axis=1)
        return x


def damped(h: Array, damping: float) -> Metric:
    """H with a share of its mean diagonal added, and ones for inputs that are always zero.

    H is a difference of moments: of inputs that hardly vary around a large mean little but rounding errors is left,
    which may be negative.  The share grows until the matrix is positive definite.  Raises LinAlgError where it never
    is, or is not finite.
    """
    if not np.isfinite(h).all():
        raise np.linalg.LinAlgError("second moments are not finite")
    h = np.array(h, np.float64)
    g, k = h.shape[0], h.shape[1]
    diagonal, groups = np.arange(k), np.arange(g)[:, None]
    own = np.abs(h[:, diagonal, diagonal])
    mean = own.mean(axis=1, keepdims=True)
    for _ in range(40):
        h[:, diagonal, diagonal] = own + np.where(mean > 0, damping * mean, 1.0)
        order = np.argsort(h[:, diagonal, diagonal], axis=1, kind="stable")
        try:
            return Metric(h, order, np.linalg.cholesky(h[groups[:, :, None], order[:, :, None], order[:, None, :]]))
        except np.linalg.LinAlgError:
            damping = max(4 * damping, 1e-6)
    raise np.linalg.LinAlgError("second moments are not positive definite, however much they are damped")


def output_error(w: Array, q: Array, scale: Floats, h: Array) -> Floats:
    """J of each row, (G, M)."""
    e = np.asarray(w - q * scale[..., None])
    return np.einsum("gmk,gmk->gm", np.matmul(e, h), e)


def with_feedback(w: Array, metric: Metric, grid: Grid) -> Floats:
    """Integers (G, M, K) as float64; w (G, M, K)."""
    k, order, factor = w.shape[2], metric.order, metric.factor
    w = np.take_along_axis(np.asarray(w, np.float64), order[:, None, :], axis=2)
    q, e = np.zeros_like(w), np.zeros_like(w)
    for stop in range(k, 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        pull = np.matmul(e[:, :, stop:], factor[:, stop:, start:stop])  # what later columns left behind
        for j in range(stop - 1, start - 1, -1):
            total = pull[:, :, j - start]
            if j + 1 < stop:
                total = total + np.matmul(e[:, :, j + 1 : stop], factor[:, j + 1 : stop, j, None])[..., 0]
            wanted = w[:, :, j] + total / factor[:, None, j, j]
            q[:, :, j] = np.clip(np.rint(wanted / grid.scale), -grid.top, grid.top)
            e[:, :, j] = w[:, :, j] - q[:, :, j] * grid.scale
    back = np.empty_like(q)
    np.put_along_axis(back, order[:, None, :], q, axis=2)
    return back


def descend(w: Array, q: Floats, h: Array, grid: Grid) -> Floats:
    """One sweep of coordinate descent: each integer in turn to its best value given the others.  J never grows.

    Within a block of columns only that block's part of e H is kept up to date; the rest follows in one product.
    """
    q, scale = q.copy(), grid.scale
    pull = np.matmul(w - q * scale[..., None], h)  # e H
    diagonal = np.diagonal(h, axis1=1, axis2=2)
    order = np.argsort(-diagonal.mean(axis=0), kind="stable")
    for start in range(0, len(order), BLOCK):
        picked = order[start : start + BLOCK]
        rows = h[:, picked]  # (G, B, K)
        inner = rows[:, :, picked]
        own, ints = (np.ascontiguousarray(np.swapaxes(v[:, :, picked], 1, 2)) for v in (pull, q))  # (G, B, M)
        change = np.zeros_like(own)  # of e
        for t, j in enumerate(picked):
            now = own[:, t] + np.matmul(inner[:, t, None, :t], change[:, :t])[:, 0]
            best = np.clip(np.rint(ints[:, t] + now / (diagonal[:, None, j] * scale)), -grid.top, grid.top)
            change[:, t] = (ints[:, t] - best) * scale
            ints[:, t] = best
        q[:, :, picked] = np.swapaxes(ints, 1, 2)
        pull += np.matmul(np.swapaxes(change, 1, 2), rows)
    return q


def best_scale(w: Array, q: Floats, h: Array, old: Floats) -> Floats:
    """argmin of J over each row's scale: w H q^T / q H q^T, float32 values; the old one where that is not positive."""
    hq = np.matmul(q, h)
    top, bottom = np.einsum("gmk,gmk->gm", w, hq), np.einsum("gmk,gmk->gm", q, hq)
    ratio = np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), 0)
    return np.where(ratio > TINY, ratio, old).astype(np.float32).astype(np.float64)


@dataclass(frozen=True)
class Rounded:
    """q: (G, M, K) integers as float64.  scale: (G, M).  error, nearest: J in all, and what rounding to nearest has."""

    q: Floats
    scale: Floats
    error: float
    nearest: float


def round_rows(
    w: Array,
    h: Array,
    grid: Grid,
    *,
    damping: float = 0.01,
    sweeps: int = 2,
    refit: bool = False,
    metric: Metric | None = None,
) -> Rounded:
    """The best that feedback, `sweeps` of descent and, with `refit`, moved scales find; never worse than nearest.

    w: (G, M, K); h: (G, K, K); metric: of h, where it is known.  Rows that gain nothing stay rounded to nearest.
    """
    w = np.asarray(w, np.float64)
    plain = grid.nearest(w)
    if not np.isfinite(h).all():
        return Rounded(plain, grid.scale, 0.0, 0.0)
    base = output_error(w, plain, grid.scale, h)
    if metric is None:
        try:
            metric = damped(h, damping)
        except np.linalg.LinAlgError:
            return Rounded(plain, grid.scale, float(base.sum()), float(base.sum()))
    q, scale = with_feedback(w, metric, grid), grid.scale
    for _ in range(sweeps):
        if refit:
            scale = best_scale(w, q, metric.h, scale)
        q = descend(w, q, metric.h, Grid(scale, grid.top))
    error = output_error(w, q, scale, h)
    worse = error > base
    q = np.where(worse[..., None], plain, q)
    scale = np.where(worse, grid.scale, scale)
    return Rounded(q, scale, float(np.where(worse, base, error).sum()), float(base.sum()))


def shifted_target(w: Array, gap: Array, metric: Metric, strength: float = 1.0) -> Floats:
    """Weights that reproduce W x from the quantized input: argmin over V of E|W x - V x_q|^2 + ridge |V - W|^2.

    gap = E[(x - x_q) x_q^T] (G, K, K), metric: of E[x_q x_q^T] and the ridge;  V = W + W gap (H + ridge)^-1.
    strength: the share of the way from W that is gone; noisy inputs make V smaller than is good for later layers.
    """
    return w + strength * np.swapaxes(metric.solve(np.swapaxes(np.matmul(w, gap), 1, 2)), 1, 2)
