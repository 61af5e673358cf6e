"""Factors and offsets of channels on the weights of linear layers: arrays only."""

from __future__ import annotations

from typing import Any

import numpy as np

from qir.types import Array


def along(c: Array, rank: int, axis: int, size: int) -> Array | None:
    """A constant that broadcasts against a tensor of `rank` axes as a vector along `axis`; None where it varies
    along another axis too."""
    if c.ndim > rank:
        return None
    full = c.reshape((1,) * (rank - c.ndim) + c.shape)
    if any(d != 1 for i, d in enumerate(full.shape) if i != axis % rank) or full.size not in (1, size):
        return None
    return np.broadcast_to(full.reshape(-1), (size,))


def scale_in(w: Array, s: Array, group: int) -> Array:
    """Conv weights (M, C/group, *k) with input channels scaled by s (C,)."""
    m, cg = w.shape[:2]
    return (w.reshape(group, m // group, cg, -1) * s.reshape(group, 1, cg, 1)).reshape(w.shape)


def push_in(w: Array, c: Array, group: int) -> Array:
    """sum_{c,k} w[m,c,k] c[c]: what a constant offset of the input channels adds to a Conv's output, (M,)."""
    m, cg = w.shape[:2]
    sums = w.reshape(group, m // group, cg, -1).sum(axis=3)
    return (sums * c.reshape(group, 1, cg)).sum(axis=2).reshape(m)


def scale_out(w: Array, s: Array) -> Array:
    """Conv weights (M, C/group, *k) with output channels scaled by s (M,)."""
    return w * s.reshape(-1, *[1] * (w.ndim - 1))


def transposed_scale_out(w: Array, s: Array, group: int) -> Array:
    """ConvTranspose weights (C, M/group, *k) with output channels scaled by s (M,)."""
    c, mg = w.shape[:2]
    return (w.reshape(group, c // group, mg, -1) * s.reshape(group, 1, mg, 1)).reshape(w.shape)


def gemm_axes(trans_b: int) -> tuple[int, int]:
    """(input axis, output axis) of Gemm's B."""
    return (1, 0) if trans_b else (0, 1)


def gemm_scaled(w: Array, s: Array, axis: int) -> Array:
    """B of a Gemm scaled along an axis."""
    return w * (s[:, None] if axis == 0 else s[None, :])


def plus(b: Array | None, c: Array) -> Array:
    """A bias that may be absent, plus c."""
    return c if b is None else b + c


def unpadded(attrs: Any) -> bool:
    """Whether a Conv pads nothing."""
    return attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(attrs.get("pads") or [0])
