"""Kernel arguments passed by value: NumPy structured dtypes that mirror the structs of kernels/, field by field."""

from __future__ import annotations

from typing import Any

import numpy as np

from qir.types import Array

RANK = 6

POINTER, S32, U32, S64 = "u8", "i4", "u4", "i8"


def _struct(*fields: tuple[str, str, Any] | tuple[str, str]) -> np.dtype[np.void]:
    return np.dtype([(f[0], f[1]) if len(f) == 2 else f for f in fields], align=True)  # type: ignore[return-value]


def _ints(names: str, kind: str = S32) -> list[tuple[str, str]]:
    return [(n, kind) for n in names.split()]


VIEW = _struct(("data", POINTER), ("offset", S64), ("strides", S64, (RANK,)), ("kind", S32))
SHAPE = _struct(("count", S64), ("dims", S32, (RANK,)))
ROWS = _struct(("data", POINTER), *_ints("image_stride pixel_stride", S64), ("kind", S32))
EXTENT = _struct(*_ints("count pixels chunks"))
GRID = _struct(*_ints("zero_point lo hi"))
WINDOW = _struct(
    *_ints("height width kernel_h kernel_w stride_h stride_w dilation_h dilation_w pad_top pad_left pad_value")
)
TENSOR_MAP = _struct(
    ("data", POINTER), ("strides", S64, (3,)), ("sizes", S32, (4,)), ("lower", S32, (2,)), ("upper", S32, (2,)),
    ("steps", S32, (2,)), *_ints("pixels channels"), ("rest", S32, (12,)),
)  # fmt: skip
"""The emulation's tensor map; a GPU's is the driver's secret, and as large."""
RESCALE = _struct(*_ints("multiplier shift x_zero zero_point lo hi"))
EPILOGUE = _struct(
    *_ints("bias multiplier shift residual table output", POINTER),
    *_ints("output_stride output_offset residual_stride residual_offset", S64),
    *_ints("store zero_point lo hi residual_bits residual_signed"),
    ("add_constant", S64),
    *_ints("a_multiplier b_multiplier add_shift add_zero add_lo add_hi"),
    ("second", POINTER),
    *_ints("second_stride second_offset", S64),
    *_ints("second_x_zero second_multiplier second_shift second_zero second_lo second_hi"),
    ("second_constant", S64),
    ("rounding", POINTER),
    ("program", U32),
)
CONV = _struct(
    *_ints("x w", POINTER),
    *_ints(
        "batch height width channels out_height out_width out_channels kernel_h kernel_w stride_h stride_w "
        "dilation_h dilation_w pad_top pad_left k_padded pad_value pixel_stride "
        "split_slices"
    ),
    ("split_step", S64),
)
DEPTHWISE_CONV = _struct(
    *_ints("x w", POINTER),
    *_ints(
        "batch height width channels out_height out_width kernel_h kernel_w stride_h stride_w dilation_h dilation_w "
        "pad_top pad_left pad_value pixel_stride rows nothing"
    ),
)
DIRECT_CONV = _struct(
    *_ints(
        "batch height width out_height out_width out_channels group_in group_out kernel_h kernel_w stride_h stride_w "
        "dilation_h dilation_w pad_top pad_left weight_zero_point pad_values"
    ),
    ("pad_value", POINTER),
)

KINDS = {"int8": 0, "uint8": 1, "int16": 2, "uint16": 3, "int32": 4, "int64": 5, "float32": 6, "bool": 1}
"""NumPy dtype name -> enum Kind of view.cuh."""


def record(dtype: np.dtype[np.void], **fields: Any) -> Array:
    """One struct; fields that are not named are zero (null pointers)."""
    value = np.zeros((), dtype)
    for name, content in fields.items():
        value[name] = content
    return value


def scalar(kind: str, value: float) -> Array:
    """A plain argument ("i4", "i8", "u8" for a pointer, "f4")."""
    return np.asarray(value, dtype=kind)
