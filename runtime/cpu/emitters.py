"""One function an operator: graph node to steps.  What is absent here, or answers False, runs as the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qir.graph import Node, Value
from qir.ops.max_pooling import lowest
from qir.ops.windows import resolve_pads

from ..plan import Buffer, View, channels_last, dense_strides, dense_view, same_order
from .builder import Builder
from .chain import Chain, block_of, padded, rows_of
from .fields import (
    BLOCK_COLUMNS, BLOCK_ROWS, CHUNKS, COLUMN_CHUNKS, COLUMNS, DEQUANTIZE, GATHER, LD, M_DST, M_DST_STRIDES, M_DTYPE,
    M_HI, M_INDICES, M_LO, M_SCALE, M_SHAPE, M_SRC, M_SRC_STRIDES, M_ZERO_POINT, MAX_TAPS, OP, PAD_ROW, POINTWISE,
    POOL, POOL_MAX, QUANTIZE, RANK, ROW_CHUNKS, ROWS, X, X_DTYPE, X_STRIDE,
)  # fmt: skip
from .linear import Window, emit_conv, emit_matmul, input_rows, window_of
from .steps import Number, Step, constant, ref

NATIVE_DTYPES = ("uint8", "int8", "uint16", "int16", "int32")


def native(b: Builder, *values: Value) -> bool:
    return all(v.dtype.numpy.name in NATIVE_DTYPES for v in values)


def emit_pointwise(b: Builder, node: Node) -> bool:
    """A pointwise node that no chain took: it starts one."""
    out = b.shape(node.output)
    operands = [v for v in node.inputs[: 2 if node.op in ("qir.Add", "qir.Mul") else 1] if v is not None]
    if not out or not native(b, *operands, node.output) or math.prod(out) == 0:
        return False
    main = next((v for v in operands if b.shape(v) == out and v.data is None), None)
    if main is None:
        return False
    order = b.view(main).order
    if node.op == "qir.Table" and node.attrs["axis"] is not None:
        axis = node.attrs["axis"] % len(out)
        order = (*(a for a in order if a != axis), axis)
    chain = Chain(b, order, tuple(out[a] for a in order))
    if len(operands) == 1 and not chain.fits(node, main):
        order = channels_last(len(out))
        chain = Chain(b, order, tuple(out[a] for a in order))
        if not chain.fits(node, main):
            return False
    chain.load(main, 0)
    b.done.add(node)
    chain.nodes.append(node)
    chain.apply(node, main, 0, 0)
    chain.grow(node.output, 0)
    add_region(b, chain, POINTWISE, node, {})
    return True


def add_region(
    b: Builder, chain: Chain, op: int, node: Node, fields: dict[int, Number], reads: list[View] | None = None
) -> None:
    """A step that walks rows and columns in register blocks."""
    rows, columns = chain.rows, chain.columns
    block_rows, block_columns, ld = block_of(columns, rows)
    row_chunks = b.chunks(rows, rows * columns)
    column_chunks = 1 if row_chunks > 1 else b.chunks(-(-columns // 16), columns, 4096)
    b.add(
        Step(
            {
                OP: op, CHUNKS: row_chunks * column_chunks, ROWS: rows, COLUMNS: columns, ROW_CHUNKS: row_chunks,
                COLUMN_CHUNKS: column_chunks, BLOCK_ROWS: block_rows, BLOCK_COLUMNS: block_columns, LD: ld, **fields,
            },
            chain.tail(), [*(reads or []), *chain.reads], chain.writes,
            list(dict.fromkeys([node.name, *(n.name for n in chain.nodes)])), node.op,
        )
    )  # fmt: skip


def _pool(
    b: Builder,
    node: Node,
    window: Window,
    fill: int,
    take_max: bool,
    order: tuple[int, ...],
    out_order: tuple[int, ...],
) -> bool:
    x = node.input(0)
    if not native(b, x, node.output) or math.prod(window.kernel) > MAX_TAPS:
        return False
    view, stride = input_rows(b, x, order)
    memory = tuple(b.shape(node.output)[a] for a in out_order)
    chain = Chain(b, out_order, memory)
    chain.grow(node.output, 0)
    pad = np.full(window.channels, fill, x.dtype.numpy)
    add_region(
        b, chain, POOL, node,
        {
            X: ref(view), X_STRIDE: stride, X_DTYPE: b.code(view), PAD_ROW: constant(padded(pad, 64)),
            POOL_MAX: int(take_max), **window.fields(),
        },
        [view],
    )  # fmt: skip
    return True


def emit_sum_pool(b: Builder, node: Node) -> bool:
    x = node.input(0)
    if x.type.rank not in (3, 4):
        return False
    window = window_of(b, x, node.output, node.attrs["kernel_shape"], node.attrs, node.attrs["pads"])
    order = channels_last(x.type.rank)
    return _pool(b, node, window, node.attrs["pad_value"], False, order, order)


def emit_max_pool(b: Builder, node: Node) -> bool:
    x = node.input(0)
    if x.type.rank not in (3, 4) or len(node.outputs) > 1 or not native(b, x):
        return False
    kernel = node.attrs["kernel_shape"]
    pads, strides, dilations = resolve_pads(b.shape(x)[2:], kernel, node.attrs)
    window = window_of(b, x, node.output, kernel, {"strides": strides, "dilations": dilations}, pads)
    order = channels_last(x.type.rank)
    return _pool(b, node, window, int(lowest(x.dtype.numpy)), True, order, order)


def emit_reduce(b: Builder, node: Node) -> bool:
    """qir.ReduceSum and ReduceMax over the spatial axes of an image: one window."""
    x = node.input(0)
    shape = b.shape(x)
    rank = len(shape)
    if node.op == "qir.ReduceSum":
        axes = node.attrs["axes"]
    else:
        given = node.optional(1)
        axes = list(range(rank)) if given is None else given.array().tolist()
        if not axes:
            return False
    if rank not in (3, 4) or sorted(a % rank for a in axes) != list(range(2, rank)):
        return False
    height, width = (1, *shape[2:])[-2:]
    window = Window(shape[0], shape[1], height, width, 1, 1, (height, width), (1, 1), (1, 1), 0, 0)
    out_order = channels_last(rank) if node.attrs["keepdims"] else (0, 1)
    return _pool(b, node, window, 0, node.op == "ReduceMax", channels_last(rank), out_order)


def _movement(b: Builder, op: int, source: View, target: View, node: Node, extra: dict[int, Number], code: int) -> None:
    """A border step: walks the source's memory order."""
    target = target.reordered(source.order)
    shape = source.shape or (1,)
    s, d = source.strides or (source.dtype.itemsize,), target.strides or (target.dtype.itemsize,)
    b.add(
        Step(
            {
                OP: op, CHUNKS: b.chunks(math.prod(shape[:-1]), math.prod(shape), 8192), M_SRC: ref(source),
                M_DST: ref(target), M_SHAPE: constant(np.asarray(shape, np.int64)),
                M_SRC_STRIDES: constant(np.asarray(s, np.int64)), M_DST_STRIDES: constant(np.asarray(d, np.int64)),
                M_DTYPE: code, RANK: len(shape), **extra,
            },
            [], [source], [target], [node.name], node.op,
        )
    )  # fmt: skip


def _grid(node: Node) -> tuple[Any, int] | None:
    """(scale as a float32 vector of one, zero point) where both are per tensor."""
    scale, zero = node.input(1).data, node.optional(2)
    if scale is None or scale.size != 1 or scale.dtype != np.float32 or node.attrs["block_size"]:
        return None
    if zero is not None and (zero.data is None or zero.data.size != 1):
        return None
    return scale.reshape(1), 0 if zero is None or zero.data is None else int(zero.data.reshape(()))


def emit_quantize(b: Builder, node: Node) -> bool:
    x, grid = node.input(0), _grid(node)
    kind = node.output.dtype
    if grid is None or x.data is not None or x.dtype.numpy != np.float32 or kind.bits > 16:
        return False
    target = b.destination(node.output, b.preferred_order(node.output))
    extra: dict[int, Number] = {M_SCALE: constant(grid[0]), M_ZERO_POINT: grid[1], M_LO: kind.lo, M_HI: kind.hi}
    _movement(b, QUANTIZE, b.view(x), target, node, extra, b.code(target))
    return True


def emit_dequantize(b: Builder, node: Node) -> bool:
    x, out, grid = node.input(0), node.output, _grid(node)
    if grid is None or x.data is not None or not native(b, x):
        return False
    order = tuple(range(out.type.rank))
    if out.is_output and out not in b.outputs_taken:
        b.outputs_taken.add(out)
        target = dense_view(b.shape(out), order, out.dtype.numpy, Buffer(0, f"output:{out.name}"))
        b.views[out] = target
    else:
        target = b.destination(out, order)
    source = b.view(x)
    _movement(
        b, DEQUANTIZE, source, target, node, {M_SCALE: constant(grid[0]), M_ZERO_POINT: grid[1]}, b.code(source)
    )  # fmt: skip
    return True


# -- operators that move nothing: views of what is there ------------------------------------------
def emit_reshape(b: Builder, node: Node) -> bool:
    """Reshape, Flatten, Squeeze, Unsqueeze, Identity: the same bytes in logical order, another shape."""
    x, out = node.input(0), node.output
    if x.data is not None or x.dtype.numpy.itemsize > 4:
        return False
    shape = b.shape(out)
    view = b.view(x)
    plain = tuple(range(view.rank))
    if node.op == "Identity":
        b.alias(out, view)
        return True
    at = view.reordered(plain)
    dense = dense_strides(at.shape, at.dtype.itemsize, at.strides)
    if at.strides != dense or not same_order(at.shape, view.order, plain):
        at = _packed(b, x)
    target = View(
        at.buffer, at.offset, shape, dense_strides(shape, at.dtype.itemsize), tuple(range(len(shape))), at.dtype
    )
    b.alias(out, target)
    return True


def _packed(b: Builder, x: Value) -> View:
    """The value contiguous in logical order."""
    view = b.view(x)
    target = dense_view(view.logical_shape, range(view.rank), view.dtype)
    b.copy(view, target, [])
    return target


def emit_transpose(b: Builder, node: Node) -> bool:
    """No bytes move: the axes get other names."""
    x = node.input(0)
    if x.data is not None:
        return False
    view = b.view(x)
    perm = node.attrs["perm"] or list(reversed(range(view.rank)))
    order = tuple(perm.index(a) for a in view.order)
    b.alias(node.output, View(view.buffer, view.offset, view.shape, view.strides, order, view.dtype))
    return True


def emit_split(b: Builder, node: Node) -> bool:
    x = node.input(0)
    if x.data is not None:
        return False
    axis = node.attrs["axis"] % x.type.rank
    start = 0
    for out in node.outputs:
        count = b.shape(out)[axis]
        b.alias(out, b.view(x).sliced(axis, start, count))
        start += count
    return True


def emit_slice(b: Builder, node: Node) -> bool:
    x = node.input(0)
    if x.data is not None or any(v is not None and v.data is None for v in node.inputs[1:]):
        return False
    shape = list(b.shape(x))
    starts, ends = (node.input(i).array().tolist() for i in (1, 2))
    axes, steps = (node.optional(i) for i in (3, 4))
    view = b.view(x)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (int(axes.array()[i]) if axes is not None else i) % len(shape)
        step = int(steps.array()[i]) if steps is not None else 1
        if step < 1 or isinstance(x.shape[axis], str):
            return False
        first, last, _ = slice(start, end, step).indices(shape[axis])
        view = view.sliced(axis, first, max(0, -(-(last - first) // step)), step)
    if view.logical_shape != b.shape(node.output):
        return False
    b.alias(node.output, view)
    return True


def emit_concat(b: Builder, node: Node) -> bool:
    """What was not written in place is copied into its part."""
    out = node.output
    if not native(b, out):
        return False
    axis = node.attrs["axis"] % out.type.rank
    if out not in b.views:
        first = next((v for v in node.inputs if v is not None and v.data is None), None)
        order = b.preferred_order(out) if first is None else b.view(first).order
        b.destination(out, order)
    whole = b.views[out]
    start = 0
    for value in node.inputs:
        assert value is not None
        count = b.shape(value)[axis]
        slot = whole.sliced(axis, start, count)
        start += count
        view = b.view(value)
        same = view.buffer is slot.buffer and view.offset == slot.offset
        if not same and slot.size:
            b.copy(view, slot, [node.name])
    return True


def emit_gather(b: Builder, node: Node) -> bool:
    """Gather with constant indices along one axis (nearest Resize lowers to it)."""
    x, indices = node.input(0), node.input(1).data
    if x.data is not None or indices is None or indices.ndim != 1 or not native(b, x):
        return False
    axis = node.attrs["axis"] % x.type.rank
    if isinstance(x.shape[axis], str):
        return False
    view = b.view(x)
    order = b.preferred_order(node.output)
    view = b.in_order(x, order) if view.order != order else view
    if not view.contiguous or view.rows() is None:
        packed = dense_view(view.logical_shape, view.order, view.dtype)
        b.copy(view, packed, [])
        view = packed
    target = dense_view(b.shape(node.output), view.order, view.dtype)
    b.alias(node.output, target)
    at = view.order.index(axis)
    item = view.dtype.itemsize
    outer, inner = math.prod(view.shape[:at]), math.prod(view.shape[at + 1 :])
    count = indices.size
    picked = np.where(indices < 0, indices + view.shape[at], indices).astype(np.int64)
    b.add(
        Step(
            {
                OP: GATHER, CHUNKS: b.chunks(outer * count, outer * count * inner), M_SRC: ref(view),
                M_DST: ref(target), M_SHAPE: constant(np.asarray([outer, count, inner], np.int64)),
                M_SRC_STRIDES: constant(np.asarray([view.shape[at] * inner * item, inner * item, item], np.int64)),
                M_DST_STRIDES: constant(np.asarray([count * inner * item, inner * item, item], np.int64)),
                M_DTYPE: {1: 0, 2: 2, 4: 4}[item], RANK: 3, M_INDICES: constant(picked),
            },
            [], [view], [target], [node.name], node.op,
        )
    )  # fmt: skip
    return True


def emit_depth_to_space(b: Builder, node: Node) -> bool:
    """A strided copy with the block's axes spread out."""
    x, out = node.input(0), node.output
    if x.data is not None or not native(b, x):
        return False
    n, c, h, w = b.shape(x)
    size = node.attrs["blocksize"]
    view = b.view(x).reordered((0, 1, 2, 3))
    target = b.destination(out, b.preferred_order(out)).reordered((0, 1, 2, 3))
    (sn, sc, sh, sw), (tn, tc, th, tw) = view.strides, target.strides
    depth = c // (size * size)
    # axes: n, h, i, w, j, channel
    shape = (n, h, size, w, size, depth)
    if node.attrs["mode"] == "CRD":
        source = (sn, sh, sc * size, sw, sc, sc * size * size)
    else:
        source = (sn, sh, sc * depth * size, sw, sc * depth, sc)
    result = (tn, th * size, th, tw * size, tw, tc)
    axes = tuple(range(6))
    b.copy(
        View(view.buffer, view.offset, shape, source, axes, view.dtype),
        View(target.buffer, target.offset, shape, result, axes, target.dtype), [node.name],
    )  # fmt: skip
    return True


EMITTERS: dict[str, Callable[[Builder, Node], bool]] = {
    "qir.Conv": emit_conv,
    "qir.MatMul": emit_matmul,
    "qir.SumPool": emit_sum_pool,
    "MaxPool": emit_max_pool,
    "qir.ReduceSum": emit_reduce,
    "ReduceMax": emit_reduce,
    "QuantizeLinear": emit_quantize,
    "DequantizeLinear": emit_dequantize,
    "Reshape": emit_reshape,
    "Flatten": emit_reshape,
    "Squeeze": emit_reshape,
    "Unsqueeze": emit_reshape,
    "Identity": emit_reshape,
    "Transpose": emit_transpose,
    "Split": emit_split,
    "Slice": emit_slice,
    "Concat": emit_concat,
    "Gather": emit_gather,
    "DepthToSpace": emit_depth_to_space,
    **dict.fromkeys(("qir.Requantize", "qir.Add", "qir.Mul", "qir.Table", "Clip"), emit_pointwise),
}
"""Operator -> emitter."""
