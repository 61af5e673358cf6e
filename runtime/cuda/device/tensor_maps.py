"""Tensor maps: what the driver makes of the description of an image for the copy engine of sm_90 and later."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

import numpy as np

from qir.errors import BackendError
from qir.types import Array

from .interface import ImageMap

BYTES, ALIGNMENT = 128, 64
SPANS = (128, 64)
"""Bytes of one pixel that a copy can take: the spans of swizzles."""

UINT8, NO_INTERLEAVE, L2_128B, ZEROS = 0, 0, 2, 0
SWIZZLES = {128: 3, 64: 2}
"""Values of the driver's enums CUtensorMapDataType, -Interleave, -L2promotion, -FloatOOBfill; -Swizzle by its span."""

SWITCH = "QIR_CUDA_TENSOR_MAPS"
"""Environment variable: 0 keeps GPUs from using tensor maps."""


def switched_on() -> bool:
    """What the environment says."""
    return os.environ.get(SWITCH, "1").lower() not in ("0", "off", "false")


@cache
def driver() -> Any | None:
    """The driver's library, if it makes tensor maps (CUDA 12 and later)."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return library if hasattr(library, "cuTensorMapEncodeIm2col") else None


def encode(image: ImageMap, library: Any) -> Array:
    """The driver's tensor map, 128 bytes [cuTensorMapEncodeIm2col].  Raises BackendError where it refuses."""
    room = np.zeros(BYTES + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    steps = (1, *image.steps, 1)
    status = library.cuTensorMapEncodeIm2col(
        ctypes.c_void_p(room.ctypes.data + start),
        ctypes.c_int(UINT8),
        ctypes.c_uint(len(image.sizes)),
        ctypes.c_void_p(image.pointer),
        (ctypes.c_ulonglong * 4)(*image.sizes),
        (ctypes.c_ulonglong * 3)(*image.strides),
        (ctypes.c_int * 2)(*image.lower),
        (ctypes.c_int * 2)(*image.upper),
        ctypes.c_uint(image.span),
        ctypes.c_uint(image.pixels),
        (ctypes.c_uint * 4)(*steps),
        *(ctypes.c_int(v) for v in (NO_INTERLEAVE, SWIZZLES[image.span], L2_128B, ZEROS)),
    )
    if status:
        raise BackendError(f"the driver makes no tensor map of {image}: error {status}")
    return room[start : start + BYTES]


def fits(geometry: dict[str, int], channels: int, span: int = 128) -> bool:
    """Whether the copy engine's im2col can stand in for the gathering of a layer whose image has `channels` (of 16).

    Padding has to be zero; corners, offsets and steps have few bits; the corners have to be the same in x and y, about
    whose order the driver's documentation is silent; and rounding channels up to the span may add a
    quarter to K at most.  64 is for channels that are no multiple of 128.
    """
    g, view = geometry, image_map(0, geometry, channels, channels, 1)
    reach = [v + (g[f"kernel_{a}"] - 1) * g[f"dilation_{a}"] for v, a in zip(view.upper, "wh", strict=True)]
    if g["pad_value"] and (min(view.lower) < 0 or max(reach) > 0):
        return False
    narrow = min(*view.lower, *view.upper) >= -128 and max(*view.upper, *reach) <= 127 and max(view.steps) <= 8
    same = view.lower[0] == view.lower[1] and view.upper[0] == view.upper[1]
    offsets = [(g[f"kernel_{a}"] - 1) * g[f"dilation_{a}"] for a in "wh"]
    taps = g["kernel_h"] * g["kernel_w"]
    rounded, plain = taps * -(-channels // span), -(-taps * channels // span)
    whole = rounded * 4 <= plain * 5 and (span == SPANS[0] or channels % SPANS[0] > 0)
    return narrow and same and max(offsets) <= 255 and whole


def encodable(image: ImageMap) -> bool:
    """Whether the driver makes a tensor map of an image, by what it documents, so that it is never asked in vain.

    [CUDA Driver API, cuTensorMapEncodeIm2col: rank 4, 8 bits, no interleave.]  Beyond that windows have to begin
    within the image somewhere along each axis: whether a box past its end has an area is left open there.
    """
    channels, *sides, _ = image.sizes
    boxes = zip(sides, image.lower, image.upper, strict=True)
    return (
        min(image.sizes) > 0
        and max(image.sizes) <= 1 << 32
        and all(s % 16 == 0 and 0 < s < 1 << 40 for s in image.strides)
        and image.strides[0] >= channels
        and image.strides[1] >= sides[0] * image.strides[0]
        and image.strides[2] >= sides[1] * image.strides[1]
        and image.pointer % 16 == 0
        and all(-128 <= v <= 127 for v in (*image.lower, *image.upper))
        and all(n + high - low > 0 and low < n and n - 1 + high >= 0 for n, low, high in boxes)
        and 0 < image.span <= 256
        and image.span % 16 == 0
        and 0 < image.pixels <= 1024
        and all(0 < s <= 8 for s in image.steps)
    )


def image_map(
    pointer: int, geometry: dict[str, int], channels: int, pixel_stride: int, pixels: int, span: int = 128
) -> ImageMap:  # fmt: skip
    """The im2col view of a layer's input: windows begin from the padding on, as many steps apart as outputs need."""
    g = geometry
    row = g["width"] * pixel_stride
    last = {
        a: (g[f"out_{n}"] - 1) * g[f"stride_{a}"] - g[f"pad_{p}"] - (g[n] - 1)
        for a, n, p in (("w", "width", "left"), ("h", "height", "top"))
    }
    return ImageMap(
        pointer,
        (channels, g["width"], g["height"], g["batch"]),
        (pixel_stride, row, row * g["height"]),
        (-g["pad_left"], -g["pad_top"]),
        (last["w"], last["h"]),
        (g["stride_w"], g["stride_h"]),
        pixels,
        span,
    )
