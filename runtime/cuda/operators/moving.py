"""Data movement: aliases where memory order allows, strided copies elsewhere, index lookups for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qir.errors import BackendError
from qir.graph import Node, Value
from qir.ops import REGISTRY, op_of
from qir.sizes import dim_at
from qir.types import Array

from ..arguments import scalar
from ..planner.fusion import Group
from ..planner.placement import CHUNK, Placement, pixel_of_image
from ..planner.plan import Plan, shape_of
from .chunks import chunked

WIDTHS = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}


def copy(plan: Plan, x: Placement, y: Placement) -> None:
    """y = x, of one shape, in any two layouts."""
    if x == y:
        return
    to, source = _bytes(y), _bytes(x)
    found = chunked(to, source) if to and source and x.shape == y.shape else None
    if found is not None:
        found.launch(plan, "copy_chunks", lambda: [found.rows(1), found.rows(0)])
        return
    plan.elements(f"copy_elements<qir::{WIDTHS[x.dtype.itemsize]}>", y.shape, lambda: [x.view(y.shape), y.view()])


def _bytes(p: Placement) -> Placement | None:
    """A tensor as one of bytes, its innermost axis that many times as long; None where no axis has stride 1."""
    size = p.dtype.itemsize
    inner = [i for i, s in enumerate(p.strides) if s == 1]
    if not inner:
        return None
    shape, strides = list(p.shape), [s * size for s in p.strides]
    shape[inner[-1]] *= size
    strides[inner[-1]] = 1
    return replace(p, dtype=np.dtype(np.int8), shape=tuple(shape), strides=tuple(strides), offset=p.offset * size)


def row_major_copy(plan: Plan, x: Placement) -> Placement:
    """x itself when it is contiguous, or a contiguous copy."""
    if x.contiguous:
        return x
    flat = plan.scratch(x.shape, x.dtype)
    copy(plan, x, flat)
    return flat


def reshape(plan: Plan, group: Group) -> None:
    """Operators that keep the order: the same elements in row-major order."""
    node = group.head
    x, value = plan.at(node.input(0)), node.output
    y = plan.define(value)
    if x.contiguous and y.contiguous and node.input(0).data is None:
        plan.alias(value, x.reshaped(y.shape))
        return
    if x.shape == y.shape:
        copy(plan, x, y)
    elif y.contiguous:
        copy(plan, x, y.reshaped(x.shape))
    else:
        copy(plan, row_major_copy(plan, x).reshaped(y.shape), y)


def transpose(plan: Plan, group: Group) -> None:
    node = group.head
    x, y = plan.at(node.input(0)), plan.define(node.output)
    perm = node.attrs["perm"] or list(range(len(x.shape)))[::-1]
    copy(plan, x.permuted(perm), y)


def expand(plan: Plan, group: Group) -> None:
    node = group.head
    copy(plan, plan.at(node.input(0)), plan.define(node.output))


def concat(plan: Plan, group: Group) -> None:
    """Every branch is copied into its slice, unless it was computed there."""
    node = group.head
    y = plan.define(node.output)
    axis, start = node.attrs["axis"] % len(y.shape), 0
    for value in node.inputs:
        assert value is not None
        x = plan.at(value)
        copy(plan, x, y.part(axis, start, x.shape[axis]))
        start += x.shape[axis]


def _view(plan: Plan, value: Value, part: Placement) -> None:
    """value = part: in place where the kernels read it as well as a copy, which is where chunks begin at chunks."""
    try:
        step, offset = pixel_of_image(part)
    except BackendError:
        step, offset = 1, 1
    if len(part.shape) > 2 and part.strides[1] == 1 and step % CHUNK == 0 and offset % CHUNK == 0:
        plan.alias(value, part)
    else:
        copy(plan, part, plan.define(value))


def split(plan: Plan, group: Group) -> None:
    """Views of the operand where they can be."""
    node = group.head
    x, start = plan.at(node.input(0)), 0
    axis = node.attrs["axis"] % len(x.shape)
    for value in node.outputs:
        size = dim_at(value.shape[axis], plan.sizes)
        _view(plan, value, x.part(axis, start, size))
        start += size


def gather(plan: Plan, group: Group) -> None:
    """Gather; the index may be computed at run time, of any rank."""
    node = group.head
    x, index, y = plan.at(node.input(0)), plan.at(node.input(1)), plan.define(node.output)
    axis, extra = node.attrs["axis"] % len(x.shape), len(index.shape)
    still = Placement(x.storage, x.dtype, y.shape, (*x.strides[:axis], *[0] * extra, *x.strides[axis + 1 :]), x.offset)
    after = len(x.shape) - axis - 1
    chosen = Placement(index.storage, index.dtype, y.shape, (*[0] * axis, *index.strides, *[0] * after), index.offset)
    plan.elements(
        f"gather_elements<qir::{WIDTHS[x.dtype.itemsize]}>", y.shape,
        lambda: [
            still.view(), y.view(), chosen.view(), scalar("i8", x.strides[axis]), scalar("i4", x.shape[axis]),
        ],
    )  # fmt: skip


def source_index(node: Node, shape: Sequence[int], constants: Sequence[Array | None]) -> list[Array]:
    """For each output of a movement operator, the flat source position of every element; -1 is the fill value.

    The operator's own reference moves the positions, so that the meaning is written down once.
    """
    positions = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    arguments = list(constants)
    arguments[0] = positions
    if node.op == "Pad" and len(arguments) > 2 and arguments[2] is not None:
        arguments[2] = np.asarray(-1, dtype=np.int64)
    elif node.op == "Pad" and node.attrs["mode"] == "constant":
        arguments = [*arguments, *[None] * (3 - len(arguments))]
        arguments[2] = np.asarray(-1, dtype=np.int64)
    return [np.asarray(a) for a in op_of(node.op).reference(node.attrs, *arguments)]


def lookup(plan: Plan, group: Group) -> None:
    """Any data movement of one input, by a table of source positions (4 bytes an output element)."""
    node = group.head
    x = plan.at(node.input(0))
    constants = [None if v is None else v.data for v in node.inputs]
    fill_value = node.optional(2) if node.op == "Pad" else None
    fill = int(np.ravel(fill_value.array())[0]) if fill_value is not None else 0
    for value, index in zip(node.outputs, source_index(node, x.shape, constants), strict=False):
        y = plan.define(value)
        table = plan.local.constant(index.astype(np.int32), (id(node), value.name))
        _launch_lookup(plan, x, y, table, fill)


def _launch_lookup(plan: Plan, x: Placement, y: Placement, table: Placement, fill: int) -> None:
    plan.elements(
        f"lookup_elements<qir::{WIDTHS[x.dtype.itemsize]}>", y.shape,
        lambda: [
            x.view(), y.view(), shape_of(x.shape), scalar("u8", table.storage.pointer), scalar("i8", fill),
        ],
    )  # fmt: skip


def pad(plan: Plan, group: Group) -> None:
    """Constant padding: fill, then copy inside. Other modes: lookup."""
    node = group.head
    x = plan.at(node.input(0))
    if node.attrs["mode"] != "constant" or node.optional(3) is not None:
        lookup(plan, group)
        return
    begins = np.ravel(node.input(1).array())[: len(x.shape)].tolist()
    ends = np.ravel(node.input(1).array())[len(x.shape) :].tolist()
    if min([*begins, *ends]) < 0:
        lookup(plan, group)
        return
    y = plan.define(node.output)
    value = int(np.ravel(_constant(node.optional(2)))[0])
    plan.elements("fill_elements", y.shape, lambda: [y.view(), scalar("i8", value)])
    inner = y
    for axis, begin in enumerate(begins):
        inner = inner.part(axis, begin, x.shape[axis])
    copy(plan, x, inner)


def _constant(value: Value | None) -> Array:
    return np.zeros(1, np.int64) if value is None else value.array()


def slice_(plan: Plan, group: Group) -> None:
    """A view of the operand where it can be."""
    node = group.head
    x, value = plan.at(node.input(0)), node.output
    starts, ends = (np.ravel(node.input(i).array()).tolist() for i in (1, 2))
    axes_value, steps_value = node.optional(3), node.optional(4)
    axes = list(range(len(starts))) if axes_value is None else np.ravel(axes_value.array()).tolist()
    steps = [1] * len(starts) if steps_value is None else np.ravel(steps_value.array()).tolist()
    part = x
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = axis % len(x.shape)
        first, _, _ = slice(start, None if step < 0 and end < -x.shape[axis] else end, step).indices(x.shape[axis])
        part = part.part(axis, first, dim_at(value.shape[axis], plan.sizes), step)
    _view(plan, value, part)


def depth_to_space(plan: Plan, group: Group) -> None:
    """Both sides as (N, b, b, C, H, W)."""
    node = group.head
    x, y = plan.at(node.input(0)), plan.define(node.output)
    b, n, c = node.attrs["blocksize"], y.shape[0], y.shape[1]
    h, w = x.shape[2], x.shape[3]
    s, t = x.strides, y.strides
    channel = (s[1] * c * b, s[1] * c, s[1]) if node.attrs["mode"] == "DCR" else (s[1] * b, s[1], s[1] * b * b)
    shape = (n, b, b, c, h, w)
    source = Placement(x.storage, x.dtype, shape, (s[0], *channel, s[2], s[3]), x.offset)
    target = Placement(y.storage, y.dtype, shape, (t[0], t[2], t[3], t[1], t[2] * b, t[3] * b), y.offset)
    copy(plan, source, target)


OPERATORS = {
    **{name: reshape for name, op in REGISTRY.items() if op.keeps_order},
    **dict.fromkeys(("Tile", "SpaceToDepth"), lookup),
    "Transpose": transpose,
    "Expand": expand,
    "Concat": concat,
    "Split": split,
    "Gather": gather,
    "Pad": pad,
    "Slice": slice_,
    "DepthToSpace": depth_to_space,
}
