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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qir.types import Array

from .grids import TINY

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


def damped(h: Array, damping: float) -> Array:
    """H with a share of its mean diagonal added, and ones for inputs that are always zero.

    H is a difference of moments: of inputs that hardly vary around a large mean little but rounding errors is left,
    which may be negative.  The share grows until the matrix is positive definite.
    """
    h = np.array(h)
    g, k = h.shape[0], h.shape[1]
    diagonal = np.arange(k)
    own = np.abs(h[:, diagonal, diagonal])
    mean = own.mean(axis=1, keepdims=True)
    for _ in range(40):
        h[:, diagonal, diagonal] = own + np.where(mean > 0, damping * mean, 1.0)
        try:
            np.linalg.cholesky(h)
            break
        except np.linalg.LinAlgError:
            damping = max(4 * damping, 1e-6)
    assert h.shape == (g, k, k)
    return h


def output_error(w: Array, q: Array, scale: Floats, h: Array) -> Floats:
    """J of each row, (G, M)."""
    e = np.asarray(w - q * scale[..., None])
    return np.einsum("gmk,gmk->gm", np.matmul(e, h), e)


def with_feedback(w: Array, h: Array, grid: Grid) -> Floats:
    """Integers (G, M, K) as float64; w (G, M, K), h (G, K, K) positive definite (see `damped`)."""
    g, _, k = w.shape
    order = np.argsort(np.diagonal(h, axis1=1, axis2=2), axis=1, kind="stable")
    groups = np.arange(g)[:, None]
    factor = np.linalg.cholesky(h[groups[:, :, None], order[:, :, None], order[:, None, :]])
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
    """One sweep of coordinate descent: each integer in turn to its best value given the others.  J never grows."""
    q, scale = q.copy(), grid.scale
    pull = np.matmul(w - q * scale[..., None], h)  # e H
    diagonal = np.diagonal(h, axis1=1, axis2=2)
    for j in np.argsort(-diagonal.mean(axis=0), kind="stable"):
        free = q[:, :, j] + pull[:, :, j] / (diagonal[:, None, j] * scale)
        best = np.clip(np.rint(free), -grid.top, grid.top)
        change = (q[:, :, j] - best) * scale  # of e
        q[:, :, j] = best
        gs, ms = np.nonzero(change)
        if len(gs):
            pull[gs, ms] += change[gs, ms, None] * h[gs, j]
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
    w: Array, h: Array, grid: Grid, *, damping: float = 0.01, sweeps: int = 2, refit: bool = False
) -> Rounded:
    """The best that feedback, `sweeps` of descent and, with `refit`, moved scales find; never worse than nearest.

    w: (G, M, K); h: (G, K, K).  Rows that gain nothing stay rounded to nearest.
    """
    w = np.asarray(w, np.float64)
    plain = grid.nearest(w)
    base = output_error(w, plain, grid.scale, h)
    if not np.isfinite(h).all():
        return Rounded(plain, grid.scale, 0.0, 0.0)
    for attempt in range(5):
        hd = damped(h, damping * 10**attempt)
        try:
            q = with_feedback(w, hd, grid)
            break
        except np.linalg.LinAlgError:  # rounding errors made a variance negative: more damping hides it
            continue
    else:
        return Rounded(plain, grid.scale, float(base.sum()), float(base.sum()))
    scale = grid.scale
    for _ in range(sweeps):
        if refit:
            scale = best_scale(w, q, hd, scale)
        q = descend(w, q, hd, Grid(scale, grid.top))
    error = output_error(w, q, scale, h)
    worse = error > base
    q = np.where(worse[..., None], plain, q)
    scale = np.where(worse, grid.scale, scale)
    return Rounded(q, scale, float(np.where(worse, base, error).sum()), float(base.sum()))


def shifted_target(w: Array, h: Array, cross: Array, damping: float, strength: float = 1.0) -> Any:
    """Weights that reproduce W x from the quantized input: argmin over V of E|W x - V x_q|^2 + ridge |V - W|^2.

    h = E[x_q x_q^T], cross = E[x x_q^T];  V = W + W (cross - h) (h + ridge)^-1.
    strength: the share of the way from W that is gone; noisy inputs make V smaller than is good for later layers.
    """
    step = np.matmul(w, cross - h)
    return w + strength * np.swapaxes(np.linalg.solve(damped(h, damping), np.swapaxes(step, 1, 2)), 1, 2)
