"""Grids that weights have already: kept through the float rewrites, found again where these have moved them.

A weight-only or dynamically quantized model becomes a float graph again (`UndoQdq`); its weights lie on grids, though,
and quantizing them anew would round them twice.  `graph.tables[GIVEN_WEIGHTS]` names constants and their grids.
Folding a factor into a layer makes another constant with another scale a channel, transposing another axis:
`explained` finds the grid of each channel from the numbers alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qir.graph import Graph, Value
from qir.types import Array, DType, QuantParams

from .grids import TINY

Floats = NDArray[np.float64]

GIVEN_WEIGHTS = "given_weights"
"""graph.tables entry: constant's name -> its QuantParams, or None where it has one for each block."""

GIVEN_RANGES = "given_ranges"
"""graph.tables entry: activation's name -> the interval of the grid that the file gave it."""

KEPT_LAYERS = "kept_layers"
"""graph.tables entry: layers whose weights' integers are those of the file, so that nothing rounds them again."""

NEAR = 5e-3
"""A quotient is an integer within this: float32 products of 8-bit integers are off by 1e-4 at most."""

HALF_NEAR = 0.1
"""The same for the constant that the file's grid belongs to, whose floats may be half precision."""

FIRST = 32
"""Elements of a channel that are tried before all of them are."""


def given_grid(graph: Graph, w: Value, axis: int | None) -> QuantParams | None:
    """The grid that a weight tensor lies on, with one zero point; None where none is given or found.

    axis: that of the output channels, along which a grid may vary.
    """
    table: dict[str, Any] = graph.tables.get(GIVEN_WEIGHTS, {})
    if not table:
        return None
    array = w.array()
    q = table.get(w.name)
    if isinstance(q, QuantParams) and (q.axis is None or q.axis == axis):
        q = one_zero_point(q)
        if q is not None and _lies_on(array, q):
            return q
    return explained(array, axis)


def one_zero_point(q: QuantParams) -> QuantParams | None:
    """The same steps with one zero point for all channels: a 4-bit grid in 8 bits about 0; None where that is too wide.

    The codes of such a grid are those of the file less their zero points.
    """
    if len(set(q.zero_point)) == 1:
        return q
    lo, hi = q.dtype.lo - max(q.zero_point), q.dtype.hi - min(q.zero_point)
    if lo < DType.INT8.lo or hi > DType.INT8.hi:
        return None
    return QuantParams(q.scale, (0,) * len(q.scale), DType.INT8, q.axis)


def _lies_on(w: Array, q: QuantParams) -> bool:
    steps = q.along(w.ndim)[0]
    return bool((np.abs(q.dequantize(q.quantize(w)) - w) <= HALF_NEAR * steps).all())


def explained(w: Array, axis: int | None) -> QuantParams | None:
    """The coarsest grid for each channel on which all its weights lie, in at most 8 bits; None where there is none."""
    rows = w.reshape(1, -1) if axis is None else np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
    rows = rows.astype(np.float64)
    scale = _steps(rows)
    if scale is None:
        return None
    ints = np.rint(rows / scale[:, None])
    lo, hi = (int(f(ints, initial=0)) for f in (np.min, np.max))
    if lo >= DType.INT8.lo and hi <= DType.INT8.hi:
        return QuantParams.make(scale, 0, DType.INT8, axis)
    if hi - lo <= DType.UINT8.hi:
        return QuantParams.make(scale, min(max(-lo, 0), DType.UINT8.hi), DType.UINT8, axis)
    return None


def _steps(rows: Floats) -> Floats | None:
    """For each row the greatest step that divides it, at most 255 of them in its extreme; None where a row has none."""
    top = np.abs(rows).max(axis=1, initial=0.0)
    scale = np.full(len(rows), TINY)
    open_rows = np.flatnonzero(top > 0)
    for n in range(1, DType.UINT8.hi + 1):
        if not open_rows.size:
            return scale
        step = top[open_rows] / n
        few = _divides(rows[open_rows, :FIRST], step)
        good = few.copy()
        good[few] = _divides(rows[open_rows[few]], step[few])
        scale[open_rows[good]] = step[good]
        open_rows = open_rows[~good]
    return None if open_rows.size else scale


def _divides(rows: Floats, step: Floats) -> NDArray[np.bool_]:
    quotient = rows / step[:, None]
    return np.abs(quotient - np.rint(quotient)).max(axis=1, initial=0.0) < NEAR
