"""The epilogue that convolutions and products share: requantization, residual addition, table, where results go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qir.errors import BackendError
from qir.graph import Node
from qir.types import Array, DType

from ...compile.micro_operations import (
    HIGH_WORD,
    AddTensor,
    Lookup,
    MicroOperation,
    Range,
    Rescale,
    largest,
)
from ..arguments import EPILOGUE, record
from ..planner.fusion import Group
from ..planner.placement import CHUNK, Placement, pixel_of_image, pixel_of_rows
from ..planner.plan import Plan
from ..program import Program
from .moving import copy

STORES = {4: 0, 1: 1, 2: 2}
"""Bytes of an output element -> enum Store of epilogue.cuh."""


HIGH_SHIFT = HIGH_WORD + 1
"""From this shift on a requantization needs the high word of the product only (dyadic.cuh)."""

SUM, RESIDUAL, SECOND = range(3)
"""Registers of an epilogue."""


_RESIDUALS = {
    DType.INT8: Program.RESIDUAL_S8, DType.UINT8: Program.RESIDUAL_U8, DType.INT16: Program.RESIDUAL_S16,
    DType.UINT16: Program.RESIDUAL_U16,
}  # fmt: skip

INT32: Range = (-(1 << 31), (1 << 31) - 1)


def operations(group: Group, channels: int) -> list[MicroOperation]:
    """What is done to a group's sums, bias included, between loads and stores, which are the kernel's own."""
    result: list[MicroOperation] = []
    if group.requantize is not None:
        result.append(_rescale(group.requantize, SUM, channels))
    residual = group.residual
    if group.add is not None and group.requantize is not None and residual is not None:
        value, first = group.requantize.output, group.add.input(0) is group.requantize.output
        registers, operands = ((SUM, RESIDUAL), (value, residual)) if first else ((RESIDUAL, SUM), (residual, value))
        limits = largest(operands[0].dtype), largest(operands[1].dtype)
        add = AddTensor.of(group.add.attrs, SUM, *registers, limits)
        result.append(add if first else add.swapped())
    if group.table is not None:
        result.append(Lookup(SUM, SUM, group.table.input(1).array(), group.table.input(0).dtype.lo))
    if group.second is not None:
        result.append(_rescale(group.second, SECOND, 1))
    return result


def _rescale(node: Node, target: int, channels: int) -> Rescale:
    """A qir.Requantize by one pair a channel."""
    m, s = (np.broadcast_to(np.ravel(node.input(i).array()).astype(np.int64), (1, channels)) for i in (1, 2))
    return Rescale.of(node.attrs, target, SUM, m, s, 1 << 31)


@dataclass(frozen=True)
class Epilogue:
    """Builds struct Epilogue once addresses are known. program: what a kernel may be compiled for."""

    build: Callable[[], Array]
    program: Program

    def __call__(self) -> Array:
        return self.build()


def epilogue(plan: Plan, group: Group, image: bool, sums: tuple[Array, Array] | None = None) -> Epilogue:
    """What is done to a group's sums; the output is an image, or rows of a matrix.

    sums: least and largest sum of each channel without bias, int64, where known: they rule clamps out.
    """
    pixel = pixel_of_image if image else pixel_of_rows
    out = plan.define(group.output, image)
    fields: dict[str, Any] = {}
    held: dict[str, Placement] = {}
    channels = out.shape[1] if image else out.shape[-1]
    bias, residual = group.head.optional(2), group.residual
    if bias is not None:
        held["bias"] = constants(plan, bias.array())
        sums = None if sums is None else (sums[0] + np.ravel(bias.array()), sums[1] + np.ravel(bias.array()))
    program, known = Program(0), True
    value, stored = INT32, _saturation(group.output.dtype)  # where the value so far lies, where storing leaves it
    parts = operations(group, channels)
    final = parts[-1] if parts else None  # before it something else needs the value than a store that saturates
    places = [(out, "output")]
    for operation in parts:
        if isinstance(operation, Rescale) and operation.target == SECOND and group.second is not None:
            held["second"] = plan.define(group.second.output, image)
            places.append((held["second"], "second"))
            part = _second(operation, value, group.second)
        elif isinstance(operation, Rescale):
            part = _scale(plan, operation, group, sums)
            value, flags = _clamps(part.values, operation, stored if operation is final else None)
            program |= (Program.SCALE_LO if flags[0] else 0) | (Program.SCALE_HI if flags[1] else 0)
        elif isinstance(operation, AddTensor) and residual is not None:
            held["residual"] = _like_output(plan, plan.at(residual), image)
            part = _addition(operation, value, residual.dtype)
            fields["residual_stride"], fields["residual_offset"] = pixel(held["residual"])
            known &= _in_words(held["residual"], fields["residual_stride"])
            value, flags = _clamps(part.values, operation, stored if operation is final else None)
            program |= (Program.SUM_LO if flags[0] else 0) | (Program.SUM_HI if flags[1] else 0)
        else:
            assert isinstance(operation, Lookup) and group.table is not None
            source = group.table.input(1).array()
            held["table"] = plan.packed.constant(_by_low_byte(operation), (id(source), "low byte"), source)
            part = _Part(Program.TABLE, {})
            value = (group.output.dtype.lo, group.output.dtype.hi)
        program |= part.program
        held.update(part.held)
        fields.update(part.fields)
        known &= part.known
    fields["store"] = STORES[out.dtype.itemsize]
    program |= {1: Program.OUT_8, 2: Program.OUT_16}.get(out.dtype.itemsize, Program(0))
    if group.output.dtype.is_signed:
        program |= Program.OUT_SIGNED
    for place, name in places:
        stride, offset = pixel(place)
        fields[f"{name}_stride"], fields[f"{name}_offset"] = stride, offset
        whole = channels % CHUNK == 0 or (place.storage.spare_channels and stride % CHUNK == 0)
        known &= whole and _in_words(place, stride)
    if residual is None and group.second is None and program & Program.OUT_8:
        program |= Program.NARROW
    program = program | Program.WORDS if known else Program(0)
    fields["program"] = int(program)

    def build() -> Array:
        pointers = {name: p.storage.pointer for name, p in held.items()}
        return record(EPILOGUE, output=out.storage.pointer, **pointers, **fields)

    return Epilogue(build, program)


def _by_low_byte(lookup: Lookup) -> Array:
    """The table, indexed by the low byte of what is looked up."""
    low = np.arange(256)
    return lookup.table[np.where(low < 128, low, low - 256) - lookup.least] if lookup.least else lookup.table[low]


def _saturation(dtype: DType) -> Range | None:
    """What storing a value as a dtype clamps to by itself; four bits lie in a byte each."""
    if dtype.numpy.itemsize == 1:
        return (-128, 127) if dtype.is_signed else (0, 255)
    return (dtype.lo, dtype.hi) if dtype == DType.INT16 else None


def _clamps(value: Range, operation: Rescale | AddTensor, free: Range | None) -> tuple[Range, tuple[bool, bool]]:
    """(the range of a value after an operation's clamp, whether it is to be done from below and above).

    free: what a saturating store clamps to by itself.
    """
    lo, hi = operation.lo, operation.hi
    low = value[0] < lo and not (free is not None and lo <= free[0])
    high = value[1] > hi and not (free is not None and hi >= free[1])
    return (min(max(value[0], lo), hi), max(min(value[1], hi), lo)), (low, high)


@dataclass(frozen=True)
class _Part:
    """One operation: its flags, fields, constants on the device; where its values lie before the clamp.

    known: whether kernels compiled for a program can do it.
    """

    program: Program
    fields: dict[str, Any]
    held: dict[str, Placement] = field(default_factory=dict[str, Placement])
    values: Range = INT32
    known: bool = True


def _scale(plan: Plan, operation: Rescale, group: Group, sums: tuple[Array, Array] | None) -> _Part:
    """The requantization of the sums: constants of every channel, and how far 32 bits will do."""
    assert group.requantize is not None
    scale, zero = operation.raised(HIGH_SHIFT), operation.zero_point
    m, s, channels = scale.multiplier[0], scale.shift[0], scale.shift.size
    least, most = (np.broadcast_to(np.asarray(x, np.int64), channels) for x in sums or INT32)
    values = scale.values(np.maximum(least, INT32[0]), np.minimum(most, INT32[1]))
    program = Program(0)
    if s.min() >= HIGH_SHIFT:
        program |= Program.SCALE_HIGH
        constant, shift, limit, kind = (
            scale.constant[0] >> HIGH_WORD,
            s - HIGH_WORD,
            (1 << 31) - (1 << 30) - 1,
            np.int32,
        )
    else:
        bounds = (*values, values[0] - zero, values[1] - zero)
        fits = min(bounds) >= INT32[0] and max(bounds) <= INT32[1]
        program |= Program.SCALE_FITS if fits else Program.SCALE_WIDE
        constant, shift, kind = scale.constant[0], s, np.int64
        limit = (1 << 62) - 1
    folded = constant + np.array([zero << int(v) for v in shift], object)
    if all(abs(int(v)) <= limit for v in folded):
        constant = folded
    else:
        program |= Program.ZERO_LATER
    sources = [group.requantize.input(i).array() for i in (1, 2)]
    key = (id(sources[0]), id(sources[1]), channels, zero)
    padded = -(-channels // CHUNK) * CHUNK
    held: dict[str, Placement] = {}
    for name, data, dtype, fill in (
        ("multiplier", m, np.int32, 0), ("shift", s, np.int32, HIGH_SHIFT), ("rounding", constant, kind, 0),
    ):  # fmt: skip
        whole = np.full(padded, fill, dtype)
        whole[:channels] = data.astype(dtype)
        held[name] = plan.packed.constant(whole, (*key, name, whole.dtype.str), (sources, group.requantize))
    return _Part(program, {"zero_point": zero, "lo": scale.lo, "hi": scale.hi}, held, values)


def _addition(operation: AddTensor, value: Range, residual: DType) -> _Part:
    """The sum of the value and a residual."""
    add = operation.folded()
    fields = {
        "residual_bits": residual.numpy.itemsize * 8, "residual_signed": int(residual.is_signed),
        "add_constant": add.constant, "a_multiplier": add.a_multiplier, "b_multiplier": add.b_multiplier,
        "add_shift": add.shift, "add_zero": add.zero_point, "add_lo": add.lo, "add_hi": add.hi,
    }  # fmt: skip
    program = _RESIDUALS.get(residual, Program(0)) | (Program(0) if operation.narrow else Program.SUM_WIDE)
    known = residual in _RESIDUALS and add.zero_point == 0
    return _Part(program, fields, values=add.values(value, (residual.lo, residual.hi)), known=known)


def _second(operation: Rescale, value: Range, node: Node) -> _Part:
    """The group's second result, rescaled by one pair from a first that lies in `value`."""
    multiplier, shift, dtype = int(operation.multiplier[0, 0]), int(operation.shift[0, 0]), node.output.dtype
    constant = int(operation.constant[0, 0]) + (operation.zero_point << shift)
    ends = sorted(v * multiplier + constant for v in value)
    values = (ends[0] >> shift, ends[1] >> shift)
    _, clamps = _clamps(values, operation, _saturation(dtype))
    fits = abs(constant) < 1 << 62 and max(abs(v) for v in ends) < 1 << 62
    fits &= INT32[0] <= values[0] and values[1] <= INT32[1] and dtype.numpy.itemsize == 1
    fields = {
        "second_multiplier": multiplier, "second_shift": shift, "second_x_zero": node.attrs["x_zero_point"],
        "second_zero": operation.zero_point, "second_lo": operation.lo, "second_hi": operation.hi,
        "second_constant": constant if fits else 0,
    }  # fmt: skip
    program = Program.SECOND | (Program.SECOND_SIGNED if dtype.is_signed else 0)
    program |= (Program.SECOND_LO if clamps[0] else 0) | (Program.SECOND_HI if clamps[1] else 0)
    return _Part(program, fields, known=fits)


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
