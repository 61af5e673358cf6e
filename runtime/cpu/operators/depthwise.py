"""Depthwise convolutions as steps."""

from __future__ import annotations

import numpy as np

from qir.graph import Node
from qir.types import Array

from ...compile.tensors import View
from ..kernels import record as r
from ..planner.builder import Builder
from ..planner.chain import Chain, block_of
from ..planner.steps import Step, constant, padded, ref
from .linear import input_rows
from .packing import Window, accumulator_limit

ROW_KERNELS = ((3, 3), (5, 5))
PATCH_LIMIT = 256 * 1024


def pack_depthwise(w: Array) -> Array:
    """w: (taps, C) int -> int16 (C/16, tap pairs, 2 halves, 8 channels, 2 taps) in the kernel's channel order."""
    taps, channels = w.shape
    full = np.zeros((-(-taps // 2) * 2, -(-channels // 16) * 16), np.int16)
    full[:taps, :channels] = w
    order = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]
    blocks = np.take(full.reshape(-1, 2, full.shape[1] // 16, 16), order, axis=-1)
    return np.ascontiguousarray(blocks.transpose(2, 0, 3, 1))


def _add_rows(
    b: Builder, node: Node, window: Window, centred: Array, pads: Array, view: View, stride: int, chain: Chain
) -> None:
    channels = window.channels
    packed = pack_depthwise(centred)
    block_rows, block_columns, ld = block_of(channels, window.out_w)
    row_bytes = window.patch_width * channels
    fixed = (window.patch_rows(1) - 1) * row_bytes
    most = max(1, (PATCH_LIMIT - fixed) // (row_bytes * window.strides[0]))
    wanted = b.chunks(chain.rows, chain.rows * channels, 4096)
    blocks = min(window.out_h, max(-(-window.out_h // most), -(-wanted // window.images)))
    column_chunks = 1
    b.add(
        Step(
            {
                r.OP: r.DEPTHWISE_ROWS, r.CHUNKS: window.images * blocks * column_chunks, r.ROWS: chain.rows,
                r.COLUMNS: channels,
                r.ROW_CHUNKS: window.images * blocks, r.COLUMN_CHUNKS: column_chunks, r.BLOCK_ROWS: block_rows,
                r.BLOCK_COLUMNS: block_columns, r.LD: ld, r.X: ref(view), r.X_STRIDE: stride, r.X_DTYPE: b.code(view),
                r.PAD_ROW: constant(padded(pads)), r.WEIGHTS: constant(packed), r.PATCH_ELEMENT: 1,
                r.PATCH_W: window.patch_width, **window.fields(),
            },
            chain.epilogue(), [view, *chain.reads], chain.writes, [node.name, *(n.name for n in chain.nodes)], node.op,
            macs=chain.rows * centred.size, weight_bytes=packed.nbytes,
            patch_bytes=window.patch_rows(-(-window.out_h // blocks)) * row_bytes + 256,
        )
    )  # fmt: skip


def emit_depthwise(b: Builder, node: Node, window: Window, w: Array, pads: Array, order: tuple[int, ...]) -> bool:
    """A depthwise convolution: rows of a padded patch for the usual kernels, addressed taps for all others."""
    x, out = node.input(0), node.output
    view, stride = input_rows(b, x, order)
    centred = w.reshape(w.shape[0], -1).T.astype(np.int32) - node.attrs["weight_zero_point"]
    taps, channels = centred.shape
    wide = np.zeros((taps, -(-channels // 16) * 16), np.int32)
    wide[:, :channels] = centred
    memory = tuple(b.shape(out)[a] for a in order)
    chain = Chain(b, order, memory)
    bias = node.optional(2)
    chain.limits[out] = accumulator_limit(w, node.attrs["weight_zero_point"], None if bias is None else bias.array())
    chain.grow(out, 0, None if bias is None else bias.array())
    if window.kernel in ROW_KERNELS:
        _add_rows(b, node, window, centred, pads, view, stride, chain)
        return True
    block_rows, block_columns, ld = block_of(channels, chain.rows)
    row_chunks = b.chunks(chain.rows, chain.rows * channels, 4096)
    b.add(
        Step(
            {
                r.OP: r.DEPTHWISE, r.CHUNKS: row_chunks, r.ROWS: chain.rows, r.COLUMNS: channels,
                r.ROW_CHUNKS: row_chunks,
                r.COLUMN_CHUNKS: 1, r.BLOCK_ROWS: block_rows, r.BLOCK_COLUMNS: block_columns, r.LD: ld, r.X: ref(view),
                r.X_STRIDE: stride, r.X_DTYPE: b.code(view), r.PAD_ROW: constant(padded(pads)),
                r.WEIGHTS: constant(wide),
                **window.fields(),
            },
            chain.epilogue(), [view, *chain.reads], chain.writes, [node.name, *(n.name for n in chain.nodes)],
            node.op, macs=chain.rows * channels * taps, weight_bytes=wide.nbytes,
        )
    )  # fmt: skip
    return True
