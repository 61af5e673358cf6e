"""Which micro-operations one kernel of `finish` does together, and the proof that its 16-bit products are exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...compile.micro_operations import AddTensor, Load, MicroOperation, Rescale, Store, is_read
from ...compile.tensors import View
from ..kernels import finish as f
from ..kernels.intrinsics import KIND
from .joined import Finish


@dataclass(frozen=True)
class Halves:
    """m = 2^16 high + low and c = 2^16 c_high + c_low, as the kernels take them."""

    high: int
    low: int
    c_high: int
    c_low: int

    @classmethod
    def of(cls, m: int, c: int) -> Halves:
        high, c_high = (m + 0x8000) >> 16, (c + 0x8000) >> 16
        return cls(high, m - (high << 16), c_high, c - (c_high << 16))


def _proved(parts: list[Halves], shift: int) -> bool:
    """Whether every factor fits int16 and no sum of int16 times them leaves int32."""
    fits = all(-0x8000 <= n <= 0x7FFF for p in parts for n in (p.high, p.low))
    low = sum(abs(p.low) for p in parts) * 0x8000 + sum(abs(p.c_low) for p in parts)
    top = sum(abs(p.high) for p in parts) * 0x8000 + sum(abs(p.c_high) for p in parts) + (low >> 16) + 1
    return fits and low < 2**31 and top < 2**31 and 16 <= shift <= 16 + 31


def _pair(a: int, b: int) -> int:
    """Two int16 as the int32 that holds them side by side."""
    return int(np.asarray([a, b], np.int16).view(np.int32)[0])


def _is(view: View, *dtypes: str) -> bool:
    return view.dtype.name in dtypes


@dataclass
class _Match:
    """Operations matched so far: `register` holds the last result, `at` is the next one."""

    operations: Sequence[MicroOperation]
    register: int
    at: int
    parameters: list[int] = field(default_factory=lambda: [0] * f.PARAMETERS)

    def follows(self, ahead: int = 0) -> MicroOperation | None:
        at = self.at + ahead
        return self.operations[at] if at < len(self.operations) else None

    def needed(self, *registers: int, after: int) -> bool:
        """Whether one of the registers is read once `after` more operations are done."""
        return any(is_read(self.operations, self.at + after, r) for r in registers)


def finished(operations: Sequence[MicroOperation], start: int, columns: int) -> tuple[Finish, int] | None:
    """(one operation, how many it stands for) where the operations from `start` are such an end."""
    first = operations[start]
    if KIND == "generic" or columns % f.COLUMNS_EACH or not isinstance(first, Rescale):
        return None
    if not first.high or first.pre_shift.any() or not _room(first):
        return None
    match = _Match(operations, first.target, start + 1)

    def finish(mode: int, offset: int = 0, **targets: View | None) -> tuple[Finish, int]:
        return Finish(first, first.zero_point + offset, mode, tuple(match.parameters), **targets), match.at - start

    store = _byte_store(match)
    if store is not None:
        offset = _byte_limits(match, first.lo, first.hi, store)
        return finish(f.TO_BYTES, offset, narrow=store.view)
    if first.lo < -0x8000 or first.hi > 0x7FFF:
        return None
    match.parameters[f.LO], match.parameters[f.HI] = first.lo, first.hi
    add, summand = _sum(match) or (None, None)
    store = None if add is None else _byte_store(match)
    if add is not None and store is not None:
        offset = _byte_limits(match, add.lo, add.hi, store)
        # bytes are clamped after packing
        if not _sum_parameters(match, replace(add, lo=-0x8000, hi=0x7FFF), offset):
            return None
        return finish(f.SUM_TO_BYTES, summand=summand, narrow=store.view)
    if add is not None and not _sum_parameters(match, add, 0):
        return None
    wide = match.follows()
    target = None
    if isinstance(wide, Store) and wide.source == match.register and _is(wide.view, "int16"):
        target = wide.view
        match.at += 1
    narrow = _narrowed(match)
    if narrow is not None:
        mode = f.WIDE_TO_BYTES if add is None else f.SUM_WIDE_TO_BYTES
        return finish(mode, summand=summand, wide=target, narrow=narrow)
    if target is None or match.needed(match.register, after=0):
        return None
    return finish(f.TO_WIDE if add is None else f.SUM_TO_WIDE, summand=summand, wide=target)


def _room(first: Rescale) -> bool:
    """Whether the zero point, less than 2^16, can be added before the shift."""
    return int(first.shift.max()) < 45 and int(np.abs(first.constant).max()) < 2**62 - 2**61


def _byte_store(match: _Match) -> Store | None:
    """The next operation if it stores the register in 8 bits, the last to read it; it is passed then."""
    store = match.follows()
    if not isinstance(store, Store) or store.source != match.register or not _is(store.view, "uint8", "int8"):
        return None
    if match.needed(match.register, after=1):
        return None
    match.at += 1
    return store


def _byte_limits(match: _Match, lo: int, hi: int, store: Store) -> int:
    """Sets the limits of bytes; returns what is added so that signed ones pack as unsigned ones."""
    offset = 128 if _is(store.view, "int8") else 0
    match.parameters[f.BYTE_LO], match.parameters[f.BYTE_HI] = lo + offset, hi + offset
    match.parameters[f.FLIP] = offset
    return offset


def _sum(match: _Match) -> tuple[AddTensor, View] | None:
    """The sum of the register and an int16 tensor loaded for it alone, if that comes next; it is passed then."""
    load, add = match.follows(), match.follows(1)
    if not isinstance(load, Load) or not isinstance(add, AddTensor) or not add.high:
        return None
    if not _is(load.view, "int16") or not load.plain or load.target == match.register:
        return None
    if {add.a, add.b} != {match.register, load.target}:
        return None
    if match.needed(*(r for r in (add.a, add.b) if r != add.target), after=2):
        return None
    if add.lo < -0x8000 or add.hi > 0x7FFF:
        return None
    add = add if add.a == match.register else add.swapped()  # the kernel has the register first
    match.register, match.at = add.target, match.at + 2
    return add, load.view


def _sum_parameters(match: _Match, add: AddTensor, offset: int) -> bool:
    """Sets the numbers of a sum with `offset` on top; whether they are exact."""
    p = match.parameters
    c = add.constant + ((add.zero_point + offset) << add.shift)
    a, b = Halves.of(add.a_multiplier, c), Halves.of(add.b_multiplier, 0)
    p[f.ADD_HIGH], p[f.ADD_LOW] = _pair(a.high, b.high), _pair(a.low, b.low)
    p[f.ADD_C_HIGH], p[f.ADD_C_LOW], p[f.ADD_SHIFT] = a.c_high, a.c_low, add.shift - 16
    p[f.ADD_LO], p[f.ADD_HI] = add.lo, add.hi
    return _proved([a, b], add.shift)


def _narrowed(match: _Match) -> View | None:
    """Where the result goes if an exact rescaling by one multiplier and an 8-bit store come next."""
    rescale, store = match.follows(), match.follows(1)
    if not isinstance(rescale, Rescale) or rescale.source != match.register or not rescale.high:
        return None
    if not isinstance(store, Store) or store.source != rescale.target or not _is(store.view, "uint8", "int8"):
        return None
    if match.needed(rescale.target, rescale.source, after=2):
        return None
    numbers = [n.reshape(-1) for n in (rescale.multiplier, rescale.constant, rescale.shift)]
    if any((n != n[0]).any() for n in numbers):
        return None
    m, c, shift = (int(n[0]) for n in numbers)
    offset = _byte_limits(match, rescale.lo, rescale.hi, store)
    parts = Halves.of(m, c + ((rescale.zero_point + offset) << shift))
    if parts.c_low or not _proved([parts], shift):
        return None
    p = match.parameters
    p[f.BYTE_HIGH], p[f.BYTE_LOW] = _pair(parts.high, 1), parts.low
    p[f.BYTE_C_HIGH], p[f.BYTE_SHIFT] = parts.c_high, shift - 16
    match.at += 2
    return store.view
