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
from qir.types import Array

from .tensors import View

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


@dataclass(frozen=True, eq=False)
class AddTensor(_Binary):
    """target = clamp(((a * a_multiplier + b * b_multiplier + constant) >> shift) + zero_point, lo, hi).

    limit: the largest magnitude that an operand can have.
    """

    a_multiplier: int
    b_multiplier: int
    constant: int
    shift: int
    zero_point: int
    lo: int
    hi: int
    limit: int

    @classmethod
    def of(cls, attrs: Mapping[str, Any], target: int, a: int, b: int, limit: int) -> AddTensor:
        """What a qir.Add with these attributes does."""
        return cls(
            target, a, b, attrs["a_multiplier"], attrs["b_multiplier"], addition_constant(attrs), attrs["shift"],
            attrs["zero_point"], attrs["lo"], attrs["hi"], limit,
        )  # fmt: skip

    @property
    def high(self) -> bool:
        """Whether operands and constant can be shifted left until the result is in the high word."""
        room = max(HIGH_WORD - self.shift, 0)
        return (self.limit << room) < 2**31 and (abs(self.constant) << room) < 2**61

    def swapped(self) -> AddTensor:
        """The same sum, operands exchanged."""
        return replace(self, a=self.b, b=self.a, a_multiplier=self.b_multiplier, b_multiplier=self.a_multiplier)


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


def rescale_constant(multiplier: Int64, shift: Int64, offset: Int64 | np.int64) -> Int64:
    """What makes (x + offset) * m, rounded, of x * m + constant: wraps as int64 does, which the sum undoes."""
    with np.errstate(over="ignore"):
        return offset * multiplier + rounding(shift)


def is_read(operations: Sequence[MicroOperation], start: int, register: int) -> bool:
    """Whether what is in a register is still read from an operation on."""
    for operation in operations[start:]:
        if register in operation.reads:
            return True
        if register in operation.writes:
            return False
    return False
