"""8-bit operands that every runtime multiplies exactly, in the bodies of the integer operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..types import DType

if TYPE_CHECKING:
    from ..io.functions import Body


@dataclass(frozen=True)
class Operand:
    """A tensor of a function body: its name, sign, and the zero point of its integers."""

    name: str
    signed: bool
    zero_point: int

    def zero(self, body: Body) -> str:
        """The zero point as a scalar constant of the operand's dtype."""
        return body.constant(np.asarray(self.zero_point, dtype=np.int8 if self.signed else np.uint8))

    def unsigned(self, body: Body) -> Operand:
        """The same tensor in uint8: q + 128, zero point + 128."""
        if not self.signed:
            return self
        wide = body.op("Add", body.cast(self.name, DType.INT32), body.constant(np.asarray(128, np.int32)))
        return Operand(body.cast(wide, DType.UINT8), False, self.zero_point + 128)


def operand(body: Body, name: str, kind: DType, zero_point: int) -> Operand:
    """A tensor of at most 8 bits, 4-bit ones widened to 8."""
    if body.wire(name).bits < 8:
        name = body.widen4(name, kind)
    return Operand(name, kind.is_signed, zero_point)


def exact_pair(body: Body, a: Operand, b: Operand) -> tuple[Operand, Operand]:
    """Both signed as they are, anything else as uint8 by uint8.

    On x86 without VNNI, ONNX Runtime saturates products of mixed signs in 16 bits (MatMulInteger of u8 by s8,
    ConvInteger of s8 by u8); products of one sign are exact everywhere, u8 by u8 the fastest.  (ConvInteger is always
    written u8 by u8: ONNX Runtime before 1.31 has no kernel of it for s8 by s8.)
    """
    if a.signed and b.signed:
        return a, b
    return a.unsigned(body), b.unsigned(body)
