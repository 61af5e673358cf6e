"""The epilogue of a layer as a list of micro-operations on virtual registers, before any backend encodes it.

A layer's head leaves int32 sums in register 0; what follows it loads further operands, rescales, adds, looks up and
stores, on one region of the result at a time.  A register holds int32 of that region.  Constants are int64 arrays in
the memory order of the result, (1, columns) or (rows, 1) with rows taken in turn; backends narrow them.

What the numbers allow is asked here, so that no backend has to prove it again: `Rescale.high` and `AddTensor.high` say
whether 32-bit arithmetic on high words will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qir.dyadic import Int64, rounding
from qir.ops.addition import addition_constant
from qir.types import Array, DType

from .tensors import View

Range = tuple[int, int]
"""Least and largest value."""

HIGH_WORD = 32
"""From this shift on, a product's high word is enough."""


@dataclass(frozen=True, eq=False)
class MicroOperation:
    """reads, writes: the registers; what a class does not say it does not touch."""

    @property
    def reads(self) -> tuple[int, ...]:
        return ()

    @property
    def writes(self) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True, eq=False)
class Load(MicroOperation):
    """target = a tensor, broadcast: row r reads the view's row (r // divisor) % modulus (0: without end).

    one_column: the view's only column is repeated.
    """

    target: int
    view: View
    divisor: int = 1
    modulus: int = 0
    one_column: bool = False

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.target,)

    @property
    def plain(self) -> bool:
        """Whether nothing is broadcast."""
        return self.divisor == 1 and not self.modulus and not self.one_column


@dataclass(frozen=True, eq=False)
class Store(MicroOperation):
    """view = source, which lies within the view's dtype."""

    source: int
    view: View

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.source,)


@dataclass(frozen=True, eq=False)
class _Unary(MicroOperation):
    target: int
    source: int

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.source,)

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.target,)


@dataclass(frozen=True, eq=False)
class _Binary(MicroOperation):
    target: int
    a: int
    b: int

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.a, self.b)

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.target,)


@dataclass(frozen=True, eq=False)
class AddBias(_Unary):
    """target = source + bias, int32 that wraps.  bias: one for each column."""

    bias: Array


@dataclass(frozen=True, eq=False)
class Rescale(_Unary):
    """target = clamp(((source * multiplier + constant) >> shift) + zero_point, lo, hi).

    multiplier, constant, shift: int64 (rows, columns); the constant holds what rounds, the bias and the source's zero
    point.  limit: the largest magnitude that the source can have.
    """

    multiplier: Int64
    constant: Int64
    shift: Int64
    zero_point: int
    lo: int
    hi: int
    limit: int

    @classmethod
    def of(
        cls, attrs: Mapping[str, Any], target: int, source: int, multiplier: Int64, shift: Int64, limit: int,
        bias: Int64 | None = None,
    ) -> Rescale:  # fmt: skip
        """What a qir.Requantize with these attributes does to source + bias."""
        offset = np.int64(0) if bias is None else bias
        with np.errstate(over="ignore"):  # wraps as int64 does, which the sum undoes
            constant = (offset - attrs["x_zero_point"]) * multiplier + rounding(shift)
        return cls(
            target, source, multiplier, constant, shift, int(attrs["zero_point"]), attrs["lo"], attrs["hi"], limit
        )  # fmt: skip

    @property
    def by_column(self) -> bool:
        """Whether constants follow the columns; else the rows."""
        return self.multiplier.shape[0] == 1

    @property
    def pre_shift(self) -> Int64:
        """What small shifts lack to the high word: operands are shifted left by it first."""
        return np.maximum(HIGH_WORD - self.shift, 0)

    @property
    def high(self) -> bool:
        """Whether the high word of the product, with the constant, is all that the result needs."""
        up = self.pre_shift
        fits = (up == 0) | (((self.limit << up) < 2**31) & (np.abs(self.constant) < np.int64(1) << (61 - up)))
        return self.by_column and bool(fits.all())

    def raised(self, least: int = HIGH_WORD + 1) -> Rescale:
        """The same bits: multipliers below 2^30 are doubled, their shifts raised by one, until these reach `least`."""
        m, c, s = self.multiplier.copy(), self.constant.copy(), self.shift.copy()
        while np.any(more := (s < least) & (np.abs(m) < 1 << 30)):
            m[more] *= 2
            c[more] *= 2
            s[more] += 1
        return replace(self, multiplier=m, constant=c, shift=s)

    def values(self, least: Int64, most: Int64) -> Range:
        """Where the result lies, before the clamp, of a source in least..most."""
        ends = [(x * self.multiplier + self.constant) >> self.shift for x in (least, most)]
        return int(np.min(ends)) + self.zero_point, int(np.max(ends)) + self.zero_point


@dataclass(frozen=True, eq=False)
class AddTensor(_Binary):
    """target = clamp(((a * a_multiplier + b * b_multiplier + constant) >> shift) + zero_point, lo, hi).

    limits: the largest magnitudes that the operands can have.
    """

    a_multiplier: int
    b_multiplier: int
    constant: int
    shift: int
    zero_point: int
    lo: int
    hi: int
    limits: tuple[int, int]

    @classmethod
    def of(cls, attrs: Mapping[str, Any], target: int, a: int, b: int, limits: tuple[int, int]) -> AddTensor:
        """What a qir.Add with these attributes does."""
        return cls(
            target, a, b, attrs["a_multiplier"], attrs["b_multiplier"], addition_constant(attrs), attrs["shift"],
            attrs["zero_point"], attrs["lo"], attrs["hi"], limits,
        )  # fmt: skip

    @property
    def high(self) -> bool:
        """Whether operands and constant can be shifted left until the result is in the high word."""
        room = max(HIGH_WORD - self.shift, 0)
        return (max(self.limits) << room) < 2**31 and (abs(self.constant) << room) < 2**61

    def swapped(self) -> AddTensor:
        """The same sum, operands exchanged."""
        return replace(
            self, a=self.b, b=self.a, a_multiplier=self.b_multiplier, b_multiplier=self.a_multiplier,
            limits=self.limits[::-1],
        )  # fmt: skip

    @property
    def bound(self) -> int:
        """The largest magnitude before the shift."""
        a, b = self.limits
        return a * abs(self.a_multiplier) + b * abs(self.b_multiplier) + abs(self.constant)

    @property
    def narrow(self) -> bool:
        """Whether the sum fits int64 before the shift, and int32 behind it."""
        return (self.bound >> self.shift) + 1 + abs(self.zero_point) < 1 << 31 and self.bound < 1 << 63

    def folded(self) -> AddTensor:
        """The same bits: the zero point is part of the constant, where there is room."""
        if self.bound + (abs(self.zero_point) << self.shift) >= 1 << 62:
            return self
        return replace(self, constant=self.constant + (self.zero_point << self.shift), zero_point=0)

    def values(self, a: Range, b: Range) -> Range:
        """Where the result lies, before the clamp, of operands in a and b."""
        first, second = [v * self.a_multiplier for v in a], [v * self.b_multiplier for v in b]
        least, most = min(first) + min(second) + self.constant, max(first) + max(second) + self.constant
        return (least >> self.shift) + self.zero_point, (most >> self.shift) + self.zero_point


@dataclass(frozen=True, eq=False)
class Multiply(_Binary):
    """target = clamp((((a - a_zero_point) * (b - b_zero_point) * multiplier + 2^(shift-1)) >> shift) + zero_point)."""

    multiplier: int
    shift: int
    a_zero_point: int
    b_zero_point: int
    zero_point: int
    lo: int
    hi: int


@dataclass(frozen=True, eq=False)
class Lookup(_Unary):
    """target = table[source - least].  table: int32, one line of entries, or one for each column."""

    table: Array
    least: int

    @property
    def per_column(self) -> bool:
        return self.table.ndim > 1


@dataclass(frozen=True, eq=False)
class Clamp(_Unary):
    """target = min(max(source, lo), hi); where the limits cross, hi wins as in ONNX."""

    lo: int
    hi: int


def largest(dtype: DType) -> int:
    """The largest magnitude of a dtype."""
    return max(-dtype.lo, dtype.hi)


def is_read(operations: Sequence[MicroOperation], start: int, register: int) -> bool:
    """Whether what is in a register is still read from an operation on."""
    for operation in operations[start:]:
        if register in operation.reads:
            return True
        if register in operation.writes:
            return False
    return False
