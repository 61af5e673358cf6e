"""Which tail records one kernel of `finish` does together, and the proof that its 16-bit products are exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qir.types import Array

from ..kernels import finish as f
from ..kernels.intrinsics import KIND
from ..kernels.record import ADD, FINISH, GENERIC, I8, I16, LOAD, REQUANTIZE, STORE, U8
from .steps import Number, Ref, constant

Record = list[Number]


@dataclass(frozen=True)
class Halves:
    """m = 2^16 high + low and c = 2^16 c_high + c_low, as the kernels take them."""

    high: int
    low: int
    c_high: int
    c_low: int


def _split(m: int, c: int) -> Halves:
    high, c_high = (m + 0x8000) >> 16, (c + 0x8000) >> 16
    return Halves(high, m - (high << 16), c_high, c - (c_high << 16))


def _proved(parts: list[Halves], shift: int) -> bool:
    """Whether every factor fits int16 and no sum of int16 times them leaves int32."""
    fits = all(-0x8000 <= n <= 0x7FFF for p in parts for n in (p.high, p.low))
    low = sum(abs(p.low) for p in parts) * 0x8000 + sum(abs(p.c_low) for p in parts)
    top = sum(abs(p.high) for p in parts) * 0x8000 + sum(abs(p.c_high) for p in parts) + (low >> 16) + 1
    return fits and low < 2**31 and top < 2**31 and 16 <= shift <= 16 + 31


def _pair(a: int, b: int) -> int:
    """Two int16 as the int32 that holds them side by side."""
    return int(np.asarray([a, b], np.int16).view(np.int32)[0])


def _array(number: Number) -> Array:
    assert isinstance(number, Ref) and number.buffer.data is not None
    return number.buffer.data


def _int(number: Number) -> int:
    assert isinstance(number, int)
    return number


@dataclass
class _Match:
    """Records matched so far: `register` holds the last result, `at` is the next record."""

    parameters: list[int]
    register: Number
    at: int
    other: list[Number]
    wide: list[Number]


def finished(
    records: list[Record], start: int, columns: int, read: Callable[[list[Record], int, Number], bool]
) -> tuple[Record, int] | None:
    """(one FINISH record, how many records it stands for) where the records from `start` are such an end.

    read(records, index, register): whether a register is read from a record on.
    """
    first = records[start]
    if KIND == "generic" or columns % f.COLUMNS_EACH or first[0] != REQUANTIZE or first[9] == GENERIC or first[14]:
        return None
    if not _room(first):
        return None
    nothing: list[Number] = [0, 0]
    match = _Match([0] * f.PARAMETERS, first[1], start + 1, nothing, nothing)
    if _stores_byte(records, match, read):
        stored = records[match.at]
        offset = _byte_limits(match.parameters, first[7], first[8], stored)
        return _record(first, offset, f.TO_BYTES, match, stored[3:5]), 2
    lo, hi = _int(first[7]), _int(first[8])
    if lo < -0x8000 or hi > 0x7FFF:
        return None
    match.parameters[f.LO], match.parameters[f.HI] = lo, hi
    add = _sum(records, match, read)
    if add is not None and _stores_byte(records, match, read):
        stored = records[match.at]
        offset = _byte_limits(match.parameters, add[9], add[10], stored)
        # bytes are clamped after packing
        if not _sum_parameters(match.parameters, [*add[:9], -0x8000, 0x7FFF], offset):
            return None
        return _record(first, 0, f.SUM_TO_BYTES, match, stored[3:5]), match.at + 1 - start
    if add is not None and not _sum_parameters(match.parameters, add, 0):
        return None
    stored: Record = records[match.at] if match.at < len(records) else [-1]
    if stored[0] == STORE and stored[2] == match.register and stored[5] == I16:
        match.wide = stored[3:5]
        match.at += 1
    if _narrows(records, match, read):
        mode = f.WIDE_TO_BYTES if add is None else f.SUM_WIDE_TO_BYTES
        return _record(first, 0, mode, match, records[match.at + 1][3:5]), match.at + 2 - start
    if match.wide[1] == 0 or read(records, match.at, match.register):
        return None
    return _record(first, 0, f.TO_WIDE if add is None else f.SUM_TO_WIDE, match, nothing), match.at - start


def _room(first: Record) -> bool:
    """Whether the zero point, less than 2^16, can be added before the shift."""
    return int(_array(first[5]).max()) + 32 < 45 and int(np.abs(_array(first[4])).max()) < 2**62 - 2**61


def _stores_byte(records: list[Record], match: _Match, read: Callable[[list[Record], int, Number], bool]) -> bool:
    """Whether the next record stores the register in 8 bits, the last to read it."""
    if match.at >= len(records):
        return False
    r = records[match.at]
    return (
        r[0] == STORE
        and r[2] == match.register
        and r[5] in (U8, I8)
        and not read(records, match.at + 1, match.register)
    )


def _byte_limits(parameters: list[int], lo: Number, hi: Number, stored: Record) -> int:
    """Sets the limits of bytes; returns what is added so that signed ones pack as unsigned ones."""
    offset = 128 if stored[5] == I8 else 0
    parameters[f.BYTE_LO], parameters[f.BYTE_HI] = _int(lo) + offset, _int(hi) + offset
    parameters[f.FLIP] = offset
    return offset


def _sum(records: list[Record], match: _Match, read: Callable[[list[Record], int, Number], bool]) -> Record | None:
    """The ADD of the register and an int16 tensor that is loaded for it alone, if that comes next."""
    if match.at + 1 >= len(records):
        return None
    loaded, add = records[match.at : match.at + 2]
    if loaded[0] != LOAD or add[0] != ADD or add[11] == GENERIC or loaded[5] != I16 or loaded[6:9] != [1, 0, 0]:
        return None
    operands, after = {add[2], add[3]}, match.at + 2
    if operands != {match.register, loaded[1]} or loaded[1] == match.register:
        return None
    if any(r != add[1] and read(records, after, r) for r in operands):
        return None
    if _int(add[9]) < -0x8000 or _int(add[10]) > 0x7FFF:
        return None
    # the kernel has the register first
    swapped = [*add[:4], add[5], add[4], *add[6:]] if add[3] == match.register else add
    match.register, match.at, match.other = add[1], after, loaded[3:5]
    return swapped


def _sum_parameters(parameters: list[int], add: Record, offset: int) -> bool:
    """Sets the numbers of a sum with `offset` on top; whether they are exact."""
    shift = _int(add[7])
    c = _int(add[6]) + ((_int(add[8]) + offset) << shift)
    a, b = _split(_int(add[4]), c), _split(_int(add[5]), 0)
    parameters[f.ADD_HIGH], parameters[f.ADD_LOW] = _pair(a.high, b.high), _pair(a.low, b.low)
    parameters[f.ADD_C_HIGH], parameters[f.ADD_C_LOW], parameters[f.ADD_SHIFT] = a.c_high, a.c_low, shift - 16
    parameters[f.ADD_LO], parameters[f.ADD_HI] = _int(add[9]), _int(add[10])
    return _proved([a, b], shift)


def _narrows(records: list[Record], match: _Match, read: Callable[[list[Record], int, Number], bool]) -> bool:
    """Whether an exact requantization with one multiplier and an 8-bit store come next; sets their numbers."""
    if match.at + 1 >= len(records):
        return False
    r, stored = records[match.at : match.at + 2]
    if r[0] != REQUANTIZE or r[2] != match.register or r[9] == GENERIC or stored[0] != STORE or stored[2] != r[1]:
        return False
    if stored[5] not in (U8, I8) or any(read(records, match.at + 2, k) for k in (r[1], r[2])):
        return False
    columns = _int(r[10])
    numbers = [_array(r[k]).reshape(-1)[:columns] for k in (3, 4, 5)]
    up = _array(r[15]).reshape(-1)[:columns] if r[14] else np.zeros(columns, np.int32)
    if any((n != n[0]).any() for n in (*numbers, up)):
        return False
    m, c, shift, raised = (int(n[0]) for n in (*numbers, up))
    shift += 32 - raised
    offset = _byte_limits(match.parameters, r[7], r[8], stored)
    parts = _split(m, (c >> raised) + ((_int(r[6]) + offset) << shift))
    if parts.c_low or not _proved([parts], shift):
        return False
    match.parameters[f.BYTE_HIGH], match.parameters[f.BYTE_LOW] = _pair(parts.high, 1), parts.low
    match.parameters[f.BYTE_C_HIGH], match.parameters[f.BYTE_SHIFT] = parts.c_high, shift - 16
    return True


def _record(first: Record, offset: int, mode: int, match: _Match, target: list[Number]) -> Record:
    """FINISH: 2 register, 3 multiplier, 4 constant, 5 shift, 6 parameters, 7 mode, 8 and 9 summand and its row stride,
    10 and 11 the same of the 16-bit target, 12 and 13 of the 8-bit target."""
    # what is added after the shift goes into the constant, whose layout the shifts are brought into
    shifts = _array(first[5]).astype(np.int64).reshape(-1, 4, 2).swapaxes(1, 2) + 32
    c = _array(first[4]) + ((_int(first[6]) + offset) << shifts)
    parameters = constant(np.asarray(match.parameters, np.int64).astype(np.int32))
    return [FINISH, 0, first[2], first[3], constant(c), first[5], parameters, mode, *match.other, *match.wide, *target]
