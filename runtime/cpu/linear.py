"""Convolutions and matrix products as steps: weights packed into panels, geometry into numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qir.graph import Node, Value
from qir.types import Array

from ..plan import View, channels_last
from .builder import Builder
from .chain import Chain, padded, rows_of
from .fields import (
    BLOCK_COLUMNS, BLOCK_ROWS, CHANNELS, CHUNKS, COLUMN_CHUNKS, COLUMNS, DILATION_H, DILATION_W, GEMM,
    GROUPS, IMAGES, IN_H, IN_W, KERNEL_H, KERNEL_W, LD, MAX_PATCH_ROWS, MAX_TAPS, OP, OUT_H, OUT_W, PACKED4, PAD_LEFT,
    PAD_ROW, PAD_TOP, PANEL_COUNT, PANELS, PATCH_ELEMENT, PATCH_W, REGISTER_BYTES, ROW_CHUNKS, ROWS, SEGMENT_COUNT, SEGMENTS,
    STRIDE_H, STRIDE_W, WEIGHTS, WIDE, X, X_DTYPE, X_STRIDE,
)  # fmt: skip
from .steps import Number, Ref, Step, constant, ref
from .vector import ELEMENT, GROUP, LANES, MAX_ROWS, PANEL

PATCH_KIND = 2 if ELEMENT == 2 else 0
"""What the tile kernel reads: int16, or uint8 offset by 128 where activations are signed."""

PATCH_LIMIT = 384 * 1024
"""Bytes of a patch: it shares a core's second-level cache with a block of weight panels."""
WIDE_ROWS = 24
WIDE_LIMIT = 320 * 1024
"""Bytes of a block of widened panels."""
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
            IMAGES: self.images, CHANNELS: self.channels, IN_H: self.in_h, IN_W: self.in_w, OUT_H: self.out_h,
            OUT_W: self.out_w, KERNEL_H: self.kernel[0], KERNEL_W: self.kernel[1], STRIDE_H: self.strides[0],
            STRIDE_W: self.strides[1], DILATION_H: self.dilations[0], DILATION_W: self.dilations[1],
            PAD_TOP: self.pad_top, PAD_LEFT: self.pad_left,
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
    """

    data: Ref
    table: Ref
    panels: int
    correction: Array
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
    centred = w.astype(np.int16) - np.int16(zero_point)
    merged = group == 1 and window.dilations[1] == 1
    m, c, kh, kw = centred.shape
    per_group = m // group
    low = np.clip(centred, -128, 127)
    parts = [low]
    if (low != centred).any():  # a 9-bit difference from its zero point: two passes over the same patch
        parts.append(centred - low)
    rows = [p.reshape(group, per_group, c, kh, kw).transpose(0, 1, 3, 4, 2) for p in parts]
    runs = [
        r.reshape(group, per_group, kh, kw * c) if merged else r.reshape(group, per_group, kh * kw, c) for r in rows
    ]
    stacked = np.concatenate(runs, axis=2).astype(np.int8)
    segments, length = stacked.shape[2:]
    groups = -(-length // GROUP)
    full = np.zeros((group, -(-per_group // PANEL) * PANEL, segments, groups * GROUP), np.int8)
    full[:, :per_group, :, :length] = stacked
    nibbles = bits == 4 and len(parts) == 1 and bool((np.abs(centred) <= 7).all())
    table: list[list[int]] = []
    blocks: list[Array] = []
    at = 0
    for g in range(group):
        for n in range(0, per_group, PANEL):
            columns = min(PANEL, per_group - n)
            width = LANES if columns <= LANES else PANEL
            block = full[g, n : n + width].reshape(width, segments, groups, GROUP).transpose(1, 2, 0, 3)
            blocks.append(block.reshape(-1))
            table.append([at, g * per_group + n, columns, g * 8 * segments, block.size])
            at += block.size
    data = np.concatenate(blocks)
    if nibbles:
        data = ((data[0::2] & 15) | (data[1::2] << 4)).astype(np.int8)
    correction = (
        -128 * centred.astype(np.int64).reshape(m, -1).sum(axis=1)
        if ELEMENT == 1 and signed_x
        else np.zeros(m, np.int64)
    )
    widest = max(sum(row[4] for row in table[i : i + BLOCK // LANES]) for i in range(len(table)))
    # vector loads of the last panel's end stay inside the array
    data = np.concatenate([data, np.zeros(64, np.int8)])
    return Packed(
        constant(data), constant(np.asarray(table, np.int64)), len(table), correction, len(parts) == 2, groups, segments,
        nibbles, widest + 64 if nibbles else 0, widest, data.nbytes,
    )  # fmt: skip


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


def input_rows(b: Builder, x: Value, order: tuple[int, ...]) -> tuple[View, int]:
    view = b.in_order(x, order)
    return view, rows_of(view)[2]


def emit_gemm(
    b: Builder, node: Node, window: Window, w: Array, group: int, pad_row: Array, order: tuple[int, ...]
) -> bool:
    """A GEMM step for `node`, whose input 0 is the activation and input 2 the bias."""
    x, out = node.input(0), node.output
    if x.dtype.bits > 8:
        return False
    view, stride = input_rows(b, x, order)
    if window.plain:
        window = window.flattened()
    if window.out_w > MAX_PATCH_ROWS:
        return False
    columns = w.shape[0]
    key = f"{node.name}/{window.patch_width if window.kernel != (1, 1) else 0}"
    if key not in b.packed:
        b.packed[key] = pack(
            w, group, node.attrs["weight_zero_point"], window, node.input(1).dtype.bits, x.dtype.is_signed
        )
    packed: Packed = b.packed[key]
    memory = tuple(b.shape(out)[a] for a in order)
    chain = Chain(b, order, memory)
    bias = node.optional(2)
    total = packed.correction + (0 if bias is None else bias.array().astype(np.int64))
    # sums wrap modulo 2^32 and end inside int32, so a wrapped correction is exact
    folded = (total & 0xFFFFFFFF).astype(np.uint32).view(np.int32) if total.any() else None
    chain.grow(out, 0, folded)
    blocks, column_chunks = _cut(b, window, packed, columns)
    ld = BLOCK + PANEL
    # weights that meet many rows of a chunk are widened once for them
    wide = GROUP == 2 and not packed.nibbles and -(-window.out_h // blocks) * window.out_w >= WIDE_ROWS
    block = BLOCK
    if wide:
        depth = packed.segments * packed.groups * GROUP
        block = max(PANEL, min(BLOCK, WIDE_LIMIT // (2 * depth) // PANEL * PANEL))
    panel_bytes = packed.block_bytes if packed.nibbles else 2 * packed.widest + 64 if wide else 0
    step = Step(
        {
            OP: GEMM, CHUNKS: window.images * blocks * column_chunks, ROWS: chain.rows, COLUMNS: columns,
            ROW_CHUNKS: window.images * blocks, COLUMN_CHUNKS: column_chunks,
            BLOCK_ROWS: REGISTER_BYTES // 4 // ld // MAX_ROWS * MAX_ROWS, BLOCK_COLUMNS: block, LD: ld, WIDE: int(wide),
            X: ref(view), X_STRIDE: stride, X_DTYPE: b.code(view), PAD_ROW: constant(padded(pad_row)),
            WEIGHTS: packed.data, SEGMENTS: constant(segment_offsets(window, group, packed.twice)),
            SEGMENT_COUNT: packed.segments, GROUPS: packed.groups, PANELS: packed.table, PANEL_COUNT: packed.panels,
            PATCH_W: window.patch_width, PATCH_ELEMENT: PATCH_KIND, PACKED4: int(packed.nibbles), **window.fields(),
        },
        chain.tail(), [view, *chain.reads], chain.writes, [node.name, *(n.name for n in chain.nodes)], node.op,
        macs=chain.rows * columns * w[0].size, weight_bytes=packed.bytes, panel_bytes=panel_bytes,
        patch_bytes=window.patch_rows(-(-window.out_h // blocks)) * window.patch_width * window.channels * ELEMENT + 256,
    )  # fmt: skip
    b.add(step)
    return True


def _cut(b: Builder, window: Window, packed: Packed, columns: int) -> tuple[int, int]:
    """(row blocks of an image, column chunks): patches fit the cache, threads are kept busy."""
    row_bytes = max(
        1, window.patch_width * window.channels * ELEMENT * (window.strides[0] if window.kernel[0] > 1 else 1)
    )
    fixed = (window.patch_rows(1) - 1) * row_bytes
    most = max(1, min((PATCH_LIMIT - fixed) // row_bytes, MAX_PATCH_ROWS // window.out_w))
    blocks = max(1, -(-window.out_h // most))
    wanted = 4 * b.threads
    # tall layers are cut by rows down to about 96 pixels, then by columns
    finest = max(1, window.out_h * window.out_w // 96)
    blocks = max(blocks, min(-(-wanted // window.images), finest, window.out_h))
    column_chunks = 1
    if b.threads > 1 and blocks * window.images < wanted:
        column_chunks = max(1, min(-(-wanted // (blocks * window.images)), packed.panels, columns // BLOCK or 1))
    return blocks, column_chunks


def emit_conv(b: Builder, node: Node) -> bool:
    """qir.Conv, 1-D and 2-D, grouped, dilated, depthwise."""
    x, w_value = node.input(0), node.input(1)
    if w_value.data is None or x.type.rank not in (3, 4) or x.dtype.bits > 8:
        return False
    w = w_value.array()
    attrs, kernel = node.attrs, w.shape[2:]
    window = window_of(b, x, node.output, kernel, attrs, attrs["pads"])
    if len(kernel) == 1:
        w = w[:, :, None, :]
    pads = np.broadcast_to(np.asarray(attrs["pad_value"], x.dtype.numpy), (window.channels,))
    order = channels_last(x.type.rank)
    group = attrs["group"]
    if group == window.channels == w.shape[0] and group > 1 and math.prod(kernel) <= MAX_TAPS:
        from .depthwise_plan import emit_depthwise

        return emit_depthwise(b, node, window, w, pads, order)
    from . import winograd_plan

    if winograd_plan.suits(node, window, w, group):
        view, stride = input_rows(b, x, order)
        return winograd_plan.emit(b, node, window, w, pads, view, stride, order)
    return emit_gemm(b, node, window, w, group, pads, order)


def emit_matmul(b: Builder, node: Node) -> bool:
    """qir.MatMul: x (..., K) by constant w (K, N)."""
    x, w = node.input(0), node.input(1)
    if w.data is None or x.type.rank < 2:
        return False
    order = tuple(range(x.type.rank))
    shape = b.shape(x)
    rows, k = math.prod(shape[:-1]), shape[-1]
    window = Window(1, k, rows, 1, rows, 1, (1, 1), (1, 1), (1, 1), 0, 0)
    weights = np.ascontiguousarray(w.array().T)[:, :, None, None]
    return emit_gemm(b, node, window, weights, 1, np.zeros(1, x.dtype.numpy), order)
