"""Elementwise operators: one launch each, by chunks of 16 channels where the operands lie so, else strided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qir.graph import Node, Value
from qir.ops.addition import addition_constant
from qir.ops.requantize import params_of
from qir.ops.table import first_entry
from qir.types import Array, DType, QuantParams

from ..arguments import GRID, KINDS, RANK, record, scalar
from ..instances import kernel
from ..planner.fusion import Group
from ..planner.placement import SMALL, Placement
from ..planner.plan import Plan
from .chunks import chunked
from .epilogue import constants


def _grid(attrs: Mapping[str, Any]) -> Array:
    return record(GRID, zero_point=attrs["zero_point"], lo=attrs["lo"], hi=attrs["hi"])


def requantize(plan: Plan, group: Group) -> None:
    """qir.Requantize that stands alone."""
    rescale(plan, group.head, plan.at(group.head.input(0)), plan.define(group.head.output))


def rescale(plan: Plan, node: Node, x: Placement, y: Placement) -> None:
    """A qir.Requantize from x to y."""
    if _requantize_chunks(plan, node, x, y):
        return
    multiplier, shift = plan.at(node.input(1)), plan.at(node.input(2))
    plan.elements(
        "requantize_elements", y.shape,
        lambda: [
            x.view(y.shape), multiplier.view(y.shape), shift.view(y.shape), y.view(),
            scalar("i4", node.attrs["x_zero_point"]), _grid(node.attrs),
        ],
    )  # fmt: skip


def _requantize_chunks(plan: Plan, node: Node, x: Placement, y: Placement) -> bool:
    """Whether x, y and the multipliers (one, or one a channel) suit the chunked kernel, which is launched if so."""
    rank = len(y.shape)
    pair = [node.input(i) for i in (1, 2)]
    if any(v.data is None for v in pair):
        return False
    shapes = [(1,) * (rank - v.array().ndim) + v.array().shape for v in pair]
    several = max(int(np.prod(s)) for s in shapes) > 1
    apart = any(d != 1 for s in shapes for i, d in enumerate(s) if i != 1)
    found = None if apart else chunked(y, x)
    if found is None or (several and found.channels != y.shape[1]):
        return False
    multiplier, shift = (constants(plan, v.array(), y.shape[1] if several else 1) for v in pair)
    found.launch(
        plan, "requantize_chunks",
        lambda: [
            found.rows(1), found.rows(0), scalar("u8", multiplier.pointer), scalar("u8", shift.pointer),
            scalar("i4", several), scalar("i4", node.attrs["x_zero_point"]), _grid(node.attrs),
        ],
    )  # fmt: skip
    return True


def add(plan: Plan, group: Group) -> None:
    """qir.Add that stands alone."""
    node, a = group.head, group.head.attrs
    left, right, y = plan.at(node.input(0)), plan.at(node.input(1)), plan.define(node.output)
    m_a, m_b, shift = a["a_multiplier"], a["b_multiplier"], a["shift"]
    constant = addition_constant(a)
    found = chunked(y, left, right)
    if found is not None:
        found.launch(
            plan, "add_chunks",
            lambda: [
                found.rows(1), found.rows(2), found.rows(0), scalar("i4", m_a), scalar("i4", m_b),
                scalar("i8", constant), scalar("i4", shift), _grid(a),
            ],
        )  # fmt: skip
        return
    plan.elements(
        "add_elements", y.shape,
        lambda: [
            left.view(y.shape), right.view(y.shape), y.view(), scalar("i4", m_a), scalar("i4", m_b),
            scalar("i8", constant), scalar("i4", shift), _grid(a),
        ],
    )  # fmt: skip


def multiply(plan: Plan, group: Group) -> None:
    """qir.Mul."""
    node, a = group.head, group.head.attrs
    left, right, y = plan.at(node.input(0)), plan.at(node.input(1)), plan.define(node.output)

    def numbers() -> list[Array]:
        return [*(scalar("i4", a[k]) for k in ("a_zero_point", "b_zero_point", "multiplier", "shift")), _grid(a)]

    found = chunked(y, left, right)
    if found is not None:
        found.launch(plan, "multiply_chunks", lambda: [found.rows(1), found.rows(2), found.rows(0), *numbers()])
        return
    plan.elements("multiply_elements", y.shape, lambda: [left.view(y.shape), right.view(y.shape), y.view(), *numbers()])


def divide(plan: Plan, group: Group) -> None:
    """qir.Div."""
    node, at = group.head, group.head.attrs
    a, b, y = plan.at(node.input(0)), plan.at(node.input(1)), plan.define(node.output)
    table = plan.at(node.input(2))
    names = ("a_zero_point", "b_zero_point", "least", "bits", "multiplier", "shift")
    plan.elements(
        "divide_elements", y.shape,
        lambda: [
            a.view(y.shape), b.view(y.shape), y.view(), scalar("u8", table.pointer),
            *(scalar("i4", at[k]) for k in names), _grid(at),
        ],
    )  # fmt: skip


def _extremum(plan: Plan, group: Group, largest: int) -> None:
    node = group.head
    left, right, y = plan.at(node.input(0)), plan.at(node.input(1)), plan.define(node.output)
    plan.elements(
        "extremum_elements", y.shape,
        lambda: [left.view(y.shape), right.view(y.shape), y.view(), scalar("i4", largest)],
    )  # fmt: skip


def maximum(plan: Plan, group: Group) -> None:
    """qir.Max."""
    _extremum(plan, group, 1)


def minimum(plan: Plan, group: Group) -> None:
    """qir.Min."""
    _extremum(plan, group, 0)


def table(plan: Plan, group: Group) -> None:
    """qir.Table that stands alone; one table, or one a channel."""
    node = group.head
    x, y = plan.at(node.input(0)), plan.define(node.output)
    t, low = _every_byte(plan, node)
    shape, strides = [1] * len(y.shape), [0] * len(y.shape)
    axis = node.attrs["axis"]
    found = chunked(y, x)
    if found is not None and (axis is None or (axis == 1 and found.channels == y.shape[1] == t.shape[0])):
        step, kind, count = (0, t.dtype, 1) if axis is None else (t.strides[0], t.dtype, t.shape[0])
        found.launch(
            plan, "table_chunks",
            lambda: [
                found.rows(1), found.rows(0), scalar("u8", t.pointer), scalar("i4", KINDS[kind.name]),
                scalar("i4", step), scalar("i4", count), scalar("i4", low),
                scalar("i4", t.shape[-1]),
            ],
        )  # fmt: skip
        return
    if axis is not None:
        shape[axis], strides[axis] = t.shape[0], t.strides[0]
    rows = Placement(t.storage, t.dtype, tuple(shape), tuple(strides))
    plan.elements(
        "table_elements", y.shape,
        lambda: [x.view(), rows.view(y.shape), y.view(), scalar("i4", low)],
    )  # fmt: skip


def _every_byte(plan: Plan, node: Node) -> tuple[Placement, int]:
    """The tables with an entry for every byte, and the byte of the first: channels past the last one hold anything,
    which must not lead out of a table for 4 bits."""
    kind, data = node.input(0).dtype, node.input(1).array()
    if kind.bits >= 8:
        return plan.at(node.input(1)), first_entry(node)
    low, high = (-128, 127) if kind.is_signed else (0, 255)
    ends = [(0, 0)] * (data.ndim - 1) + [(kind.lo - low, high - kind.hi)]
    return plan.packed.constant(np.pad(data, ends, mode="edge"), (id(data), "every byte"), data), low


def _limit(value: Value | None, default: int) -> int:
    return default if value is None else int(np.ravel(value.array())[0])


def clip(plan: Plan, group: Group) -> None:
    """Clip on integers."""
    node = group.head
    x, y = plan.at(node.input(0)), plan.define(node.output)
    kind = node.output.dtype
    lo, hi = _limit(node.optional(1), kind.lo), _limit(node.optional(2), kind.hi)
    _clip(plan, x, y, lo, hi)


def _clip(plan: Plan, x: Placement, y: Placement, lo: int, hi: int) -> None:
    found = chunked(y, x)
    if found is not None:
        found.launch(plan, "clip_chunks", lambda: [found.rows(1), found.rows(0), scalar("i4", lo), scalar("i4", hi)])
        return
    plan.elements("clip_elements", y.shape, lambda: [x.view(), y.view(), scalar("i8", lo), scalar("i8", hi)])


def relu(plan: Plan, group: Group) -> None:
    """Relu on plain integers."""
    node = group.head
    _clip(plan, plan.at(node.input(0)), plan.define(node.output), 0, node.output.dtype.hi)


def quantize(plan: Plan, group: Group) -> None:
    """The border's QuantizeLinear, per tensor or per channel."""
    node = group.head
    q = params_of(node)
    x, y = plan.at(node.input(0)), plan.define(node.output)
    grid = record(GRID, zero_point=q.zero_point[0], lo=q.dtype.lo, hi=q.dtype.hi)
    pixels = int(np.prod(x.shape[2:]))
    if (
        q.axis is None
        and q.dtype in (DType.INT8, DType.UINT8)
        and x.contiguous
        and len(x.shape) == 4
        and y.storage.spare_channels
        and y.strides[-1] == SMALL
        and y.offset == 0
        and 2.0**-60 <= q.scale[0] <= 2.0**60
    ):
        count = x.shape[0] * (pixels if pixels % 4 else pixels // 4)
        step = np.float32(q.scale[0])
        plan.launch(
            kernel(f"quantize_pixels<{str(q.dtype.is_signed).lower()}>"), (min(-(-count // 256), 65535),),
            lambda: [
                scalar("u8", x.pointer), scalar("u8", y.pointer), scalar("i8", x.shape[0]), scalar("i4", pixels),
                scalar("i4", x.shape[1]), *(scalar("f4", float(v)) for v in (step, np.float32(1) / step, 65536 * step)),
                scalar("i4", q.zero_point[0]),
            ],
        )  # fmt: skip
        return
    scale = _channel_scales(plan, node, q, len(y.shape))
    plan.elements("quantize_elements", y.shape, lambda: [x.view(), scale.view(y.shape), y.view(), grid])


def _channel_scales(plan: Plan, node: Node, q: QuantParams, rank: int) -> Placement:
    """The scale of a border operator, of as many axes as its tensor."""
    shape = [1] * rank
    if q.axis is not None:
        shape[q.axis] = len(q.scale)
    return plan.at(node.input(1)).reshaped(shape)


def dequantize(plan: Plan, group: Group) -> None:
    """The border's DequantizeLinear, per tensor or per channel."""
    node = group.head
    q = params_of(node)
    x, y = plan.at(node.input(0)), plan.define(node.output)
    scale = _channel_scales(plan, node, q, len(y.shape))
    plan.elements(
        "dequantize_elements", y.shape,
        lambda: [x.view(), scale.view(y.shape), y.view(), scalar("i8", q.zero_point[0])],
    )  # fmt: skip


def interpolate(plan: Plan, group: Group) -> None:
    """qir.Interpolate along one axis."""
    node = group.head
    x, y = plan.at(node.input(0)), plan.define(node.output)
    axis = node.attrs["axis"] % len(y.shape)
    line = [1] * len(y.shape)
    line[axis] = y.shape[axis]
    vectors = [plan.at(node.input(i)).reshaped(line) for i in range(1, 5)]
    # x is read at positions of its own on `axis`: its view keeps that stride although the sizes differ
    stretched = Placement(x.storage, x.dtype, y.shape, x.strides, x.offset)
    plan.elements(
        "interpolate_elements", y.shape,
        lambda: [
            stretched.view(), y.view(), *(v.view(y.shape) for v in vectors), scalar("i4", RANK - len(y.shape) + axis),
        ],
    )  # fmt: skip


OPERATORS = {
    "qir.Requantize": requantize,
    "qir.Add": add,
    "qir.Mul": multiply,
    "qir.Div": divide,
    "qir.Max": maximum,
    "qir.Min": minimum,
    "qir.Table": table,
    "qir.Interpolate": interpolate,
    "Clip": clip,
    "Relu": relu,
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
}
