"""Convolutions and matrix products as steps: weights packed into panels, geometry into numbers."""

from __future__ import annotations

import math

import numpy as np

from qir.graph import Node, Value
from qir.types import Array

from ...compile.tensors import View, channels_last
from ..kernels import record as r
from ..kernels.finish import ROWS_EACH
from ..kernels.intrinsics import ELEMENT, GROUP, MAX_ROWS, PANEL
from ..planner.builder import Builder
from ..planner.chain import Chain
from ..planner.encoder import row_stride
from ..planner.in_place import write_in_place
from ..planner.steps import Step, constant, padded, ref
from .packing import BLOCK, Packed, Window, accumulator_limit, pack, segment_offsets, window_of, wrapped

PATCH_KIND = 2 if ELEMENT == 2 else 0
"""What the tile kernel reads: int16, or uint8 offset by 128 where activations are signed."""

WHOLE_TILES = math.lcm(MAX_ROWS, ROWS_EACH)
"""Rows that every kernel cuts into whole tiles."""
PATCH_LIMIT = 384 * 1024
"""Bytes of a patch: it shares a core's second-level cache with a block of weight panels."""
WIDE_ROWS = 24
WIDE_LIMIT = 320 * 1024
"""Bytes of a block of widened panels."""


def input_rows(b: Builder, x: Value, order: tuple[int, ...]) -> tuple[View, int]:
    view = b.in_order(x, order)
    return view, row_stride(view)


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
    if window.out_w > r.MAX_PATCH_ROWS:
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
    chain.limits[out] = accumulator_limit(w, node.attrs["weight_zero_point"], None if bias is None else bias.array())
    blocks, column_chunks = _cut(b, window, packed, columns)
    # weights that meet many rows of a chunk are widened once for them
    init: Array = np.zeros(1, np.int32)
    rows = -(-window.out_h // blocks) * window.out_w
    cross_multiplied = packed.cross_multiplied is not None and not packed.nibbles and rows >= WIDE_ROWS
    if packed.cross_multiplied is not None and cross_multiplied:
        init = wrapped(total - packed.cross_multiplied)
        chain.grow(out, 0)
    else:
        chain.grow(out, 0, wrapped(total) if total.any() else None)
    block, panel_bytes = BLOCK, packed.block_bytes if packed.nibbles else 0
    if cross_multiplied:
        depth = packed.segments * packed.groups * GROUP
        block = max(PANEL, min(BLOCK, WIDE_LIMIT // (2 * depth) // PANEL * PANEL))
        panel_bytes = 2 * packed.widest + 64
    ld = block + PANEL
    pixel = window.channels * ELEMENT
    step = Step(
        {
            r.OP: r.GEMM, r.CHUNKS: window.images * blocks * column_chunks, r.ROWS: chain.rows, r.COLUMNS: columns,
            r.ROW_CHUNKS: window.images * blocks, r.COLUMN_CHUNKS: column_chunks,
            r.BLOCK_ROWS: r.REGISTER_BYTES // 4 // ld // WHOLE_TILES * WHOLE_TILES, r.BLOCK_COLUMNS: block, r.LD: ld,
            r.CROSS_MULTIPLIED: int(cross_multiplied), r.INIT: constant(padded(init)),
            r.X: ref(view), r.X_STRIDE: stride, r.X_DTYPE: b.code(view), r.PAD_ROW: constant(padded(pad_row)),
            r.WEIGHTS: packed.data, r.SEGMENTS: constant(segment_offsets(window, group, packed.twice)),
            r.SEGMENT_COUNT: packed.segments, r.GROUPS: packed.groups, r.PANELS: packed.table,
            r.PANEL_COUNT: packed.panels,
            r.PATCH_W: window.patch_width, r.PATCH_ELEMENT: PATCH_KIND, r.PACKED4: int(packed.nibbles),
            **window.fields(),
        },
        chain.epilogue(), [view, *chain.reads], chain.writes, [node.name, *(n.name for n in chain.nodes)], node.op,
        macs=chain.rows * columns * w[0].size, weight_bytes=packed.bytes, panel_bytes=panel_bytes,
        patch_bytes=window.patch_rows(-(-window.out_h // blocks)) * window.patch_width * pixel + 256,
    )  # fmt: skip
    write_in_place(b, step)
    b.add(step)
    return True


def _cut(b: Builder, window: Window, packed: Packed, columns: int) -> tuple[int, int]:
    """(row blocks of an image, column chunks): patches fit the cache, threads are kept busy."""
    row_bytes = max(
        1, window.patch_width * window.channels * ELEMENT * (window.strides[0] if window.kernel[0] > 1 else 1)
    )
    fixed = (window.patch_rows(1) - 1) * row_bytes
    most = max(1, min((PATCH_LIMIT - fixed) // row_bytes, r.MAX_PATCH_ROWS // window.out_w))
    blocks = max(1, -(-window.out_h // most))
    wanted = 4 * b.threads
    # tall layers are cut by rows down to about 96 pixels, then by columns
    finest = max(1, window.out_h * window.out_w // 96)
    blocks = max(blocks, min(-(-wanted // window.images), finest, window.out_h))
    if window.images == 1 and b.threads < blocks:
        # as many for each thread: nobody waits for the last one
        blocks = min(-(-blocks // b.threads) * b.threads, window.out_h)
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
    if group == window.channels == w.shape[0] and group > 1 and math.prod(kernel) <= r.MAX_TAPS:
        from .depthwise import emit_depthwise

        return emit_depthwise(b, node, window, w, pads, order)
    from . import winograd as winograd_plan

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
