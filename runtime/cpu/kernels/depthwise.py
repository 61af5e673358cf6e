"""Depthwise convolutions row by row over a padded patch."""

from __future__ import annotations

from typing import Any

from numba import njit

from .epilogue import run_epilogue
from .gemm import build_patch
from .memory import address
from .record import (
    AT_PANEL,
    AT_REGISTERS,
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    CHANNELS,
    DILATION_H,
    DILATION_W,
    EPILOGUE_COUNT,
    EPILOGUE_FIRST,
    I8,
    IMAGES,
    KERNEL_H,
    LD,
    OUT_H,
    OUT_W,
    PATCH_W,
    REGISTER_BYTES,
    ROW_CHUNKS,
    STRIDE_H,
    STRIDE_W,
    WEIGHTS,
    X_DTYPE,
)
from .vector_ops import make_depthwise_row

_row3_unsigned, _row3_signed = make_depthwise_row((3, 3), False), make_depthwise_row((3, 3), True)
_row5_unsigned, _row5_signed = make_depthwise_row((5, 5), False), make_depthwise_row((5, 5), True)


@njit(nogil=True)
def depthwise_chunk(step: Any, chunk: int, records: Any, pointers: Any, scratch: int, panel_bytes: int) -> None:
    """Some output rows of one image, all channels."""
    blocks = step[ROW_CHUNKS] // step[IMAGES]
    image, block = chunk // blocks, chunk % blocks
    out_h, out_w, channels, kernel = step[OUT_H], step[OUT_W], step[CHANNELS], step[KERNEL_H]
    oh0 = out_h * block // blocks
    ohn = out_h * (block + 1) // blocks - oh0
    patch = scratch + AT_PANEL + panel_bytes
    build_patch(step, pointers, patch, image, oh0, ohn)
    registers, ld = scratch + AT_REGISTERS, step[LD]
    line = step[PATCH_W] * channels
    row_stride, tap_stride, pixel_stride = (
        line * step[DILATION_H],
        channels * step[DILATION_W],
        channels * step[STRIDE_W],
    )
    weights, signed = address(pointers, step[WEIGHTS]), step[X_DTYPE] == I8
    block_bytes = (kernel * kernel + 1) // 2 * 64
    pieces = (out_w + step[BLOCK_ROWS] - 1) // step[BLOCK_ROWS]
    for i in range(ohn):
        for piece in range(pieces):
            j0 = out_w * piece // pieces
            jn = out_w * (piece + 1) // pieces - j0
            r0 = (image * out_h + oh0 + i) * out_w + j0
            for c0 in range(0, channels, step[BLOCK_COLUMNS]):
                cn = min(step[BLOCK_COLUMNS], channels - c0)
                src = patch + i * step[STRIDE_H] * line + j0 * pixel_stride + c0
                w = weights + c0 // 16 * block_bytes
                if kernel == 3:
                    if signed:
                        _row3_signed(src, row_stride, tap_stride, pixel_stride, jn, w, registers, ld * 4, cn)
                    else:
                        _row3_unsigned(src, row_stride, tap_stride, pixel_stride, jn, w, registers, ld * 4, cn)
                elif signed:
                    _row5_signed(src, row_stride, tap_stride, pixel_stride, jn, w, registers, ld * 4, cn)
                else:
                    _row5_unsigned(src, row_stride, tap_stride, pixel_stride, jn, w, registers, ld * 4, cn)
                run_epilogue(
                    records,
                    step[EPILOGUE_FIRST],
                    step[EPILOGUE_COUNT],
                    pointers,
                    registers,
                    REGISTER_BYTES,
                    ld,
                    r0,
                    jn,
                    c0,
                    cn,
                )
