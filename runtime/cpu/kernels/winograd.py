"""3x3 convolutions in 2.25 times fewer multiplications, exactly: Winograd's F(2x2, 3x3) in integers.

    y = A^T [ (2G) g (2G)^T * B^T d B ] A / 4                     [Lavin and Gray 2016, eq. 12, with 2G for G]

B and A hold only 0 and +-1, 2G only integers, so everything is an integer and the division by 4 is exact.  Transformed
activations stay within 4 * 255 and weights within 9 * 255: int16.  Sums may wrap modulo 2^32 on the way, the result
is right as long as 4 * acc fits int32, which the planner proves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from . import record as r
from .epilogue import run_epilogue
from .gemm import build_patch, clear_end
from .inner_product import inner_product, row_corrections
from .intrinsics import LANES, VECTORS, as_pointer, carray
from .memory import address
from .vector_ops import winograd_input, winograd_output_0, winograd_output_1


@njit(nogil=True)
def winograd_chunk(
    step: Any, index: int, chunk: int, records: Any, pointers: Any, scratch: int, panel_bytes: int
) -> None:
    """Some rows of 2x2 tiles of one image, some output channels.

    Scratch after the panel area: transformed activations (16, tiles, channels) int16, products (16, tiles of a
    strip, block columns) int32, the padded patch.
    """
    column_chunks = step[r.COLUMN_CHUNKS]
    row_chunk, column_chunk = chunk // column_chunks, chunk % column_chunks
    blocks = step[r.ROW_CHUNKS] // step[r.IMAGES]
    image, block = row_chunk // blocks, row_chunk % blocks
    out_h, out_w, channels = step[r.OUT_H], step[r.OUT_W], step[r.CHANNELS]
    tall, across = (out_h + 1) // 2, (out_w + 1) // 2
    first_row = tall * block // blocks
    tile_rows = tall * (block + 1) // blocks - first_row
    tiles = tile_rows * across
    row_bytes = (channels + 15) // 16 * 32
    plane = tiles * row_bytes + 64
    ld, strip = step[r.LD], step[r.WINOGRAD_TILES]
    product_plane = strip * ld * 4
    v = scratch + r.AT_PANEL + panel_bytes
    products = v + 16 * plane
    patch = products + 16 * product_plane
    key = carray(as_pointer(scratch), 2, np.int64)
    offsets_at = scratch + r.AT_ROWS
    segments, words = address(pointers, step[r.SEGMENTS]), step[r.GROUPS]
    if key[0] != index or key[1] != row_chunk:
        build_patch(step, pointers, patch, image, 2 * first_row, 2 * tile_rows)
        clear_end(patch, (2 * tile_rows + 2) * step[r.PATCH_W] * channels * 2)
        key[0], key[1] = index, row_chunk
        pixel = channels * 2
        line = step[r.PATCH_W] * pixel
        for i in range(tile_rows):
            for j in range(across):
                winograd_input(
                    patch + 2 * i * line + 2 * j * pixel, line, pixel, v + (i * across + j) * row_bytes, plane, channels
                )
        offsets = carray(as_pointer(offsets_at), 16 * tiles, np.int64)
        for position in range(16):
            for i in range(tiles):
                offsets[position * tiles + i] = position * plane + i * row_bytes
        row_corrections(v, offsets_at, 16 * tiles, segments, 1, words)
    count = step[r.PANEL_COUNT]
    first, last = count * column_chunk // column_chunks, count * (column_chunk + 1) // column_chunks
    panels = carray(as_pointer(address(pointers, step[r.PANELS])), (count, 5), np.int64)
    weights, init = address(pointers, step[r.WEIGHTS]), address(pointers, step[r.INIT])
    init_plane = (step[r.COLUMNS] + 15) // 16 * 64
    registers = scratch + r.AT_REGISTERS
    for p in range(first, last, 2):
        q = min(p + 2, last)
        c0 = panels[p, 1]
        cn = panels[q - 1, 1] + panels[q - 1, 2] - c0
        wide = (cn + 7) // 8 * 8
        pieces = (tiles + strip - 1) // strip
        for piece in range(pieces):
            t0 = tiles * piece // pieces
            tn = tiles * (piece + 1) // pieces - t0
            for position in range(16):
                at = offsets_at + 8 * (position * tiles + t0)
                for n in range(p, q):
                    vectors, column = 1 if panels[n, 2] <= LANES else VECTORS, panels[n, 1]
                    size = panels[n, 4] // 16
                    b = weights + panels[n, 0] + position * size
                    start = init + position * init_plane + 4 * column
                    out = products + position * product_plane + (column - c0) * 4
                    inner_product(tn, vectors, v, at, segments, 1, words, b, start, out, ld * 4)
            done = 0
            while done < tn:  # the strip's part of one row of tiles after the other
                i, j0 = (t0 + done) // across, (t0 + done) % across
                jn = min(across - j0, tn - done)
                for odd in range(2):
                    oh = 2 * (first_row + i) + odd
                    if oh >= out_h:
                        continue
                    for j in range(jn):
                        source, target = products + (done + j) * ld * 4, registers + 2 * j * ld * 4
                        if odd:
                            winograd_output_1(source, product_plane, target, ld * 4, wide)
                        else:
                            winograd_output_0(source, product_plane, target, ld * 4, wide)
                    r0 = (image * out_h + oh) * out_w + 2 * j0
                    rn = min(2 * jn, out_w - 2 * j0)
                    run_epilogue(
                        records, step[r.EPILOGUE_FIRST], step[r.EPILOGUE_COUNT], pointers, registers,
                        r.REGISTER_BYTES, ld,
                        r0, rn, c0, cn,
                    )  # fmt: skip
                done += jn
