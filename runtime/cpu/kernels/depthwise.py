"""Depthwise convolutions row by row over a padded patch."""

from __future__ import annotations

from typing import Any

from numba import njit

from . import record as r
from .epilogue import run_epilogue
from .gemm import build_patch
from .memory import address
from .vector_ops import make_depthwise_row

_row3_unsigned, _row3_signed = make_depthwise_row((3, 3), False), make_depthwise_row((3, 3), True)
_row5_unsigned, _row5_signed = make_depthwise_row((5, 5), False), make_depthwise_row((5, 5), True)


@njit(nogil=True)
def depthwise_chunk(step: Any, chunk: int, records: Any, pointers: Any, scratch: int, panel_bytes: int) -> None:
    """Some output rows of one image, all channels."""
    blocks = step[r.ROW_CHUNKS] // step[r.IMAGES]
    image, block = chunk // blocks, chunk % blocks
    out_h, out_w, channels, kernel = step[r.OUT_H], step[r.OUT_W], step[r.CHANNELS], step[r.KERNEL_H]
    oh0 = out_h * block // blocks
    ohn = out_h * (block + 1) // blocks - oh0
    patch = scratch + r.AT_PANEL + panel_bytes
    build_patch(step, pointers, patch, image, oh0, ohn)
    registers, ld = scratch + r.AT_REGISTERS, step[r.LD]
    line = step[r.PATCH_W] * channels
    row_stride, tap_stride, pixel_stride = (
        line * step[r.DILATION_H],
        channels * step[r.DILATION_W],
        channels * step[r.STRIDE_W],
    )
    weights, signed = address(pointers, step[r.WEIGHTS]), step[r.X_DTYPE] == r.I8
    block_bytes = (kernel * kernel + 1) // 2 * 64
    pieces = (out_w + step[r.BLOCK_ROWS] - 1) // step[r.BLOCK_ROWS]
    for i in range(ohn):
        for piece in range(pieces):
            j0 = out_w * piece // pieces
            jn = out_w * (piece + 1) // pieces - j0
            r0 = (image * out_h + oh0 + i) * out_w + j0
            for c0 in range(0, channels, step[r.BLOCK_COLUMNS]):
                cn = min(step[r.BLOCK_COLUMNS], channels - c0)
                src = patch + i * step[r.STRIDE_H] * line + j0 * pixel_stride + c0
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
                    step[r.EPILOGUE_FIRST],
                    step[r.EPILOGUE_COUNT],
                    pointers,
                    registers,
                    r.REGISTER_BYTES,
                    ld,
                    r0,
                    jn,
                    c0,
                    cn,
                )
