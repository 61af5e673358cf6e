"""Softmax, interpolation, products of two activations, padding: nodes to steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qir.graph import Node
from qir.ops.integer_softmax import FINE, KEEP
from qir.ops.padding import pad_widths

from ...compile.tensors import View, dense_view
from ..kernels import record as r
from ..planner.builder import Builder, native
from ..planner.steps import Ref, Step, constant, ref


def _vector(values: Sequence[int]) -> Ref:
    return constant(np.asarray(values, np.int64))


def emit_softmax(b: Builder, node: Node) -> bool:
    x, out = node.input(0), node.output
    mask, fine = node.optional(KEEP), node.optional(FINE)
    tables = [v.data for v in (node.input(1), fine, node.input(2)) if v is not None]
    if x.data is not None or x.dtype.bits not in (8, 16) or out.dtype.bits != 8 or any(t is None for t in tables):
        return False
    axis = node.attrs["axis"] % x.type.rank
    source = b.view(x)
    order = (*(a for a in source.order if a != axis), axis)
    source = source.reordered(order)
    target = b.destination(out, b.preferred_order(out)).reordered(order)
    keep = source if mask is None else _broadcast(b.view(mask), source)
    lines = math.prod(source.shape[:-1])
    *exponentials, reciprocals = (np.asarray(t, np.int64) for t in tables)
    b.add(
        Step(
            {
                r.OP: r.SOFTMAX, r.CHUNKS: b.chunks(lines, source.size, 2048), r.M_SRC: ref(source),
                r.M_DST: ref(target),
                r.M_SHAPE: _vector(source.shape), r.M_SRC_STRIDES: _vector(source.strides),
                r.M_DST_STRIDES: _vector(target.strides), r.M_DTYPE: b.code(source), r.RANK: source.rank,
                r.M_SCALE: constant(np.concatenate(exponentials).astype(np.uint32)), r.M_INDICES: constant(reciprocals),
                r.M_ZERO_POINT: node.attrs["zero_point"], r.M_LO: out.dtype.lo, r.M_HI: out.dtype.hi,
                r.M_OTHER: ref(keep), r.M_OTHER_STRIDES: _vector(keep.strides), r.MASKED: int(mask is not None),
            },
            [], [source, *([] if mask is None else [keep])], [target], [node.name], node.op,
        )
    )  # fmt: skip
    return True


def _broadcast(view: View, like: View) -> View:
    """A view broadcast to another's logical shape, its axes in the other's order: strides of 0."""
    extra = like.rank - view.rank
    strides = [0] * extra + [0 if n == 1 else s for n, s in zip(view.logical_shape, view.logical_strides, strict=True)]
    return replace(view, shape=like.shape, strides=tuple(strides[axis] for axis in like.order), order=like.order)


def emit_normalize(b: Builder, node: Node) -> bool:
    x, out, attrs = node.input(0), node.output, node.attrs
    constants = [node.input(i).data for i in (1, 2, 3)]
    if x.data is not None or x.dtype.bits < 8 or out.dtype.bits < 8 or any(c is None for c in constants):
        return False
    rank = x.type.rank
    natural = tuple(range(rank))
    source = b.view(x).reordered(natural)
    if source.strides[-1] != source.dtype.itemsize:
        packed = dense_view(source.logical_shape, natural, source.dtype)
        b.copy(source, packed, [])
        source = packed
    target = b.destination(out, natural).reordered(natural)
    multiplier, offset = (np.asarray(c) for c in constants[:2])
    covered = max(multiplier.ndim, offset.ndim, 1)
    step = int(max(multiplier.shape[-1:] + offset.shape[-1:], default=1) > 1)
    shape = (*source.shape[rank - covered : rank - 1], source.shape[-1] if step else 1)
    period = math.prod(shape[:-1])
    lines = math.prod(source.shape[:-1])
    b.add(
        Step(
            {
                r.OP: r.NORMALIZE, r.CHUNKS: b.chunks(lines, source.size, 2048), r.M_SRC: ref(source),
                r.M_DST: ref(target),
                r.M_SHAPE: _vector(source.shape), r.M_SRC_STRIDES: _vector(source.strides),
                r.M_DST_STRIDES: _vector(target.strides), r.M_DTYPE: b.code(source), r.RANK: rank,
                r.N_OUT: b.code(target),
                r.M_SCALE: constant(np.ascontiguousarray(np.broadcast_to(multiplier, shape).astype(np.int32))),
                r.M_INDICES: constant(np.ascontiguousarray(np.broadcast_to(offset, shape).astype(np.int64))),
                r.M_OTHER: constant(np.ascontiguousarray(np.asarray(constants[2], np.int64))),
                r.M_ZERO_POINT: attrs["x_zero_point"], r.M_LO: attrs["lo"], r.M_HI: attrs["hi"],
                r.N_CENTRE: attrs["centre"],
                r.N_EXTRA: attrs["extra"], r.N_EPSILON: attrs["noise"], r.N_SHIFT: attrs["shift"], r.N_PERIOD: period,
                r.N_STEP: step,
            },
            [], [source], [target], [node.name], node.op,
        )
    )  # fmt: skip
    return True


def contiguous(b: Builder, view: View) -> View:
    """The view, or a contiguous copy in the same order."""
    if view.contiguous:
        return view
    packed = dense_view(view.logical_shape, view.order, view.dtype)
    b.copy(view, packed, [])
    return packed


def emit_interpolate(b: Builder, node: Node) -> bool:
    x, out = node.input(0), node.output
    parts = [node.input(i).data for i in range(1, 5)]
    axis = node.attrs["axis"] % x.type.rank
    if x.data is not None or not native(b, x) or any(p is None for p in parts) or isinstance(x.shape[axis], str):
        return False
    view = contiguous(b, b.view(x))
    target = dense_view(b.shape(out), view.order, out.dtype.numpy)
    b.alias(out, target)
    at, item = view.order.index(axis), view.dtype.itemsize
    outer, inner = math.prod(view.shape[:at]), math.prod(view.shape[at + 1 :])
    plan = np.stack([np.asarray(p, np.int64) for p in parts])
    plan[:2] %= view.shape[at]
    count = plan.shape[1]
    b.add(
        Step(
            {
                r.OP: r.INTERPOLATE, r.CHUNKS: b.chunks(outer * count, outer * count * inner), r.M_SRC: ref(view),
                r.M_DST: ref(target), r.M_SHAPE: _vector([outer, count, inner]), r.M_DTYPE: b.code(view),
                r.M_SRC_STRIDES: _vector([view.shape[at] * inner * item, inner * item, item]), r.RANK: 3,
                r.M_INDICES: constant(plan),
            },
            [], [view], [target], [node.name], node.op,
        )
    )  # fmt: skip
    return True


def emit_product(b: Builder, node: Node) -> bool:
    """qir.MatMulActivations with equal batch axes."""
    x, y, out = node.input(0), node.input(1), node.output
    a_shape, b_shape = b.shape(x), b.shape(y)
    if x.dtype.bits > 8 or y.dtype.bits > 8 or len(a_shape) < 2 or len(a_shape) != len(b_shape):
        return False
    if a_shape[:-2] != b_shape[:-2]:
        return False
    plain = range(len(a_shape))
    left, right = b.view(x).reordered(plain), b.view(y).reordered(plain)
    target = dense_view(b.shape(out), plain, out.dtype.numpy)
    b.alias(out, target)
    rows, depth, columns = a_shape[-2], a_shape[-1], b_shape[-1]
    lines = math.prod(a_shape[:-1])
    b.add(
        Step(
            {
                r.OP: r.PRODUCT, r.CHUNKS: b.chunks(lines, lines * depth * columns, 65536), r.M_SRC: ref(left),
                r.M_OTHER: ref(right), r.M_DST: ref(target), r.RANK: len(a_shape) + 1,
                r.M_SHAPE: _vector([*a_shape[:-2], rows, depth, columns]),
                r.M_SRC_STRIDES: _vector([*left.strides, 0]),
                r.M_OTHER_STRIDES: _vector([*right.strides[:-2], 0, *right.strides[-2:]]),
                r.M_DST_STRIDES: _vector([*target.strides[:-1], 0, target.strides[-1]]),
                r.M_DTYPE: int(x.dtype.is_signed) + 2 * int(y.dtype.is_signed),
                r.M_ZERO_POINT: node.attrs["a_zero_point"], r.M_LO: node.attrs["b_zero_point"],
            },
            [], [left, right], [target], [node.name], node.op, macs=lines * depth * columns,
        )
    )  # fmt: skip
    return True


def emit_pad(b: Builder, node: Node) -> bool:
    """Constant padding: the target filled by a broadcast copy, then the inside copied."""
    x, out = node.input(0), node.output
    pads, value, axes = node.input(1).data, node.optional(2), node.optional(3)
    if x.data is not None or not native(b, x) or node.attrs["mode"] != "constant" or pads is None:
        return False
    if (value is not None and value.data is None) or (axes is not None and axes.data is None):
        return False
    widths = pad_widths(x.type.rank, pads, None if axes is None else axes.data)
    if any(min(pair) < 0 for pair in widths):
        return False
    view = b.view(x)
    target = b.destination(out, view.order)
    fill = np.zeros(1, view.dtype) if value is None or value.data is None else value.data.reshape(-1)[:1]
    source = constant(fill.astype(view.dtype))
    b.copy(
        View(source.buffer, 0, target.shape, (0,) * target.rank, target.order, view.dtype), target, [node.name]
    )  # fmt: skip
    inside = target
    for axis, (before, _) in enumerate(widths):
        inside = inside.sliced(axis, before, b.shape(x)[axis])
    b.copy(view, inside, [node.name])
    return True
