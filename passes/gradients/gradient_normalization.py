"""Derivatives of normalizations that compute their statistics from the input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qir.types import Array

from .gradient_rules import Arrays, Attrs, rule, some, unbroadcast
from .gradient_windows import RULES

__all__ = ["RULES"]


def _row_norm(a: Attrs, xs: Arrays, d: Array, centre: bool) -> list[Array | None]:
    """dx = r (h - mean h - x_hat mean(h x_hat)), h = d gamma, x_hat = (x - mean) r; mean h where x is centred."""
    x, gamma = some(xs[0]), some(xs[1])
    axes = tuple(range(a["axis"] % x.ndim, x.ndim))
    centred = x - x.mean(axes, keepdims=True) if centre else x
    inverse = 1 / np.sqrt((centred * centred).mean(axes, keepdims=True) + a["epsilon"])
    x_hat, h = centred * inverse, d * gamma
    dx = h - x_hat * (h * x_hat).mean(axes, keepdims=True)
    dx = (dx - h.mean(axes, keepdims=True) if centre else dx) * inverse
    beta = [unbroadcast(d, some(xs[2]).shape)] if len(xs) > 2 and xs[2] is not None else []
    return [dx, unbroadcast(d * x_hat, gamma.shape), *beta]


@rule("LayerNormalization")
def _layer_norm(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    return _row_norm(a, xs, some(ds[0]), True)


@rule("RMSNormalization")
def _rms_norm(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    return _row_norm(a, xs, some(ds[0]), False)


@rule("InstanceNormalization", "GroupNormalization")
def _channel_norm(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    """As a layer normalization of the rows that share statistics."""
    x, gamma, d = some(xs[0]), some(xs[1]), some(ds[0])
    along = (1, -1, *[1] * (x.ndim - 2))
    groups = a.get("num_groups", x.shape[1])
    rows = x.reshape(x.shape[0], groups, -1)
    centred = rows - rows.mean(2, keepdims=True)
    inverse = 1 / np.sqrt((centred * centred).mean(2, keepdims=True) + a["epsilon"])
    x_hat, h = centred * inverse, (d * gamma.reshape(along)).reshape(rows.shape)
    dx = (h - x_hat * (h * x_hat).mean(2, keepdims=True) - h.mean(2, keepdims=True)) * inverse
    others = (0, *range(2, x.ndim))
    return [dx.reshape(x.shape), (d * x_hat.reshape(x.shape)).sum(others), d.sum(others)]


@rule("LpNormalization")
def _lp_norm(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    x, y, d, axis, p = some(xs[0]), ys[0], some(ds[0]), a["axis"], a["p"]
    size = np.linalg.norm(x, p, axis=axis, keepdims=True)
    slope = np.sign(x) if p == 1 else y
    return [(d - slope * (d * y).sum(axis, keepdims=True)) / size]
