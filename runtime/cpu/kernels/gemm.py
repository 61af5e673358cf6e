"""Heads: what fills register 0 for one region of a layer (GEMM over a widened patch, windows, loads)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from . import record as r
from .epilogue import prefetch_epilogue, run_epilogue
from .finish import ROWS_EACH
from .inner_product import inner_product, row_corrections
from .intrinsics import LANES, MAX_ROWS, VECTORS, as_pointer, carray
from .memory import address
from .tiles import tile


@njit(nogil=True)
def widen_patch(dst: int, src: int, count: int, signed: bool, element: int) -> None:
    """8-bit activations as a kernel wants them: int16 (element 2), as they are (1), offset by 128 (0)."""
    if element < 2:
        b = carray(as_pointer(dst), count, np.uint8)
        s = carray(as_pointer(src), count, np.uint8)
        flip = np.uint8(128 if signed and element == 0 else 0)
        for i in range(count):
            b[i] = s[i] ^ flip
    elif signed:
        d = carray(as_pointer(dst), count, np.int16)
        x = carray(as_pointer(src), count, np.int8)
        for i in range(count):
            d[i] = x[i]
    else:
        e = carray(as_pointer(dst), count, np.int16)
        y = carray(as_pointer(src), count, np.uint8)
        for i in range(count):
            e[i] = y[i]


@njit(nogil=True)
def widen_panels(dst: int, src: int, count: int) -> None:
    """count int8 weights as int16: a step that multiplies them with many rows saves the widening in each."""
    p = carray(as_pointer(src), count, np.int8)
    d = carray(as_pointer(dst), count, np.int16)
    for i in range(count):
        d[i] = p[i]


@njit(nogil=True)
def unpack4(dst: int, src: int, count: int) -> None:
    """count bytes of two signed nibbles (low first) as 2 * count int8."""
    p = carray(as_pointer(src), count, np.uint8)
    d = carray(as_pointer(dst), 2 * count, np.int8)
    for i in range(count):
        byte = np.int8(p[i])
        d[2 * i] = np.int8(byte << 4) >> 4
        d[2 * i + 1] = byte >> 4


@njit(nogil=True)
def build_patch(step: Any, pointers: Any, patch: int, image: int, oh0: int, ohn: int) -> None:
    """The input rows under output rows oh0.. of one image, padded and widened: (rows, PATCH_W, CHANNELS)."""
    channels, in_h, in_w, width = step[r.CHANNELS], step[r.IN_H], step[r.IN_W], step[r.PATCH_W]
    x, stride, signed = address(pointers, step[r.X]), step[r.X_STRIDE], step[r.X_DTYPE] == r.I8
    pad = address(pointers, step[r.PAD_ROW])
    # a kernel of one row (column) looks at every stride-th row only: the patch holds just those
    row_step = step[r.STRIDE_H] if step[r.KERNEL_H] == 1 else 1
    col_step = step[r.STRIDE_W] if step[r.KERNEL_W] == 1 else 1
    tall = step[r.KERNEL_H]
    rows = ohn if tall == 1 else (ohn - 1) * step[r.STRIDE_H] + (tall - 1) * step[r.DILATION_H] + 1
    top = oh0 * step[r.STRIDE_H] - step[r.PAD_TOP]
    left = step[r.PAD_LEFT]
    element = step[r.PATCH_ELEMENT]
    pixel = channels * max(element, 1)
    every = row_step == 1 and col_step == 1 and left == 0 and width == in_w and top >= 0 and top + rows <= in_h
    if every and stride == channels:
        widen_patch(patch, x + (image * in_h + top) * in_w * stride, rows * width * channels, signed, element)
        return
    for row in range(rows):
        ih = top + row * row_step
        line = patch + row * width * pixel
        first, last = 0, width
        if ih < 0 or ih >= in_h:
            first = last = width
        else:
            first = min(max((left + col_step - 1) // col_step, 0), width)
            last = min((in_w - 1 + left) // col_step + 1, width)
            last = max(first, last)
            source = x + ((image * in_h + ih) * in_w + first * col_step - left) * stride
            if col_step == 1 and stride == channels:
                widen_patch(line + first * pixel, source, (last - first) * channels, signed, element)
            else:
                for c in range(first, last):
                    widen_patch(line + c * pixel, source + (c - first) * col_step * stride, channels, signed, element)
        for c in range(first):
            widen_patch(line + c * pixel, pad, channels, signed, element)
        for c in range(last, width):
            widen_patch(line + c * pixel, pad, channels, signed, element)


@njit(nogil=True)
def clear_end(patch: int, bytes: int) -> None:
    """Zeros after a patch: cross-multiplied kernels may take numbers from there, which then must be small."""
    v = carray(as_pointer(patch + bytes), 4, np.int64)
    for i in range(4):
        v[i] = 0


@njit(nogil=True)
def gemm_chunk(step: Any, index: int, chunk: int, records: Any, pointers: Any, scratch: int, panel_bytes: int) -> None:
    """Some output rows of one image, some output channels."""
    column_chunks = step[r.COLUMN_CHUNKS]
    row_chunk, column_chunk = chunk // column_chunks, chunk % column_chunks
    blocks = step[r.ROW_CHUNKS] // step[r.IMAGES]
    image, block = row_chunk // blocks, row_chunk % blocks
    out_h, out_w = step[r.OUT_H], step[r.OUT_W]
    oh0 = out_h * block // blocks
    ohn = out_h * (block + 1) // blocks - oh0
    patch = scratch + r.AT_PANEL + panel_bytes
    key = carray(as_pointer(scratch), 2, np.int64)
    offsets_at = scratch + r.AT_ROWS
    rows = ohn * out_w
    cross_multiplied = step[r.CROSS_MULTIPLIED] != 0
    segments, segment_count, words = address(pointers, step[r.SEGMENTS]), step[r.SEGMENT_COUNT], step[r.GROUPS]
    if key[0] != index or key[1] != row_chunk:
        build_patch(step, pointers, patch, image, oh0, ohn)
        key[0], key[1] = index, row_chunk
        offsets = carray(as_pointer(offsets_at), rows, np.int64)
        pixel = step[r.CHANNELS] * max(step[r.PATCH_ELEMENT], 1)
        down = 1 if step[r.KERNEL_H] == 1 else step[r.STRIDE_H]
        right = 1 if step[r.KERNEL_W] == 1 else step[r.STRIDE_W]
        for i in range(ohn):
            for j in range(out_w):
                offsets[i * out_w + j] = (i * down * step[r.PATCH_W] + j * right) * pixel
        if cross_multiplied:
            last_row = (ohn - 1) * down + 1 + (step[r.KERNEL_H] - 1) * step[r.DILATION_H]
            clear_end(patch, last_row * step[r.PATCH_W] * pixel)
            row_corrections(patch, offsets_at, rows, segments, segment_count, words)
    count = step[r.PANEL_COUNT]
    first = count * column_chunk // column_chunks
    last = count * (column_chunk + 1) // column_chunks
    panels = carray(as_pointer(address(pointers, step[r.PANELS])), (count, 5), np.int64)
    weights = address(pointers, step[r.WEIGHTS])
    init = address(pointers, step[r.INIT])
    registers = scratch + r.AT_REGISTERS
    ld, block_rows, block_columns = step[r.LD], step[r.BLOCK_ROWS], step[r.BLOCK_COLUMNS]
    row0 = (image * out_h + oh0) * out_w
    row_blocks = (rows + block_rows - 1) // block_rows
    p = first
    while p < last:
        c0 = panels[p, 1]
        q = p
        while q < last and panels[q, 1] + panels[q, 2] - c0 <= block_columns:
            q += 1
        cn = panels[q - 1, 1] + panels[q - 1, 2] - c0
        base = weights + panels[p, 0]
        size = panels[q - 1, 0] + panels[q - 1, 4] - panels[p, 0]
        scale = 1
        if step[r.PACKED4]:
            unpack4(scratch + r.AT_PANEL, weights + panels[p, 0] // 2, size // 2)
            base = scratch + r.AT_PANEL
        elif cross_multiplied:
            widen_panels(scratch + r.AT_PANEL, base, size)
            base, scale = scratch + r.AT_PANEL, 2
        r1 = 0
        for rb in range(row_blocks):
            # blocks of whole tiles but for the last
            r0, r1 = r1, min((rows * (rb + 1) // row_blocks + ROWS_EACH - 1) // ROWS_EACH * ROWS_EACH, rows)
            rn = r1 - r0
            tiles = (rn + MAX_ROWS - 1) // MAX_ROWS
            prefetch_epilogue(records, step[r.EPILOGUE_FIRST], step[r.EPILOGUE_COUNT], pointers, row0 + r0, rn, c0, cn)
            for n in range(p, q):
                b = base + (panels[n, 0] - panels[p, 0]) * scale
                group_segments = segments + panels[n, 3]
                vectors = 1 if panels[n, 2] <= LANES else VECTORS
                column = panels[n, 1]
                at, out = offsets_at + 8 * r0, registers + (column - c0) * 4
                if cross_multiplied:
                    inner_product(
                        rn, vectors, patch, at, segments, segment_count, words, b, init + 4 * column, out, ld * 4
                    )
                    continue
                for i in range(tiles):
                    m0 = rn * i // tiles
                    mn = rn * (i + 1) // tiles - m0
                    tile(
                        mn,
                        vectors,
                        patch,
                        at + 8 * m0,
                        group_segments,
                        segment_count,
                        words,
                        b,
                        out + m0 * ld * 4,
                        ld * 4,
                    )
            run_epilogue(
                records,
                step[r.EPILOGUE_FIRST],
                step[r.EPILOGUE_COUNT],
                pointers,
                registers,
                r.REGISTER_BYTES,
                ld,
                row0 + r0,
                rn,
                c0,
                cn,
            )
        p = q
