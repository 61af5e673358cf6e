"""One function an operator: graph node to steps.  What is absent here, or answers False, runs as the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qir.graph import Node
from qir.ops.max_pooling import lowest
from qir.ops.windows import resolve_pads

from ...compile.tensors import Buffer, View, channels_last, dense_view
from ..kernels import record as r
from ..planner.builder import Builder, native
from ..planner.chain import Chain, block_of
from ..planner.steps import Number, Step, constant, padded, ref
from .linear import emit_conv, emit_matmul, input_rows
from .movement import (
    emit_concat,
    emit_depth_to_space,
    emit_gather,
    emit_reshape,
    emit_slice,
    emit_split,
    emit_transpose,
)
from .packing import Window, window_of
from .rowwise import emit_interpolate, emit_normalize, emit_pad, emit_product, emit_softmax


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
    add_region(b, chain, r.POINTWISE, node, {})
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
                r.OP: op, r.CHUNKS: row_chunks * column_chunks, r.ROWS: rows, r.COLUMNS: columns,
                r.ROW_CHUNKS: row_chunks,
                r.COLUMN_CHUNKS: column_chunks, r.BLOCK_ROWS: block_rows, r.BLOCK_COLUMNS: block_columns, r.LD: ld,
                **fields,
            },
            chain.epilogue(), [*(reads or []), *chain.reads], chain.writes,
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
    if not native(b, x, node.output) or math.prod(window.kernel) > r.MAX_TAPS:
        return False
    view, stride = input_rows(b, x, order)
    memory = tuple(b.shape(node.output)[a] for a in out_order)
    chain = Chain(b, out_order, memory)
    chain.grow(node.output, 0)
    pad = np.full(window.channels, fill, x.dtype.numpy)
    add_region(
        b, chain, r.POOL, node,
        {
            r.X: ref(view), r.X_STRIDE: stride, r.X_DTYPE: b.code(view), r.PAD_ROW: constant(padded(pad, 64)),
            r.POOL_MAX: int(take_max), **window.fields(),
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
                r.OP: op, r.CHUNKS: b.chunks(math.prod(shape[:-1]), math.prod(shape), 8192), r.M_SRC: ref(source),
                r.M_DST: ref(target), r.M_SHAPE: constant(np.asarray(shape, np.int64)),
                r.M_SRC_STRIDES: constant(np.asarray(s, np.int64)), r.M_DST_STRIDES: constant(np.asarray(d, np.int64)),
                r.M_DTYPE: code, r.RANK: len(shape), **extra,
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
    extra: dict[int, Number] = {r.M_SCALE: constant(grid[0]), r.M_ZERO_POINT: grid[1], r.M_LO: kind.lo, r.M_HI: kind.hi}
    _movement(b, r.QUANTIZE, b.view(x), target, node, extra, b.code(target))
    return True


def emit_dequantize(b: Builder, node: Node) -> bool:
    x, out, grid = node.input(0), node.output, _grid(node)
    if grid is None or x.data is not None or not native(b, x):
        return False
    order = tuple(range(out.type.rank))
    if out.is_output and out not in b.outputs_taken:
        b.outputs_taken.add(out)
        target = dense_view(b.shape(out), order, out.dtype.numpy, Buffer(0, f"output:{out.name}"))
        b.alias(out, target)
    else:
        target = b.destination(out, order)
    source = b.view(x)
    _movement(
        b, r.DEQUANTIZE, source, target, node, {r.M_SCALE: constant(grid[0]), r.M_ZERO_POINT: grid[1]}, b.code(source)
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
    "Pad": emit_pad,
    "qir.Softmax": emit_softmax,
    "qir.Normalize": emit_normalize,
    "qir.Interpolate": emit_interpolate,
    "qir.MatMulActivations": emit_product,
    **dict.fromkeys(("qir.Requantize", "qir.Add", "qir.Mul", "qir.Table", "Clip"), emit_pointwise),
}
"""Operator -> emitter."""
