"""The epilogue that convolutions and products share: requantization, residual addition, table, where results go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qir.dyadic import rounding
from qir.errors import BackendError
from qir.graph import Node, Value
from qir.ops.addition import addition_constant
from qir.types import Array, DType

from ..arguments import EPILOGUE, record
from ..planner.fusion import Group
from ..planner.placement import CHUNK, Placement, pixel_of_image, pixel_of_rows
from ..planner.plan import Plan
from ..program import Program
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


_RESIDUALS = {
    DType.INT8: Program.RESIDUAL_S8, DType.UINT8: Program.RESIDUAL_U8, DType.INT16: Program.RESIDUAL_S16,
    DType.UINT16: Program.RESIDUAL_U16,
}  # fmt: skip

Range = tuple[int, int]
"""Least and largest value."""

INT32: Range = (-(1 << 31), (1 << 31) - 1)


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
    node = group.head
    pixel = pixel_of_image if image else pixel_of_rows
    out = plan.define(group.output, image)
    fields: dict[str, Any] = {}
    held: dict[str, Placement] = {}
    channels = out.shape[1] if image else out.shape[-1]
    bias = node.optional(2)
    if bias is not None:
        held["bias"] = constants(plan, bias.array())
    program, known = Program(0), True
    value = INT32  # where the value so far lies
    if group.requantize is not None:
        if sums is not None and bias is not None:
            sums = (sums[0] + np.ravel(bias.array()), sums[1] + np.ravel(bias.array()))
        scale = _scale(plan, group.requantize, channels, sums)
        program |= scale.program
        held.update(scale.held)
        fields.update(scale.fields)
        value = scale.values
        x_dtype = group.requantize.output.dtype
    else:
        x_dtype = DType.INT32
    residual = group.residual
    last = group.table is None and group.second is None  # whether nothing needs the value but the store
    out_range, stored = (group.output.dtype.lo, group.output.dtype.hi), _saturation(group.output.dtype)
    if group.requantize is not None:
        free = stored if last and residual is None else None
        value, clamps = _clamps(value, (fields["lo"], fields["hi"]), free)
        program |= (Program.SCALE_LO if clamps[0] else 0) | (Program.SCALE_HI if clamps[1] else 0)
    if group.add is not None and residual is not None:
        held["residual"] = _like_output(plan, plan.at(residual), image)
        addition, narrow_sum = _addition(group, residual)
        fields.update(addition)
        x_dtype = group.add.output.dtype
        fields["residual_stride"], fields["residual_offset"] = pixel(held["residual"])
        in_words = _in_words(held["residual"], fields["residual_stride"]) and fields["residual_bits"] <= 16
        known &= in_words and residual.dtype in _RESIDUALS and addition["add_zero"] == 0
        program |= _RESIDUALS.get(residual.dtype, Program(0))
        if not narrow_sum:
            program |= Program.SUM_WIDE
        ends = [v * addition["a_multiplier"] for v in value]
        more = [r * addition["b_multiplier"] for r in (residual.dtype.lo, residual.dtype.hi)]
        shift, constant = addition["add_shift"], addition["add_constant"]
        value = ((min(ends) + min(more) + constant) >> shift, (max(ends) + max(more) + constant) >> shift)
        value, clamps = _clamps(value, (addition["add_lo"], addition["add_hi"]), stored if last else None)
        program |= (Program.SUM_LO if clamps[0] else 0) | (Program.SUM_HI if clamps[1] else 0)
    table = _table(group, x_dtype)
    if table is not None and group.table is not None:
        held["table"] = plan.packed.constant(table, (id(group.table.input(1).array()), "low byte"))
        program |= Program.TABLE
        value = out_range
    fields["output_stride"], fields["output_offset"] = pixel(out)
    fields["store"] = STORES[out.dtype.itemsize]
    program |= {1: Program.OUT_8, 2: Program.OUT_16}.get(out.dtype.itemsize, Program(0))
    if group.output.dtype.is_signed:
        program |= Program.OUT_SIGNED
    whole = channels % CHUNK == 0 or (out.storage.spare_channels and fields["output_stride"] % CHUNK == 0)
    words = whole and _in_words(out, fields["output_stride"])
    if group.second is not None:
        held["second"] = more_out = plan.define(group.second.output, image)
        second = _second(group.second, value)
        fields.update(second.fields)
        program |= second.program
        known &= second.known
        fields["second_stride"], fields["second_offset"] = pixel(more_out)
        whole = channels % CHUNK == 0 or (more_out.storage.spare_channels and fields["second_stride"] % CHUNK == 0)
        words &= whole and _in_words(more_out, fields["second_stride"])
    if residual is None and group.second is None and program & Program.OUT_8:
        program |= Program.NARROW
    program = program | Program.WORDS if known and words else Program(0)
    fields["program"] = int(program)

    def build() -> Array:
        pointers = {name: p.storage.pointer for name, p in held.items()}
        return record(EPILOGUE, output=out.storage.pointer, **pointers, **fields)

    return Epilogue(build, program)


def _saturation(dtype: DType) -> Range | None:
    """What storing a value as a dtype clamps to by itself; four bits lie in a byte each."""
    if dtype.numpy.itemsize == 1:
        return (-128, 127) if dtype.is_signed else (0, 255)
    return (dtype.lo, dtype.hi) if dtype == DType.INT16 else None


def _clamps(value: Range, limits: Range, free: Range | None) -> tuple[Range, tuple[bool, bool]]:
    """(the range after a clamp to `limits`, whether it is to be done from below and above).

    free: what a saturating store clamps to by itself.
    """
    low = value[0] < limits[0] and not (free is not None and limits[0] <= free[0])
    high = value[1] > limits[1] and not (free is not None and limits[1] >= free[1])
    return (min(max(value[0], limits[0]), limits[1]), max(min(value[1], limits[1]), limits[0])), (low, high)


@dataclass(frozen=True)
class _Step:
    """A part of an epilogue: its flags, constants on the device, fields; where its values lie before the clamp."""

    program: Program
    fields: dict[str, Any]
    held: dict[str, Placement] = field(default_factory=dict[str, Placement])
    values: Range = INT32
    known: bool = True


def _scale(plan: Plan, node: Node, channels: int, sums: tuple[Array, Array] | None) -> _Step:
    """The requantization of the sums: constants of every channel, and how far 32 bits will do.

    A multiplier below 2^30 and a shift below 33 are doubled and raised by one, which changes no bit: from 33 on the
    high word of the product is enough.
    """
    sources = [node.input(i).array() for i in (1, 2)]
    zero = int(node.attrs["zero_point"])
    m, s = (np.broadcast_to(np.ravel(x).astype(np.int64), channels).copy() for x in sources)
    while np.any(more := (s < HIGH_SHIFT) & (np.abs(m) < 1 << 30)):
        m[more] *= 2
        s[more] += 1
    least, most = (np.broadcast_to(np.asarray(x, np.int64), channels) for x in sums or INT32)
    least, most = np.maximum(least, INT32[0]), np.minimum(most, INT32[1])
    half = rounding(s)
    ends = np.stack([(x * m + half) >> s for x in (least, most)])
    values = (int(ends.min()) + zero, int(ends.max()) + zero)
    program = Program(0)
    if s.min() >= HIGH_SHIFT:
        program |= Program.SCALE_HIGH
        constant = rounding(s - 32)
        folded = constant + np.array([zero << int(v) for v in s - 32], object)
        limit = (1 << 31) - (1 << 30) - 1
        kind: Any = np.int32
    else:
        bounds = (values[0], values[1], values[0] - zero, values[1] - zero)
        fits = min(bounds) >= INT32[0] and max(bounds) <= INT32[1]
        program |= Program.SCALE_FITS if fits else Program.SCALE_WIDE
        constant = half
        folded = constant + np.array([zero << int(v) for v in s], object)
        limit = (1 << 62) - 1
        kind = np.int64
    if all(abs(int(v)) <= limit for v in folded):
        constant = folded
    else:
        program |= Program.ZERO_LATER
    fields = {"zero_point": zero, "lo": node.attrs["lo"], "hi": node.attrs["hi"]}
    key = (id(sources[0]), id(sources[1]), channels, zero)
    padded = -(-channels // CHUNK) * CHUNK
    held: dict[str, Placement] = {}
    for name, data, dtype, fill in (
        ("multiplier", m, np.int32, 0), ("shift", s, np.int32, HIGH_SHIFT), ("rounding", constant, kind, 0),
    ):  # fmt: skip
        whole = np.full(padded, fill, dtype)
        whole[:channels] = data.astype(dtype)
        held[name] = plan.packed.constant(whole, (*key, name, whole.dtype.str), (sources, node))
    return _Step(program, fields, held, values)


def _second(node: Node, value: Range) -> _Step:
    """The qir.Requantize that yields the group's second result, of a first that lies in `value`."""
    multiplier, shift = (int(np.ravel(node.input(i).array())[0]) for i in (1, 2))
    x_zero, zero = node.attrs["x_zero_point"], node.attrs["zero_point"]
    constant = rounding(shift) - x_zero * multiplier + (zero << shift)
    ends = sorted(v * multiplier + constant for v in value)
    values = (ends[0] >> shift, ends[1] >> shift)
    limits = (node.attrs["lo"], node.attrs["hi"])
    dtype = node.output.dtype
    _, clamps = _clamps(values, limits, _saturation(dtype))
    fits = abs(constant) < 1 << 62 and max(abs(v) for v in ends) < 1 << 62
    fits &= INT32[0] <= values[0] and values[1] <= INT32[1] and dtype.numpy.itemsize == 1
    fields = {
        "second_multiplier": multiplier, "second_shift": shift,
        "second_x_zero": x_zero, "second_zero": zero, "second_lo": limits[0], "second_hi": limits[1],
        "second_constant": constant if fits else 0,
    }  # fmt: skip
    program = Program.SECOND | (Program.SECOND_SIGNED if dtype.is_signed else 0)
    program |= (Program.SECOND_LO if clamps[0] else 0) | (Program.SECOND_HI if clamps[1] else 0)
    return _Step(program, fields, known=fits)


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


def _addition(group: Group, residual: Value) -> tuple[dict[str, Any], bool]:
    """Fields of the fused qir.Add, its first operand being the convolution's value; whether 32 bits hold it shifted."""
    assert group.add is not None and group.requantize is not None
    a = group.add.attrs
    mine, other = ("a", "b") if group.add.input(0) is group.requantize.output else ("b", "a")
    m, r, shift = a[f"{mine}_multiplier"], a[f"{other}_multiplier"], a["shift"]
    constant = addition_constant(a)
    largest = [max(-v.dtype.lo, v.dtype.hi) for v in (group.requantize.output, residual)]
    sum_bound = largest[0] * abs(m) + largest[1] * abs(r) + abs(constant)
    narrow = (sum_bound >> shift) + 1 + abs(a["zero_point"]) < 1 << 31 and sum_bound < 1 << 63
    zero = a["zero_point"]
    if sum_bound + (abs(zero) << shift) < 1 << 62:  # the zero point as part of the constant
        constant, zero = constant + (zero << shift), 0
    fields = {
        "residual_bits": residual.dtype.numpy.itemsize * 8, "residual_signed": int(residual.dtype.is_signed),
        "add_constant": constant, "a_multiplier": m, "b_multiplier": r, "add_shift": shift,
        "add_zero": zero, "add_lo": a["lo"], "add_hi": a["hi"],
    }  # fmt: skip
    return fields, narrow
