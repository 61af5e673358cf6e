"""qir.Softmax: no division; tables, a reciprocal by one Newton step, masks  [docs/arithmetic.md 9, 9b]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..dyadic import round_half_even, rounding_shift
from ..errors import TypeInferenceError
from ..types import Array, DType, TensorType
from .base import INT64_CONSTANT, MASK, REQUIRED, SIXTEEN_BITS, Op, register
from .movement import axes_of, first

if TYPE_CHECKING:
    from ..graph import Node
    from ..io.functions import Body

MAX_ELEMENTS = 2**15
"""A row is shorter, so that its sum of exponentials stays below 2^31."""

POWERS = np.arange(17, 31, dtype=np.int64)
"""S lies in [2^16, 2^31); how many of these powers it reaches says by how much to normalize it."""

KEEP, FINE = 3, 4
"""Inputs: the mask, and the table of the low bytes of 16-bit differences."""


def exp_table(scale: float) -> NDArray[np.int64]:
    """E[k] = round_half_even(2^16 exp(-scale * k)), k = 0..255."""
    return round_half_even(2.0**16 * np.exp(-scale * np.arange(256.0)))


def wide_exp_tables(scale: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """H[i] = round_half_even(2^30 exp(-256 scale i)), L[i] = round_half_even(2^30 exp(-scale i)), i = 0..255."""
    i = np.arange(256.0)
    return round_half_even(2.0**30 * np.exp(-256 * scale * i)), round_half_even(2.0**30 * np.exp(-scale * i))


def reciprocal_table() -> NDArray[np.int64]:
    """R[i] = round_half_even(2^39 / (256 + i + 0.5)), i = 0..255."""
    return round_half_even(2.0**39 / (256.5 + np.arange(256.0)))


@register
class IntegerSoftmax(Op):
    """y = softmax(x) on the grid 2^-8 along an axis of fewer than 2^15 elements   [docs/arithmetic.md 9, 9b]

    x: int8/uint8, or int16/uint16 with `fine_table`.  The tables: int64 (256,).  keep: bool, broadcasts to x; where it
    is false, a position is dropped.  With d = (max over the kept of x) - x,
    e = E[d] of 8 bits, (E[d >> 8] fine[d & 255] + 2^43) >> 44 of 16, 0 of what is dropped; S = sum(e):
    p = #{k in 17..30: S >= 2^k},  u = S << (14 - p),  r0 = R[(u >> 22) & 255],  t = (u r0) >> 30,
    r1 = (r0 (2^32 - t)) >> 31,  y = clamp(((e r1 + 2^(38+p)) >> (39 + p)) + zero_point).
    A row that keeps nothing gives the zero point.
    """

    name = "qir.Softmax"
    inputs = "x exp_table reciprocal_table keep? fine_table?"
    operands = {
        "x": SIXTEEN_BITS, "exp_table": INT64_CONSTANT, "reciprocal_table": INT64_CONSTANT, "keep": MASK,
        "fine_table": INT64_CONSTANT,
    }  # fmt: skip
    attrs = {"axis": REQUIRED, "zero_point": REQUIRED, "dtype": REQUIRED}
    accumulates = True

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x, rest = first(types), [*types, None, None]
        (axis,) = axes_of(attrs["axis"], x.rank)
        if int(x.shape[axis]) >= MAX_ELEMENTS or x.dtype.bits > 16:
            raise TypeInferenceError(f"{x} along axis {axis}: 16 bits and fewer than 2^15 elements are wanted")
        fine, keep = rest[FINE], rest[KEEP]
        if (fine is None) != (x.dtype.bits <= 8):
            raise TypeInferenceError(f"{x}: 16 bits have a table of their low bytes, others none")
        if any(t is not None and t.shape != (256,) for t in (first(types, 1), first(types, 2), fine)):
            raise TypeInferenceError("the tables have 256 entries")
        if keep is not None:
            mask, shape = [int(d) for d in keep.shape], [int(d) for d in x.shape]
            if keep.dtype is not DType.BOOL or np.broadcast_shapes(mask, shape) != tuple(shape):
                raise TypeInferenceError(f"mask {keep} is not boolean, or does not broadcast to {x}")
        return [TensorType(DType(attrs["dtype"]), x.shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, exps, reciprocals = (np.asarray(v).astype(np.int64) for v in inputs[:3])
        keep, fine = [*inputs, None, None][KEEP : FINE + 1]
        axis, kind = attrs["axis"], DType(attrs["dtype"])
        if x.shape[axis] >= MAX_ELEMENTS:
            raise ValueError(f"a row has {x.shape[axis]} elements; fewer than 2^15 are exact")
        if keep is not None:  # what is dropped becomes the least: it takes no part in the maximum
            x = np.where(keep, x, np.iinfo(np.asarray(inputs[0]).dtype).min)
        d = x.max(axis=axis, keepdims=True) - x
        e = exps[d] if fine is None else (exps[d >> 8] * np.asarray(fine)[d & 255] + (1 << 43)) >> 44
        if keep is not None:
            e = np.where(keep, e, 0)
        total = e.sum(axis=axis, keepdims=True)
        p = (total[..., None] >= (1 << POWERS)).sum(axis=-1).astype(np.int64)
        u = total << (14 - p)
        r0 = reciprocals[(u >> 22) & 255]
        t = (u * r0) >> 30
        r1 = (r0 * ((1 << 32) - t)) >> 31
        y = rounding_shift(e * r1, 39 + p) + attrs["zero_point"]
        return (np.clip(y, kind.lo, kind.hi).astype(kind.numpy),)

    def function_body(self, body: Body, node: Node) -> None:
        attrs, x = node.attrs, body.dtype("x")
        axis, kind = attrs["axis"] % body.rank("x"), DType(attrs["dtype"])
        wide, along = body.cast("x", DType.INT32), body.int64([axis])
        masked = body.has("keep")
        if masked:
            wide = body.op("Where", "keep", wide, body.constant(np.asarray(x.lo, np.int32)))
        d = body.op("Sub", body.op("ReduceMax", wide, along, keepdims=1), wide)
        if body.has("fine_table"):
            d = body.cast(d, DType.INT64)
            high = body.shift_right(d, body.int64(8))
            low = body.op("Sub", d, body.op("Mul", high, body.int64(256)))
            pair = (body.op("Gather", t, i, axis=0) for t, i in (("exp_table", high), ("fine_table", low)))
            e = body.rounding_shift(body.op("Mul", *pair), body.int64(44))
        else:
            e = body.op("Gather", "exp_table", d, axis=0)
        if masked:
            e = body.op("Where", "keep", e, body.int64(0))
        total = body.op("ReduceSum", e, along, keepdims=1)
        reached = body.op("GreaterOrEqual", body.op("Unsqueeze", total, body.int64([-1])), body.int64(1 << POWERS))
        p = body.op("ReduceSum", body.cast(reached, DType.INT64), body.int64([-1]), keepdims=0)
        u = body.op("Mul", total, body.power_of_two(body.op("Sub", body.int64(14), p)))
        # u >> 22 is in [256, 511], or 0 where a row keeps nothing: Gather counts -256 from the end, which is 0 again
        leading = body.op("Sub", body.shift_right(u, body.int64(22)), body.int64(256))
        r0 = body.op("Gather", "reciprocal_table", leading, axis=0)
        t = body.shift_right(body.op("Mul", u, r0), body.int64(30))
        r1 = body.shift_right(body.op("Mul", r0, body.op("Sub", body.int64(1 << 32), t)), body.int64(31))
        y = body.rounding_shift(body.op("Mul", e, r1), body.op("Add", p, body.int64(39)))
        body.store(y, {"zero_point": attrs["zero_point"], "lo": kind.lo, "hi": kind.hi, "dtype": str(kind)}, 1 << 9)

    def overflows(self, node: Node) -> Iterator[str]:
        """The bounds of docs/arithmetic.md 9 hold for tables of the sizes that lowering writes."""
        wide = node.optional(FINE) is not None
        for index, most in ((1, 1 << 30 if wide else 1 << 16), (2, (1 << 31) - 1), (FINE, 1 << 30)):
            table = node.optional(index)
            if table is None:
                continue
            if table.data is None:
                yield f"table {table.name!r} is not a constant"
            elif int(table.data.min(initial=0)) < 0 or int(table.data.max(initial=0)) > most:
                yield f"table {table.name!r} leaves [0, {most}]"
