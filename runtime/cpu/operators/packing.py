"""Geometry of windows, and weights packed into the panels that the tile kernel reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qir.graph import Value
from qir.types import Array

from ..kernels import record as r
from ..kernels.inner_product import WORDS
from ..kernels.intrinsics import ELEMENT, GROUP, LANES, PANEL
from ..planner.builder import Builder
from ..planner.steps import Number, Ref, constant

LEAST_ODD_WORDS = 12
"""A shorter run with an odd number of words is not worth the word that the cross-multiplied kernel would add."""
BLOCK = 64
"""Output channels of a register block."""


@dataclass(frozen=True)
class Window:
    """Geometry of a 2-D window over channels-last images."""

    images: int
    channels: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pad_top: int
    pad_left: int

    def fields(self) -> dict[int, Number]:
        return {
            r.IMAGES: self.images, r.CHANNELS: self.channels, r.IN_H: self.in_h, r.IN_W: self.in_w, r.OUT_H: self.out_h,
            r.OUT_W: self.out_w, r.KERNEL_H: self.kernel[0], r.KERNEL_W: self.kernel[1], r.STRIDE_H: self.strides[0],
            r.STRIDE_W: self.strides[1], r.DILATION_H: self.dilations[0], r.DILATION_W: self.dilations[1],
            r.PAD_TOP: self.pad_top, r.PAD_LEFT: self.pad_left,
        }  # fmt: skip

    @property
    def patch_width(self) -> int:
        if self.kernel[1] == 1:
            return self.out_w
        return (self.out_w - 1) * self.strides[1] + (self.kernel[1] - 1) * self.dilations[1] + 1

    def patch_rows(self, out_rows: int) -> int:
        if self.kernel[0] == 1:
            return out_rows
        return (out_rows - 1) * self.strides[0] + (self.kernel[0] - 1) * self.dilations[0] + 1

    @property
    def plain(self) -> bool:
        """A 1x1 window that looks at every pixel: a matrix product over all pixels of all images."""
        return (
            self.kernel == (1, 1) and self.strides == (1, 1) and not self.pad_top and not self.pad_left
            and (self.out_h, self.out_w) == (self.in_h, self.in_w)
        )  # fmt: skip

    def flattened(self) -> Window:
        pixels = self.images * self.in_h * self.in_w
        return Window(1, self.channels, pixels, 1, pixels, 1, (1, 1), (1, 1), (1, 1), 0, 0)


@dataclass(frozen=True)
class Packed:
    """A layer's weights in panels. data: (segment, k, column, GROUP) int8 for each panel, or nibbles of them.

    table: int64 (panels, 5): byte offset, first column, columns, byte offset of its group's segments, bytes.
    correction: what int32 sums lack where the kernel offsets signed activations by 128.
    cross_multiplied: what the cross-multiplied kernel's sums have too much; None where it has no use.
    """

    data: Ref
    table: Ref
    panels: int
    correction: Array
    cross_multiplied: Array | None
    twice: bool
    groups: int
    segments: int
    nibbles: bool
    block_bytes: int
    widest: int
    bytes: int


def window_of(b: Builder, x: Value, out: Value, kernel: Any, attrs: Any, pads: Any) -> Window:
    """The 2-D window of a 1-D or 2-D convolution or pool."""
    shape, result = b.shape(x), b.shape(out)
    if len(kernel) == 1:
        return Window(
            shape[0], shape[1], 1, shape[2], 1, result[2], (1, kernel[0]), (1, attrs["strides"][0]),
            (1, attrs["dilations"][0]), 0, pads[0],
        )  # fmt: skip
    return Window(
        shape[0], shape[1], shape[2], shape[3], result[2], result[3], tuple(kernel), tuple(attrs["strides"]),
        tuple(attrs["dilations"]), pads[0], pads[1],
    )  # fmt: skip


def pack(w: Array, group: int, zero_point: int, window: Window, bits: int, signed_x: bool) -> Packed:
    """w: (M, C/group, kh, kw) integers, less zero_point, as panels for the tile kernel."""
    merged = group == 1 and window.dilations[1] == 1
    m, c, kh, kw = w.shape
    per_group = m // group
    # a 9-bit difference from its zero point: two passes over the same patch
    least, most = int(w.min()) - zero_point, int(w.max()) - zero_point
    twice = least < -128 or most > 127
    length = kw * c if merged else c
    segments = (kh if merged else kh * kw) * (2 if twice else 1)
    groups = -(-length // GROUP)
    crosses = GROUP == 2 and group == 1 and (groups % WORDS == 0 or groups >= LEAST_ODD_WORDS) and bits == 8
    if crosses:
        groups = -(-groups // WORDS) * WORDS
    nibbles = bits == 4 and least >= -7 and most <= 7
    table: list[list[int]] = []
    blocks: list[Array] = []
    correction, cross_multiplied = np.zeros(m, np.int64), np.zeros(m, np.int64)
    at = 0
    # a panel at a time: copies of all weights in wider types would be most of a session's peak memory
    for g in range(group):
        for n in range(0, per_group, PANEL):
            columns = min(PANEL, per_group - n)
            width = LANES if columns <= LANES else PANEL
            first = g * per_group + n
            rows = slice(first, first + columns)
            centred = w[rows].astype(np.int16) - np.int16(zero_point)
            low = np.clip(centred, -128, 127)
            full = np.zeros((width, segments, groups * GROUP), np.int8)
            at_segment = 0
            for part in (low, centred - low)[: 2 if twice else 1]:
                runs = part.transpose(0, 2, 3, 1).reshape(columns, -1, length)
                full[:columns, at_segment : at_segment + runs.shape[1], :length] = runs
                at_segment += runs.shape[1]
            if ELEMENT == 1 and signed_x:
                correction[rows] = -128 * centred.reshape(columns, -1).sum(axis=1, dtype=np.int64)
            if crosses:
                cross_multiplied[rows] = cross_multiplied_sums(full[:columns].reshape(columns, -1))
            block = full.reshape(width, segments, groups, GROUP).transpose(1, 2, 0, 3).reshape(-1)
            if nibbles:
                block = ((block[0::2] & 15) | (block[1::2] << 4)).astype(np.int8)
            blocks.append(block)
            table.append([at, first, columns, g * 8 * segments, full.size])
            at += full.size
    # the most bytes of panels that meet in one register block: narrow groups put many panels into it
    widest = max(sum(row[4] for row in table[i:] if row[1] + row[2] - table[i][1] <= BLOCK) for i in range(len(table)))
    # vector loads of the last panel's end stay inside the array
    data = np.concatenate([*blocks, np.zeros(64, np.int8)])
    return Packed(
        constant(data), constant(np.asarray(table, np.int64)), len(table), correction,
        cross_multiplied if crosses else None,
        twice, groups, segments, nibbles, widest + 64 if nibbles else 0, widest, data.nbytes,
    )  # fmt: skip


def cross_multiplied_sums(w: Array) -> Array:
    """w: (..., numbers of all runs) of at most 14 bits -> for each line what `inner_product` has too much, int64."""
    pairs = w.reshape(*w.shape[:-1], -1, 2, 2)
    products = np.multiply(pairs[..., 0, :], pairs[..., 1, :], dtype=np.int32)
    return products.sum(axis=(-2, -1), dtype=np.int64)


def wrapped(v: Array) -> Array:
    """Integers modulo 2^32 as int32: sums wrap and end inside int32, so a wrapped summand is exact."""
    return (v & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def segment_offsets(window: Window, group: int, twice: bool) -> Array:
    """Byte offsets in the patch of each run of activations, for each group."""
    pixel = window.channels * ELEMENT
    (kh, kw), (dh, dw) = window.kernel, window.dilations
    merged = group == 1 and dw == 1
    offsets: list[int] = []
    for g in range(group):
        base = g * (window.channels // group) * ELEMENT
        one = [
            (i * dh * window.patch_width + j * dw) * pixel + base for i in range(kh) for j in range(1 if merged else kw)
        ]
        offsets += one * (2 if twice else 1)
    return np.asarray(offsets, np.int64)


def accumulator_limit(w: Array, zero_point: int, bias: Array | None) -> int:
    """A bound of |sum over taps of (w - zero_point) x + bias|, whatever the 8-bit x is and however it is offset."""
    return magnitude(w, zero_point) * 255 + (0 if bias is None else int(np.abs(bias.astype(np.int64)).max()))


def magnitude(w: Array, zero_point: int) -> int:
    """The greatest sum of |w - zero_point| over an output channel; a panel of channels at a time, to save memory."""
    most = 0
    for n in range(0, w.shape[0], PANEL):
        centred = np.abs(w[n : n + PANEL].astype(np.int16) - np.int16(zero_point))
        most = max(most, int(centred.reshape(centred.shape[0], -1).sum(axis=1, dtype=np.int64).max(initial=0)))
    return most
