"""Data movement: views where no byte has to move, strided copies and gathers where it has."""

from __future__ import annotations

import math

import numpy as np

from qir.graph import Node, Value

from ...compile.tensors import View, dense_strides, dense_view, same_order
from ..kernels import record as r
from ..planner.builder import Builder, native
from ..planner.steps import Step, constant, ref


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
    starts, ends = (node.input(i).array().reshape(-1).tolist() for i in (1, 2))
    axes, steps = (None if v is None else v.array().reshape(-1) for v in (node.optional(3), node.optional(4)))
    view = b.view(x)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (int(axes[i]) if axes is not None else i) % len(shape)
        step = min(int(steps[i]) if steps is not None else 1, max(shape[axis], 1))  # past the end is past the end
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
                r.OP: r.GATHER, r.CHUNKS: b.chunks(outer * count, outer * count * inner), r.M_SRC: ref(view),
                r.M_DST: ref(target), r.M_SHAPE: constant(np.asarray([outer, count, inner], np.int64)),
                r.M_SRC_STRIDES: constant(np.asarray([view.shape[at] * inner * item, inner * item, item], np.int64)),
                r.M_DST_STRIDES: constant(np.asarray([count * inner * item, inner * item, item], np.int64)),
                r.M_DTYPE: {1: 0, 2: 2, 4: 4}[item], r.RANK: 3, r.M_INDICES: constant(picked),
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
