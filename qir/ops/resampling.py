"""Where the samples of a resized axis come from: coordinates, nearest indices, linear weights; float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TypeInferenceError, UnsupportedError
from ..types import Array

COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
)  # fmt: skip
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")

TIE = np.float32(1e-5)
"""Half-way cases of the two round_prefer modes: the coordinate carries a float32 error (7/2 comes as 3.4999998)."""


@dataclass(frozen=True)
class Axis:
    """One resized axis: size before and after, the scale that the coordinates use, the crop (start, end)."""

    index: int
    size: int
    out: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


def check(attrs: Mapping[str, Any]) -> None:
    """Raises TypeInferenceError on unknown modes, UnsupportedError on antialiased nearest neighbours."""
    if attrs["mode"] not in ("nearest", "linear", "cubic"):
        raise TypeInferenceError(f"mode {attrs['mode']!r} is unknown")
    if attrs["antialias"] and attrs["mode"] == "nearest":
        raise UnsupportedError("antialiased nearest neighbours are not supported", hint="set antialias=0")
    for key, known in (("coordinate_transformation_mode", COORDINATES), ("nearest_mode", NEAREST)):
        if attrs[key] not in known:
            raise TypeInferenceError(f"{key} {attrs[key]!r} is unknown")


def resized_axes(attrs: Mapping[str, Any], shape: Sequence[int], roi: Any, scales: Any, sizes: Any) -> list[Axis]:
    """The axes that `scales` or `sizes` (exactly one is given and not empty) resize.

    Raises TypeInferenceError where neither, or both, are given, or their length is not that of the axes.
    """
    check(attrs)
    scales = None if scales is None or np.size(scales) == 0 else np.reshape(scales, -1).astype(np.float32)
    sizes = None if sizes is None or np.size(sizes) == 0 else [int(s) for s in np.reshape(sizes, -1)]
    if (scales is None) == (sizes is None):
        raise TypeInferenceError("exactly one of scales and sizes must be given")
    rank = len(shape)
    axes = list(range(rank)) if attrs["axes"] is None else [int(a) % rank for a in attrs["axes"]]
    crop = attrs["coordinate_transformation_mode"] == "tf_crop_and_resize"
    corners = np.reshape(roi, -1).astype(np.float32) if crop and roi is not None and np.size(roi) else None
    if crop and (corners is None or corners.size != 2 * len(axes)):
        raise TypeInferenceError("tf_crop_and_resize needs a roi with two numbers for each axis")
    given = len(axes) if sizes is None else len(sizes)
    if len(axes) != given or (scales is not None and scales.size != len(axes)):
        raise TypeInferenceError(f"scales or sizes do not match {len(axes)} axes")
    found: list[Axis] = []
    if sizes is not None:
        factors = [np.float32(s) / np.float32(shape[a]) for s, a in zip(sizes, axes, strict=True)]
        policy = attrs["keep_aspect_ratio_policy"]
        if policy in ("not_larger", "not_smaller"):
            one = min(factors) if policy == "not_larger" else max(factors)
            factors = [one] * len(axes)
            sizes = [int(np.floor(float(one) * shape[a] + 0.5)) for a in axes]
    else:
        assert scales is not None
        factors = list(scales)
        sizes = [int(np.floor(np.float32(shape[a]) * s)) for a, s in zip(axes, scales, strict=True)]
    for i, axis in enumerate(axes):
        if sizes[i] < 1 or not factors[i] > 0:
            raise TypeInferenceError(f"axis {axis} of {shape[axis]} would get a size of {sizes[i]}")
        region = (0.0, 1.0) if corners is None else (float(corners[i]), float(corners[len(axes) + i]))
        found.append(Axis(axis, shape[axis], sizes[i], float(factors[i]), region))
    return found


def coordinates(attrs: Mapping[str, Any], axis: Axis) -> NDArray[np.float32]:
    """For each output position the (float32) position in the input."""
    mode = attrs["coordinate_transformation_mode"]
    f = np.float32
    x, scale, size, out = np.arange(axis.out, dtype=f), f(axis.scale), f(axis.size), f(axis.out)
    half: NDArray[np.float32] = ((x + f(0.5)) / scale - f(0.5)).astype(f)
    if mode == "asymmetric":
        return (x / scale).astype(f)
    if mode == "pytorch_half_pixel":
        return half if axis.out > 1 else np.zeros(1, dtype=f)
    if mode == "align_corners":
        return (x * (size - 1) / (out - 1)).astype(f) if axis.out > 1 else np.zeros(1, dtype=f)
    if mode == "half_pixel_symmetric":
        adjustment = out / (scale * size)
        offset = size / f(2) * (f(1) - adjustment)
        wide = (x.astype(np.float64) + 0.5) / float(scale) - 0.5  # runtimes add the two parts in double precision
        return (float(offset) + wide).astype(f)
    if mode == "tf_crop_and_resize":
        start, end = f(axis.roi[0]), f(axis.roi[1])
        if axis.out == 1:
            return np.asarray([f(0.5) * (start + end) * (size - 1)], dtype=f)
        return (start * (size - 1) + x * (end - start) * (size - 1) / (out - 1)).astype(f)
    return half


def outside(attrs: Mapping[str, Any], axis: Axis) -> NDArray[np.bool_]:
    """Output positions that take the extrapolation value (tf_crop_and_resize only)."""
    if attrs["coordinate_transformation_mode"] != "tf_crop_and_resize":
        return np.zeros(axis.out, dtype=bool)
    x = coordinates(attrs, axis)
    return (x < 0) | (x > axis.size - 1)


def nearest_index(attrs: Mapping[str, Any], axis: Axis) -> NDArray[np.int64]:
    """The nearest input position of each output position."""
    if axis.size == axis.out and axis.scale == 1 and axis.roi == (0.0, 1.0):
        return np.arange(axis.out)
    x = coordinates(attrs, axis)
    mode = attrs["nearest_mode"]
    if mode == "floor":
        picked = np.floor(x)
    elif mode == "ceil":
        picked = np.ceil(x)
    else:
        low = np.floor(x)
        tie = np.abs(x - low - np.float32(0.5)) < TIE
        up = np.where(tie, mode == "round_prefer_ceil", x - low > np.float32(0.5))
        picked = low + up
    return np.clip(picked.astype(np.int64), 0, axis.size - 1)


def linear_taps(attrs: Mapping[str, Any], axis: Axis) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """(first index, second index, weight of the second) of each output position; float32 weights."""
    x = np.clip(coordinates(attrs, axis), np.float32(0), np.float32(axis.size - 1))
    low = x.astype(np.int64)
    high = np.minimum(low + 1, axis.size - 1)
    return low, high, np.where(low == high, np.float32(0), x - low.astype(np.float32))


def by_matrix(attrs: Mapping[str, Any]) -> bool:
    """Whether more than two samples meet in an output: cubic and antialiased resizing."""
    return attrs["mode"] == "cubic" or bool(attrs["antialias"])


def _cubic(x: Array, a: float) -> Array:
    """Keys' kernel  [R. Keys, Cubic convolution interpolation, 1981, eq. 4]."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resize_matrix(attrs: Mapping[str, Any], axis: Axis) -> NDArray[np.float64]:
    """(out, size): the resized axis is this times the axis, for linear and cubic modes, antialiased or not.

    Samples beyond the border are those at the border, or with exclude_outside do not count.
    """
    at = coordinates(attrs, axis).astype(np.float64)[:, None]
    cubic = attrs["mode"] == "cubic"
    wide = max(1.0, 1.0 / axis.scale) if attrs["antialias"] else 1.0
    reach = int(np.ceil((2 if cubic else 1) * wide))
    taps = np.floor(at) + np.arange(1 - reach, reach + 1)
    distance = (taps - at) / wide
    weights = _cubic(distance, attrs["cubic_coeff_a"]) if cubic else np.clip(1 - np.abs(distance), 0, None)
    if attrs["exclude_outside"]:
        weights = np.where((taps >= 0) & (taps < axis.size), weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((axis.out, axis.size))
    rows = np.broadcast_to(np.arange(axis.out)[:, None], taps.shape)
    np.add.at(matrix, (rows, np.clip(taps, 0, axis.size - 1).astype(np.int64)), weights)
    return matrix
