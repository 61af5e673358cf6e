"""Weights in the order that each kernel reads them, and what sums they can make."""

from __future__ import annotations

import numpy as np

from qir.types import Array, DType

from ..instances import ConvTile


def pack_weights(w_mkc: Array, tile: ConvTile) -> Array:
    """(M, taps, C) weights as a tile's kernel reads them; M and K are rounded up to the tile, C to its cell."""
    m, taps, c = w_mkc.shape
    padded = -(-c // tile.cell) * tile.cell
    k = taps * padded
    out = np.zeros((-(-m // tile.columns) * tile.columns, -(-k // tile.depth) * tile.depth), np.int8)
    wide = np.zeros((m, taps, padded), np.int8)
    wide[..., :c] = w_mkc
    out[:m, :k] = wide.reshape(m, k)
    if tile.warpgroup:
        return pack_swizzled(out, tile.columns)
    if tile.patch:
        return pack_fragments(out, tile.columns)
    return pack_nibbles(out) if tile.packed else out


def lane_channels(columns: int) -> int:
    """W: channels of a pixel that a lane finishes where its accumulators are, by the columns of a tile."""
    return 4 if columns == 16 else 8


def pack_swizzled(w_nk: Array, columns: int) -> Array:
    """(N, K) int8 weights -> (N / columns, K / 128, columns, 128): tiles in the order of conv_wgmma.cu, each one copy.

    Chunk c (16 bytes) of row r of a tile lies at c ^ (r & 7).  In tiles of 16 or 32 columns row 8 j + 2 q + i of a
    group of 4 W is channel q W + 2 j + i.
    """
    n, k = w_nk.shape
    words = lane_channels(columns) if columns <= 32 else 2
    dealt = w_nk.reshape(-1, 4, words // 2, 2, k).transpose(0, 2, 1, 3, 4)  # group, lane, n-tile, column of the lane
    chunks = dealt.reshape(n // columns, columns, k // 128, 8, 16).transpose(0, 2, 1, 3, 4)
    place = np.arange(8)[None, :] ^ (np.arange(columns)[:, None] & 7)  # an involution
    return np.take_along_axis(chunks, place[None, None, :, :, None], axis=3).reshape(-1, k // 128, columns, 128)


def pack_fragments(w_nk: Array, columns: int) -> Array:
    """(N, K) int8 weights -> (N / columns, K / 32, columns / 16, 32 lanes, 16) as conv_patch.cu wants them.

    Its lanes hold words of 8 (4, where there are 16 columns) consecutive channels, in pairs over the n-tiles.
    """
    n, k = w_nk.shape
    words = lane_channels(columns)
    # group, lane's word, pair of n-tiles, n-tile of it, column of the lane; step, half, lane's four k's
    sizes = (n // columns, columns // (4 * words), 4, words // 4, 2, 2, k // 32, 2, 4, 4)
    parts = w_nk.reshape(sizes).transpose(0, 6, 1, 3, 2, 5, 8, 4, 7, 9)
    return np.ascontiguousarray(parts).reshape(n // columns, k // 32, columns // 16, 32, 16)


def pack_nibbles(w_nk: Array) -> Array:
    """(N, K) int4 weights -> (N, K / 8) words as conv_igemm.cu wants them  [eight to an int32: HAWQ-V3 III-F]."""
    n, k = w_nk.shape
    steps = (w_nk.astype(np.uint8) & 15).astype(np.uint32).reshape(n, k // 32, 2, 4, 4)  # half, lane, byte
    low, high = steps[:, :, 0], steps[:, :, 1]
    words = np.zeros((n, k // 32, 4), np.uint32)
    for i in range(4):
        words |= (low[..., i] << np.uint32(8 * i)) | (high[..., i] << np.uint32(8 * i + 4))
    return words.reshape(n, k // 8)


def centred(w: Array, zero_point: int) -> Array | None:
    """Weights without their zero point as int8, or None where that takes nine bits."""
    if w.dtype == np.int8 and not zero_point:
        return w
    wide = w.astype(np.int16) - zero_point
    return wide.astype(np.int8) if wide.min(initial=0) >= -128 and wide.max(initial=0) <= 127 else None


def pack_depthwise(w_ck: Array, kernel: int, stride: int) -> Array:
    """(C, kernel, kernel) int8 -> (kernel, shifts, parts, C) words of four columns, for conv_depthwise_rows.

    Shifts are the bytes of a word that a window begins at, two at stride 1.
    """
    c, parts = len(w_ck), -(-kernel // 4)
    shifts = 2 if stride == 1 else 1
    columns = np.zeros((kernel, shifts, parts * 4, c), np.uint8)
    for shift in range(shifts):
        columns[:, shift, shift : shift + kernel] = w_ck.view(np.uint8).transpose(1, 2, 0)
    places = np.arange(4, dtype=np.uint32)[None, None, None, :, None] * 8
    words = columns.reshape(kernel, shifts, parts, 4, c).astype(np.uint32) << places
    return np.bitwise_or.reduce(words, axis=3)


def sums_of(taps: Array, x: DType) -> tuple[Array, Array]:
    """Least and largest sum of products that (M, taps, C) weights make of activations of a dtype."""
    flat = taps.reshape(len(taps), -1)
    positive = np.maximum(flat, 0).sum(1, dtype=np.int64)
    negative = np.minimum(flat, 0).sum(1, dtype=np.int64)
    return positive * x.lo + negative * x.hi, positive * x.hi + negative * x.lo
