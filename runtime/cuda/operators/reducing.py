"""Windows, reductions, softmax and selections."""

from __future__ import annotations

import numpy as np

from qir.graph import Node
from qir.ops.integer_softmax import FINE, KEEP
from qir.ops.windows import resolve_pads
from qir.types import Array

from ..arguments import RESCALE, WINDOW, record, scalar
from ..planner.fusion import Group
from ..planner.placement import Placement
from ..planner.plan import Plan, shape_of
from .chunks import chunked_windows
from .moving import copy
from .pointwise import rescale

SUM, MAX, MIN, PRODUCT = range(4)


def _rescale(node: Node | None) -> Array:
    """Struct `Rescale` of the qir.Requantize that a launch carries out after its sums, or of none."""
    if node is None:
        return record(RESCALE)
    multiplier, shift = (int(np.ravel(node.input(i).array())[0]) for i in (1, 2))
    limits = {k: node.attrs[k] for k in ("zero_point", "lo", "hi")}
    return record(RESCALE, multiplier=multiplier, shift=shift, x_zero=node.attrs["x_zero_point"], **limits)


def _sums(plan: Plan, group: Group, y: Placement) -> Placement:
    """Where sums go that a kernel of their own requantizes to y: y itself if none does."""
    return y if group.requantize is None else plan.scratch(y.shape, np.dtype(np.int32))


def _pool(plan: Plan, group: Group, name: str, pad_value: int) -> None:
    node, attrs = group.head, group.head.attrs
    x, y = plan.at(node.input(0)), plan.define(group.output)
    rank = len(x.shape) - 2
    pads, strides, dilations = resolve_pads(x.shape[2:], attrs["kernel_shape"], attrs)

    def pair(values: list[int], fill: int) -> tuple[int, int]:
        return (values[0], values[1]) if rank == 2 else (fill, values[0])

    def lift(p: Placement) -> Placement:
        if rank == 2:
            return p
        n, c, length = p.shape
        return Placement(p.storage, p.dtype, (n, c, 1, length), (*p.strides[:2], 0, p.strides[2]), p.offset)

    x4, y4 = lift(x), lift(y)
    k, s, d = pair(list(attrs["kernel_shape"]), 1), pair(strides, 1), pair(dilations, 1)
    p = pair(pads[:rank], 0)
    fields = {
        "height": x4.shape[2], "width": x4.shape[3], "kernel_h": k[0], "kernel_w": k[1], "stride_h": s[0],
        "stride_w": s[1], "dilation_h": d[0], "dilation_w": d[1], "pad_top": p[0], "pad_left": p[1],
        "pad_value": pad_value,
    }  # fmt: skip
    found = chunked_windows(y4, x4)
    if found is not None:
        kind, largest = x.dtype.name, name.endswith("<true>")
        bytes_alone = kind in ("int8", "uint8") and (y.dtype == x.dtype if largest else k[0] * k[1] <= 256)
        fast = f"pool_bytes<{str(largest).lower()}, {str(kind == 'int8').lower()}>"
        found.launch(
            plan, fast if bytes_alone else name.replace("pool", "pool_chunks"),
            lambda: [
                found.rows(1), found.rows(0), record(WINDOW, **fields), scalar("i4", y4.shape[3]),
                _rescale(group.requantize),
            ],
        )  # fmt: skip
        return
    sums = _sums(plan, group, y)
    y4 = lift(sums)
    # the kernel moves over x by itself: its view keeps the input's strides under the output's sizes
    moving = Placement(x4.storage, x4.dtype, y4.shape, x4.strides, x4.offset)
    plan.elements(name, y4.shape, lambda: [moving.view(), y4.view(), record(WINDOW, **fields)])
    if group.requantize is not None:
        rescale(plan, group.requantize, sums, y)


def max_pool(plan: Plan, group: Group) -> None:
    _pool(plan, group, "pool<true>", group.head.input(0).dtype.lo)


def sum_pool(plan: Plan, group: Group) -> None:
    _pool(plan, group, "pool<false>", group.head.attrs["pad_value"])


def _reduce(plan: Plan, group: Group, axes: list[int], keepdims: bool, which: int) -> None:
    node = group.head
    x, out = plan.at(node.input(0)), plan.define(group.output)
    rank = len(x.shape)
    axes = sorted({a % rank for a in axes})
    whole = which in (SUM, MAX) and axes == list(range(2, rank))
    if whole and _reduce_chunks(plan, x, out, keepdims, which == MAX, group.requantize):
        return
    y = _sums(plan, group, out)
    kept = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    outer = Placement(x.storage, x.dtype, kept, tuple(0 if i in axes else s for i, s in enumerate(x.strides)), x.offset)
    strides, at = [0] * rank, 0
    for i in range(rank):
        if i not in axes or keepdims:
            strides[i] = y.strides[at]
            at += 1
    target = Placement(y.storage, y.dtype, kept, tuple(strides), y.offset)
    inner_shape = tuple(x.shape[i] for i in axes)
    inner = Placement(x.storage, x.dtype, inner_shape, tuple(x.strides[i] for i in axes))
    plan.elements(
        f"reduce<{which}>", kept, lambda: [outer.view(), target.view(), shape_of(inner_shape), inner.view()], width=32
    )
    if group.requantize is not None:
        rescale(plan, group.requantize, y, out)


def _reduce_chunks(
    plan: Plan, x: Placement, y: Placement, keepdims: bool, is_max: bool, requantize: Node | None
) -> bool:
    """Global pooling by chunks, if x and y lie so."""
    ones = [1] * (len(x.shape) - 2)
    if not keepdims:
        strides = (*y.strides, *[y.strides[0]] * len(ones))
        y = Placement(y.storage, y.dtype, (*y.shape, *ones), strides, y.offset)
    found = chunked_windows(y, x)
    if found is None:
        return False
    pixels = int(np.prod(x.shape[2:]))
    name, side = f"reduce_chunks<{str(is_max).lower()}>", 1 << min(found.chunks, 8).bit_length() - 1
    found.launch(
        plan, name,
        lambda: [
            found.rows(1), found.rows(0), scalar("i4", pixels), scalar("i4", side), _rescale(requantize),
        ],
        width=-(-32 // side),
    )  # fmt: skip
    return True


def reduce_sum(plan: Plan, group: Group) -> None:
    """qir.ReduceSum."""
    attrs = group.head.attrs
    _reduce(plan, group, list(attrs["axes"]), bool(attrs["keepdims"]), SUM)


def _axes(node: Node) -> list[int]:
    given = node.optional(1)
    axes = [] if given is None else np.ravel(given.array()).tolist()
    if node.attrs.get("noop_with_empty_axes"):
        return axes
    return axes or list(range(node.input(0).type.rank))


REDUCTIONS = {"ReduceMax": MAX, "ReduceMin": MIN, "ReduceSum": SUM, "ReduceProd": PRODUCT}


def reduce_standard(plan: Plan, group: Group) -> None:
    """ONNX reductions on integers as they are."""
    node = group.head
    if not _axes(node):
        copy(plan, plan.at(node.input(0)), plan.define(node.output))
        return
    _reduce(plan, group, _axes(node), bool(node.attrs["keepdims"]), REDUCTIONS[node.op])


def _without(p: Placement, axis: int) -> Placement:
    return Placement(
        p.storage,
        p.dtype,
        (*p.shape[:axis], *p.shape[axis + 1 :]),
        (*p.strides[:axis], *p.strides[axis + 1 :]),
        p.offset,
    )


def softmax(plan: Plan, group: Group) -> None:
    """qir.Softmax: a warp a row."""
    node = group.head
    x, y = plan.at(node.input(0)), plan.define(node.output)
    exponentials, reciprocals = (plan.at(node.input(i)) for i in (1, 2))
    mask, fine = node.optional(KEEP), node.optional(FINE)
    keep = x if mask is None else _broadcast(plan.at(mask), x.shape)
    low_bytes = None if fine is None else plan.at(fine)
    axis = node.attrs["axis"] % len(x.shape)
    rows_x, rows_keep, rows_y = (_without(p, axis) for p in (x, keep, y))
    kind = node.output.dtype
    tables = [exponentials, reciprocals] if low_bytes is None else [exponentials, low_bytes, reciprocals]
    if _in_row_words(x, axis) and _in_row_words(y, axis) and kind.bits == 8 and all(t.shape == (256,) for t in tables):
        name = f"softmax_rows<{str(x.dtype.itemsize == 2).lower()}, {str(kind.is_signed).lower()}>"
        plan.elements(
            name, rows_x.shape,
            lambda: [
                rows_x.view(), rows_keep.view(), rows_y.view(), scalar("i4", x.shape[axis]),
                scalar("i8", keep.strides[axis]), scalar("u8", exponentials.storage.pointer),
                scalar("u8", 0 if low_bytes is None else low_bytes.storage.pointer),
                scalar("u8", reciprocals.storage.pointer), scalar("i4", mask is not None),
                scalar("i4", node.attrs["zero_point"]),
            ],
            width=32,
        )  # fmt: skip
        return
    plan.elements(
        "softmax", rows_x.shape,
        lambda: [
            rows_x.view(), rows_keep.view(), rows_y.view(), scalar("i4", x.shape[axis]),
            *(scalar("i8", p.strides[axis]) for p in (x, keep, y)),
            scalar("u8", exponentials.storage.pointer),
            scalar("u8", 0 if low_bytes is None else low_bytes.storage.pointer),
            scalar("u8", reciprocals.storage.pointer), scalar("i4", mask is not None),
            scalar("i4", node.attrs["zero_point"]), scalar("i4", kind.lo), scalar("i4", kind.hi),
        ],
        width=32,
    )  # fmt: skip


ROW = 1024
"""Elements that a warp of rows.cu keeps."""


def _in_row_words(p: Placement, axis: int) -> bool:
    """Whether rows along an axis are whole words of four elements, and few enough for one warp."""
    others = [s for i, (n, s) in enumerate(zip(p.shape, p.strides, strict=True)) if i != axis and n > 1]
    whole = p.strides[axis] == 1 and p.shape[axis] % 4 == 0 and p.offset % 4 == 0 and all(s % 4 == 0 for s in others)
    return whole and p.shape[axis] <= ROW


def _broadcast(p: Placement, shape: tuple[int, ...]) -> Placement:
    """p as a tensor of a shape that it broadcasts to: axes of stride 0."""
    extra = len(shape) - len(p.shape)
    strides = [0 if n == 1 else s for n, s in zip(p.shape, p.strides, strict=True)]
    return Placement(p.storage, p.dtype, shape, (*[0] * extra, *strides), p.offset)


def normalize(plan: Plan, group: Group) -> None:
    """qir.Normalize: a warp a row."""
    node = group.head
    x, y = plan.at(node.input(0)), plan.define(node.output)
    m, c = (_broadcast(plan.at(node.input(i)), x.shape) for i in (1, 2))
    table, attrs, last = plan.at(node.input(3)), node.attrs, len(x.shape) - 1
    rows = [_without(p, last) for p in (x, y, m, c)]
    if all(_in_row_words(p, last) for p in (x, y, m, c)):
        plan.elements(
            f"normalize_rows<{str(x.dtype.itemsize == 2).lower()}>", rows[0].shape,
            lambda: [
                *(r.view() for r in rows), scalar("u8", table.storage.pointer), scalar("i4", x.shape[last]),
                scalar("i4", attrs["centre"]), scalar("i4", attrs["x_zero_point"]), scalar("i4", attrs["extra"]),
                scalar("i8", attrs["noise"]), scalar("i4", attrs["shift"]), scalar("i4", attrs["lo"]),
                scalar("i4", attrs["hi"]),
            ],
            width=32,
        )  # fmt: skip
        return
    plan.elements(
        "normalize", rows[0].shape,
        lambda: [
            *(r.view() for r in rows), *(scalar("i8", p.strides[last]) for p in (x, y, m, c)),
            scalar("u8", table.storage.pointer), scalar("i4", x.shape[last]), scalar("i4", attrs["centre"]),
            scalar("i4", attrs["x_zero_point"]), scalar("i4", attrs["extra"]), scalar("i8", attrs["noise"]),
            scalar("i4", attrs["shift"]), scalar("i4", attrs["lo"]), scalar("i4", attrs["hi"]),
        ],
        width=32,
    )  # fmt: skip


def _select(
    plan: Plan, x: Placement, values: Placement | None, indices: Placement | None, axis: int, k: int, largest: bool,
    last: bool,
) -> None:  # fmt: skip
    rows = _without(x, axis)

    def line(p: Placement | None) -> tuple[Array, Array]:
        if p is None:
            return record(rows.view().dtype), scalar("i8", 0)
        return _without(p, axis).view(), scalar("i8", p.strides[axis])

    def build() -> list[Array]:
        (v, v_step), (i, i_step) = line(values), line(indices)
        return [
            rows.view(), v, i, scalar("i4", x.shape[axis]), scalar("i4", k), scalar("i8", x.strides[axis]), v_step,
            i_step, scalar("i4", largest), scalar("i4", last),
        ]  # fmt: skip

    plan.elements("top_k", rows.shape, build)


def _arg(plan: Plan, group: Group, largest: bool) -> None:
    node = group.head
    x, y = plan.at(node.input(0)), plan.define(node.output)
    axis = node.attrs["axis"] % len(x.shape)
    if not node.attrs["keepdims"]:  # give the output its axis back
        shape, strides = list(y.shape), list(y.strides)
        shape.insert(axis, 1)
        strides.insert(axis, 1)
        y = Placement(y.storage, y.dtype, tuple(shape), tuple(strides), y.offset)
    _select(plan, x, None, y, axis, 1, largest, bool(node.attrs["select_last_index"]))


def arg_max(plan: Plan, group: Group) -> None:
    _arg(plan, group, True)


def arg_min(plan: Plan, group: Group) -> None:
    _arg(plan, group, False)


def top_k(plan: Plan, group: Group) -> None:
    node = group.head
    x = plan.at(node.input(0))
    outs = [plan.define(v) for v in node.outputs]
    axis = node.attrs["axis"] % len(x.shape)
    indices = outs[1] if len(outs) > 1 else None
    _select(plan, x, outs[0], indices, axis, outs[0].shape[axis], bool(node.attrs["largest"]), False)


OPERATORS = {
    "qir.SumPool": sum_pool,
    "qir.ReduceSum": reduce_sum,
    "qir.Softmax": softmax,
    "qir.Normalize": normalize,
    "MaxPool": max_pool,
    **dict.fromkeys(REDUCTIONS, reduce_standard),
    "ArgMax": arg_max,
    "ArgMin": arg_min,
    "TopK": top_k,
}
