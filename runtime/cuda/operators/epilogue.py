"""The epilogue that convolutions and products share: requantization, residual addition, table, where results go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qir.errors import BackendError
from qir.graph import Node, Value
from qir.types import Array, DType

from ..arguments import EPILOGUE, record
from ..fusion import Group
from ..placement import CHUNK, Placement, pixel_of_image, pixel_of_rows
from ..plan import Plan
from .moving import copy

STORES = {4: 0, 1: 1, 2: 2}
"""Bytes of an output element -> enum Store of epilogue.cuh."""


HIGH_SHIFT = 33
"""From this shift on a requantization needs the high word of the product only (dyadic.cuh)."""


def _table(group: Group, x: DType) -> Array | None:
    """The fused table, indexed by the low byte of its input."""
    if group.table is None:
        return None
    data = group.table.input(1).array()
    low = np.arange(256)
    return data[np.where(low < 128, low, low - 256) - x.lo] if x.is_signed else data[low]


def epilogue(plan: Plan, group: Group, image: bool) -> Callable[[], Array]:
    """Builds struct Epilogue once addresses are known; the output is an image, or rows of a matrix."""
    node = group.head
    pixel = pixel_of_image if image else pixel_of_rows
    out = plan.define(group.output, image)
    fields: dict[str, Any] = {}
    held: dict[str, Placement] = {}
    bias = node.optional(2)
    if bias is not None:
        held["bias"] = constants(plan, bias.array())
    if group.requantize is not None:
        attrs = group.requantize.attrs
        sources = [group.requantize.input(i).array() for i in (1, 2)]
        size = max(s.size for s in sources)
        for name, source in zip(("multiplier", "shift"), sources, strict=True):
            held[name] = constants(plan, source, size)
        fields["high_shifts"] = int(sources[1].min() >= HIGH_SHIFT)
        fields.update(per_channel=int(size > 1), zero_point=attrs["zero_point"], lo=attrs["lo"], hi=attrs["hi"])
        x_dtype = group.requantize.output.dtype
    else:
        x_dtype = DType.INT32
    residual = group.residual
    if group.add is not None and residual is not None:
        held["residual"] = _like_output(plan, plan.at(residual), image)
        fields.update(_addition(group, residual))
        x_dtype = group.add.output.dtype
        fields["residual_stride"], fields["residual_offset"] = pixel(held["residual"])
        in_words = _in_words(held["residual"], fields["residual_stride"]) and fields["residual_bits"] <= 16
        fields["residual_vectors"] = int(in_words)
    table = _table(group, x_dtype)
    if table is not None and group.table is not None:
        held["table"] = plan.packed.constant(table, (id(group.table.input(1).array()), "low byte"))
    fields["output_stride"], fields["output_offset"] = pixel(out)
    fields["store"] = STORES[out.dtype.itemsize]
    channels = out.shape[1] if image else out.shape[-1]
    whole = channels % CHUNK == 0 or (out.storage.spare_channels and fields["output_stride"] % CHUNK == 0)
    fields["vectors"] = int(whole and _in_words(out, fields["output_stride"]))
    if group.second is not None:
        held["second"] = more = plan.define(group.second.output, image)
        fields.update(_second(group.second))
        fields["second_stride"], fields["second_offset"] = pixel(more)
        whole = channels % CHUNK == 0 or (more.storage.spare_channels and fields["second_stride"] % CHUNK == 0)
        fields["vectors"] &= int(whole and _in_words(more, fields["second_stride"]))

    def build() -> Array:
        pointers = {name: p.storage.pointer for name, p in held.items()}
        return record(EPILOGUE, output=out.storage.pointer, **pointers, **fields)

    return build


def _second(node: Node) -> dict[str, Any]:
    """Fields of the qir.Requantize that yields the group's second result."""
    shift = int(np.ravel(node.input(2).array())[0])
    return {
        "second_multiplier": int(np.ravel(node.input(1).array())[0]), "second_shift": shift,
        "second_high": int(shift >= HIGH_SHIFT), "second_x_zero": node.attrs["x_zero_point"],
        "second_zero": node.attrs["zero_point"], "second_lo": node.attrs["lo"], "second_hi": node.attrs["hi"],
    }  # fmt: skip


def constants(plan: Plan, data: Array, size: int = 0) -> Placement:
    """int32 constants of `size` channels (default: as many as there are), with zeros up to whole chunks."""
    flat = np.ravel(data)
    size = max(size, flat.size)
    padded = np.zeros(-(-size // CHUNK) * CHUNK, np.int32)
    padded[:size] = flat
    return plan.packed.constant(padded, (id(data), "chunks", size), data)


def _in_words(p: Placement, stride: int) -> bool:
    """Whether chunks of 16 channels begin at 16-byte words and end within their own pixel's stride."""
    return stride % CHUNK == 0 and p.offset % CHUNK == 0


def _like_output(plan: Plan, x: Placement, image: bool) -> Placement:
    """x, or a copy of it in a layout that the epilogue can read."""
    try:
        (pixel_of_image if image else pixel_of_rows)(x)
    except BackendError:
        n, c, *spatial = x.shape
        flat = plan.scratch((n, *spatial, c) if image else x.shape, x.dtype)
        rank = len(x.shape)
        moved = flat.permuted([0, rank - 1, *range(1, rank - 1)]) if image else flat
        copy(plan, x, moved)
        return moved
    return x


def _addition(group: Group, residual: Value) -> dict[str, Any]:
    """Fields of the fused qir.Add, its first operand being the convolution's value."""
    assert group.add is not None and group.requantize is not None
    a = group.add.attrs
    mine, other = ("a", "b") if group.add.input(0) is group.requantize.output else ("b", "a")
    m, r, shift = a[f"{mine}_multiplier"], a[f"{other}_multiplier"], a["shift"]
    constant = (1 << (shift - 1)) - a[f"{mine}_zero_point"] * m - a[f"{other}_zero_point"] * r
    largest = [max(-v.dtype.lo, v.dtype.hi) for v in (group.requantize.output, residual)]
    sum_bound = largest[0] * abs(m) + largest[1] * abs(r) + abs(constant)
    narrow = (sum_bound >> shift) + 1 + abs(a["zero_point"]) < 1 << 31 and sum_bound < 1 << 63
    return {
        "narrow_sum": int(narrow),
        "residual_bits": residual.dtype.numpy.itemsize * 8, "residual_signed": int(residual.dtype.is_signed),
        "add_constant": constant, "a_multiplier": m, "b_multiplier": r, "add_shift": shift,
        "add_zero": a["zero_point"], "add_lo": a["lo"], "add_hi": a["hi"],
    }  # fmt: skip
