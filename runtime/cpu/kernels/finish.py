"""The usual ends of a layer, each in one kernel: requantize, add a residual, keep 16 bits, quantize to 8, store.

Columns go eight at a time and rows four at a time, so that the constants of eight channels stay in registers and
clamping is mostly done by saturating packs.  What comes after the first requantization fits 16 bits, so its products
with 32-bit multipliers are taken apart exactly:

    (x m + c) >> s  =  (x H + c_H + ((x L + c_L) >> 16)) >> (s - 16),    m = 2^16 H + L,  c = 2^16 c_H + c_L

with H, L in int16; `finish_plan` proves that no sum leaves int32.  (The last requantization takes only c_L = 0.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils

from .intrinsics import I8, I16, I32, I64, KIND, external, load, make_intrinsic, splat, store
from .vector_ops import high_halves, lanes64

ROWS_EACH, COLUMNS_EACH = 4, 8
V8, V16, V32, V64 = (ir.VectorType(t, n) for t, n in ((I8, 32), (I16, 16), (I32, 8), (I64, 4)))

# parameters: int32 each
(
    LO, HI, ADD_HIGH, ADD_LOW, ADD_C_LOW, ADD_C_HIGH, ADD_SHIFT, ADD_LO, ADD_HI, BYTE_HIGH, BYTE_LOW, BYTE_C_HIGH,
    BYTE_SHIFT, BYTE_LO, BYTE_HI, FLIP,
) = range(16)  # fmt: skip
PARAMETERS = 16
# modes
TO_BYTES, TO_WIDE, WIDE_TO_BYTES, SUM_TO_BYTES, SUM_WIDE_TO_BYTES, SUM_TO_WIDE = range(6)


def _call(builder: Any, name: str, result: Any, *values: Any) -> Any:
    return builder.call(external(builder, "llvm.x86.avx2." + name, result, [v.type for v in values]), list(values))


def _shuffle(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def _clamp(builder: Any, v: Any, lo: Any, hi: Any, signed: bool) -> Any:
    compare = builder.icmp_signed if signed else builder.icmp_unsigned
    v = builder.select(compare("<", v, lo), lo, v)
    return builder.select(compare(">", v, hi), hi, v)


class _Finish:
    """Writes one kernel; a pair below is two rows of eight int16."""

    def __init__(self, builder: Any, args: Any, mode: int) -> None:
        self.builder, self.mode = builder, mode
        (
            self.src, self.src_stride, self.rows, self.columns, self.multiplier, self.constant, self.shift,
            self.parameters, self.other, self.other_stride, self.wide, self.wide_stride, self.bytes,
            self.bytes_stride,
        ) = args  # fmt: skip

    def parameter(self, index: int, kind: Any = I32, lanes: int = 8) -> Any:
        b = self.builder
        value = load(b, b.add(self.parameters, I64(4 * index)), I32, 4)
        return splat(b, b.trunc(value, kind) if kind is not I32 else value, lanes)

    def scalars(self) -> None:
        """Parameters as vectors, before the loops."""
        b = self.builder
        self.limits = [self.parameter(i, I16, 16) for i in (LO, HI)]
        self.byte_limits = [self.parameter(i, I8, 32) for i in (BYTE_LO, BYTE_HI)]
        self.flip = self.parameter(FLIP, I8, 32)
        if self.mode >= SUM_TO_BYTES:
            self.add = [b.bitcast(self.parameter(i), V16) for i in (ADD_HIGH, ADD_LOW)]
            self.add_c = [self.parameter(i) for i in (ADD_C_HIGH, ADD_C_LOW)]
            self.add_shift = self.parameter(ADD_SHIFT)
            self.add_limits = [self.parameter(i, I16, 16) for i in (ADD_LO, ADD_HI)]
        if self.mode in (WIDE_TO_BYTES, SUM_WIDE_TO_BYTES):
            self.byte_high, self.byte_low = b.bitcast(self.parameter(BYTE_HIGH), V16), self.parameter(BYTE_LOW, I16, 16)
            self.byte_c, self.byte_shift = self.parameter(BYTE_C_HIGH), self.parameter(BYTE_SHIFT)

    def emit(self) -> None:
        b = self.builder
        self.scalars()
        bases = (self.src, self.other, self.wide, self.bytes)
        strides = (self.src_stride, self.other_stride, self.wide_stride, self.bytes_stride)
        # the last four rows may overlap with rows that are done
        last = b.sub(self.rows, I64(ROWS_EACH))
        # a register holds thrice a stride: then all four rows are one sum away
        thrice = [b.mul(stride, I64(ROWS_EACH - 1)) for stride in strides]
        with cgutils.for_range_slice(b, I64(0), self.columns, I64(COLUMNS_EACH)) as (c, _):
            lane = b.mul(c, I64(4))
            pair = b.add(self.constant, b.mul(c, I64(8)))
            constants = [load(b, pair, V64, 8), load(b, b.add(pair, I64(32)), V64, 8)]
            shift = load(b, b.add(self.shift, lane), V32, 4)
            tops = [b.add(base, b.mul(c, I64(size))) for base, size in zip(bases, (4, 2, 2, 1), strict=True)]
            with cgutils.for_range_slice(b, I64(0), self.rows, I64(ROWS_EACH)) as (r, _):
                first = b.select(b.icmp_signed(">", r, last), last, r)
                rows: list[list[Any]] = []
                for top, stride, three in zip(tops, strides, thrice, strict=True):
                    at = b.add(top, b.mul(first, stride))
                    rows.append([at, b.add(at, stride), b.add(at, b.mul(stride, I64(2))), b.add(at, three)])
                # loaded in the loop: only where LLVM sees 32-bit lanes does it multiply them as such
                multipliers = lanes64(b, load(b, b.add(self.multiplier, lane), V32, 4))
                y = [self.requantized(a, multipliers, constants, shift) for a in rows[0]]
                self.rest(y, *rows[1:])

    def requantized(self, at: Any, multipliers: Any, constants: Any, shift: Any) -> Any:
        b = self.builder
        # odd lanes by a second load: ports that shift are the scarce ones
        x = [lanes64(b, load(b, b.add(at, I64(shift)), V32, 4))[0] for shift in (0, 4)]
        even, odd = (b.add(b.mul(v, m), k) for v, m, k in zip(x, multipliers, constants, strict=True))
        return b.ashr(high_halves(b, even, odd), shift)

    def rest(self, y: list[Any], other: list[Any], wide: list[Any], at: list[Any]) -> None:
        b = self.builder
        packed = [_call(b, "packssdw", V16, y[i], y[i + 1]) for i in (0, 2)]
        if self.mode == TO_BYTES:
            joined = _call(b, "packuswb", V8, *packed)
            order = [0, 4, 1, 5, 2, 6, 3, 7]
            words = _shuffle(b, b.bitcast(joined, V32), b.bitcast(joined, V32), order)
            self.store_bytes(b.bitcast(words, V8), at, (0, 1, 2, 3))
            return
        pairs = [self.natural(p) for p in packed]
        pairs = [_clamp(b, p, *self.limits, signed=True) for p in pairs]
        if self.mode >= SUM_TO_BYTES:
            pairs = [self.added(p, other[2 * i], other[2 * i + 1]) for i, p in enumerate(pairs)]
        if self.mode != SUM_TO_BYTES:
            with b.if_then(b.icmp_signed("!=", self.wide, I64(0)), likely=True):
                for i, p in enumerate(pairs):
                    for k in (0, 1):
                        store(b, _shuffle(b, p, p, range(8 * k, 8 * k + 8)), wide[2 * i + k])
        if self.mode in (TO_WIDE, SUM_TO_WIDE):
            return
        if self.mode != SUM_TO_BYTES:
            pairs = [self.narrowed(p) for p in pairs]
        self.store_bytes(_call(b, "packuswb", V8, *pairs), at, (0, 2, 1, 3))

    def natural(self, packed: Any) -> Any:
        """Two rows one after the other, from the order that a pack leaves."""
        b = self.builder
        v = b.bitcast(packed, V64)
        return b.bitcast(_shuffle(b, v, v, [0, 2, 1, 3]), V16)

    def halves(self, p: Any, q: Any) -> list[Any]:
        """Elements of p and q side by side: columns 0-3, then columns 4-7, of both rows."""
        picks = ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])
        return [_shuffle(self.builder, p, q, [n for k in pick for n in (k, k + 16)]) for pick in picks]

    def added(self, p: Any, first: Any, second: Any) -> Any:
        b = self.builder
        v = ir.VectorType(I16, 8)
        q = _shuffle(b, load(b, first, v), load(b, second, v), range(16))
        sums: list[Any] = []
        for half in self.halves(p, q):
            top, low = (_call(b, "pmadd.wd", V32, half, m) for m in self.add)
            low = b.ashr(b.add(low, self.add_c[1]), ir.Constant(V32, [16] * 8))
            sums.append(b.ashr(b.add(b.add(top, self.add_c[0]), low), self.add_shift))
        return _clamp(b, _call(b, "packssdw", V16, *sums), *self.add_limits, signed=True)

    def narrowed(self, p: Any) -> Any:
        b = self.builder
        # (x, high half of x L) times (H, 1)
        low = _call(b, "pmulh.w", V16, p, self.byte_low)
        sums: list[Any] = []
        for half in self.halves(p, low):
            top = _call(b, "pmadd.wd", V32, half, self.byte_high)
            sums.append(b.ashr(b.add(top, self.byte_c), self.byte_shift))
        return _call(b, "packssdw", V16, *sums)

    def store_bytes(self, v: Any, at: list[Any], rows: Sequence[int]) -> None:
        b = self.builder
        v = b.xor(_clamp(b, v, *self.byte_limits, signed=False), self.flip)
        words = b.bitcast(v, V64)
        for i, row in enumerate(rows):
            store(b, b.extract_element(words, I32(i)), at[row])


def _kernel(mode: int) -> Any:
    def emit(builder: Any, args: Any) -> None:
        if KIND != "generic":  # the planner uses none of these there
            _Finish(builder, args, mode).emit()

    return make_intrinsic(14, emit)


_to_bytes, _to_wide, _wide_to_bytes, _sum_to_bytes, _sum_wide_to_bytes, _sum_to_wide = (_kernel(m) for m in range(6))


@njit(nogil=True)
def finish(
    mode: int, src: int, src_stride: int, rows: int, columns: int, m: int, c: int, s: int, parameters: int,
    other: int, other_stride: int, wide: int, wide_stride: int, out: int, out_stride: int,
) -> None:  # fmt: skip
    """Rows of int32 (columns a multiple of 8, strides in bytes) to their ends, as `mode` says.

    m int32, c int64 (of 8 channels the even ones, then the odd ones), s int32 (less 32): of the first requantization;
    parameters: PARAMETERS int32; other: int16 summands; wide: int16 target (0: none); out: 8-bit target; rows: 4 and
    more (4 with strides 0 do one).
    """
    if mode == TO_BYTES:
        _to_bytes(
            src, src_stride, rows, columns, m, c, s, parameters, other, other_stride, wide, wide_stride, out, out_stride
        )
    elif mode == TO_WIDE:
        _to_wide(
            src, src_stride, rows, columns, m, c, s, parameters, other, other_stride, wide, wide_stride, out, out_stride
        )
    elif mode == WIDE_TO_BYTES:
        _wide_to_bytes(
            src, src_stride, rows, columns, m, c, s, parameters, other, other_stride, wide, wide_stride, out, out_stride
        )
    elif mode == SUM_TO_BYTES:
        _sum_to_bytes(
            src, src_stride, rows, columns, m, c, s, parameters, other, other_stride, wide, wide_stride, out, out_stride
        )
    elif mode == SUM_WIDE_TO_BYTES:
        _sum_wide_to_bytes(
            src, src_stride, rows, columns, m, c, s, parameters, other, other_stride, wide, wide_stride, out, out_stride
        )
    else:
        _sum_to_wide(
            src, src_stride, rows, columns, m, c, s, parameters, other, other_stride, wide, wide_stride, out, out_stride
        )
