"""When a convolution runs as Winograd's F(2x2, 3x3), and its transformed weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qir.graph import Node
from qir.types import Array

from ...compile.tensors import View
from ..kernels import record as r
from ..kernels.inner_product import WORDS
from ..kernels.intrinsics import GROUP, LANES, PANEL
from ..planner.builder import Builder
from ..planner.chain import Chain
from ..planner.steps import Step, constant, padded, ref
from .packing import Packed, Window, accumulator_limit, cross_multiplied_sums, magnitude, wrapped

STRIP = 28
"""Tiles that are multiplied together."""
SPACE = 448 * 1024
"""Bytes of transformed activations of a chunk: they stay in a core's second-level cache."""
WEIGHTS_STAY = 4 * 1024 * 1024
"""Bytes of transformed weights that are still fetched quickly for every chunk of rows."""
LEAST_TILES = 16
"""Fewer tiles an image would stream the sixteenfold weights for too little work."""


def suits(node: Node, window: Window, w: Array, group: int) -> bool:
    """Whether the transform pays and 4 * acc is proved to fit int32."""
    if GROUP != 2:  # with VNNI the direct 8-bit kernel is faster
        return False
    tiles = -(-window.out_h // 2) * -(-window.out_w // 2)
    fits = (
        window.kernel == (3, 3) and window.strides == (1, 1) and window.dilations == (1, 1) and group == 1
        and window.channels >= 16 and w.shape[0] >= 16 and tiles >= LEAST_TILES
        and window.out_w <= r.MAX_PATCH_ROWS // 8
    )  # fmt: skip
    if not fits or node.input(1).dtype.bits == 4:
        return False
    x = node.input(0).dtype
    return magnitude(w, node.attrs["weight_zero_point"]) * max(abs(x.lo), x.hi) * 4 < 2**31


def _twice_g(g: Sequence[Array]) -> tuple[Array, Array, Array, Array]:
    """2G g for three numbers (or arrays): G has the rows (1, 0, 0), (1, 1, 1) / 2, (1, -1, 1) / 2, (0, 0, 1)."""
    ends = g[0] + g[2]
    return 2 * g[0], ends + g[1], ends - g[1], 2 * g[2]


def pack(w: Array, zero_point: int) -> Packed:
    """(2G) w (2G)^T as panels: (16 positions, k, column, GROUP) int16 for each panel."""
    m, c = w.shape[:2]
    groups = -(-c // (GROUP * WORDS)) * WORDS
    cross_multiplied = np.zeros((16, -(-m // PANEL) * PANEL), np.int64)
    table: list[list[int]] = []
    blocks: list[Array] = []
    at = 0
    for n in range(0, m, PANEL):
        columns = min(PANEL, m - n)
        width = LANES if columns <= LANES else PANEL
        # a panel at a time: the transform is large
        centred = w[n : n + columns].transpose(2, 3, 0, 1).astype(np.int16) - np.int16(zero_point)
        full = np.zeros((16, width, groups * GROUP), np.int16)
        lines = zip(*(_twice_g(centred[:, j]) for j in range(3)), strict=True)
        for i, line in enumerate(lines):
            full[4 * i : 4 * i + 4, :columns, :c] = _twice_g(line)
        cross_multiplied[:, n : n + width] = cross_multiplied_sums(full)
        block = full.reshape(16, width, groups, GROUP).transpose(0, 2, 1, 3)
        blocks.append(np.ascontiguousarray(block).reshape(-1))
        table.append([at, n, columns, 0, blocks[-1].nbytes])
        at += blocks[-1].nbytes
    data = np.concatenate([*blocks, np.zeros(32, np.int16)])
    return Packed(
        constant(data), constant(np.asarray(table, np.int64)), len(table), np.zeros(m, np.int64), cross_multiplied,
        False, groups, 1,
        False, 0, 0, data.nbytes,
    )  # fmt: skip


def emit(
    b: Builder, node: Node, window: Window, w: Array, pads: Array, view: View, stride: int, order: tuple[int, ...]
) -> bool:
    out = node.output
    key = f"{node.name}/winograd"
    if key not in b.packed:
        b.packed[key] = pack(w, node.attrs["weight_zero_point"])
    packed: Packed = b.packed[key]
    assert packed.cross_multiplied is not None
    chain = Chain(b, order, tuple(b.shape(out)[a] for a in order))
    bias = node.optional(2)
    chain.limits[out] = accumulator_limit(w, node.attrs["weight_zero_point"], None if bias is None else bias.array())
    chain.grow(out, 0, None if bias is None else bias.array())
    tall, across = -(-window.out_h // 2), -(-window.out_w // 2)
    row_bytes = -(-window.channels // 16) * 32
    # a chunk has a number for each position of each tile
    most = max(1, min(SPACE // (16 * row_bytes), r.MAX_PATCH_ROWS // 16) // across)
    blocks, wanted = -(-tall // most), -(-4 * b.threads // window.images)
    if packed.bytes <= WEIGHTS_STAY:
        blocks = max(blocks, min(wanted, tall))
    # larger weights would be fetched anew for each chunk of rows: they are cut by columns
    column_chunks = max(1, min(packed.panels // 2, -(-wanted // blocks)))
    strip = min(STRIP, -(-tall // blocks) * across)
    ld = 2 * PANEL
    width = 2 * across + 2
    tile_rows = -(-tall // blocks)
    space = (
        16 * (tile_rows * across * row_bytes + 64) + 16 * strip * ld * 4
        + (2 * tile_rows + 2) * width * window.channels * 2 + 256
    )  # fmt: skip
    b.add(
        Step(
            {
                r.OP: r.WINOGRAD, r.CHUNKS: window.images * blocks * column_chunks, r.ROWS: chain.rows,
                r.COLUMNS: w.shape[0],
                r.ROW_CHUNKS: window.images * blocks, r.COLUMN_CHUNKS: column_chunks, r.LD: ld, r.X: ref(view),
                r.X_STRIDE: stride, r.X_DTYPE: b.code(view), r.PAD_ROW: constant(padded(pads)), r.WEIGHTS: packed.data,
                r.SEGMENTS: constant(np.zeros(1, np.int64)),
                r.INIT: constant(wrapped(-packed.cross_multiplied)), r.GROUPS: packed.groups, r.PANELS: packed.table,
                r.PANEL_COUNT: packed.panels, r.PATCH_W: width, r.PATCH_ELEMENT: 2, r.WINOGRAD_TILES: strip,
                **window.fields(),
            },
            chain.epilogue(), [view, *chain.reads], chain.writes, [node.name, *(n.name for n in chain.nodes)], node.op,
            macs=chain.rows * w.size, weight_bytes=packed.bytes, patch_bytes=space,
        )
    )  # fmt: skip
    return True
