"""The tile kernel for int16 operands: inner products in half the multiplications  [Winograd 1968, eq. 1-3].

    sum_j x_j w_j = sum_p (x_2p + w_2p+1) (x_2p+1 + w_2p)  -  sum_p x_2p x_2p+1  -  sum_p w_2p w_2p+1

Here j counts words of two numbers.  A CPU multiplies on two of its four vector ports and adds on all of them, so one
multiplication and two additions take less time than two multiplications.  The second sum is one number a row of
activations, found once for all columns; the third is known when weights are packed.  Everything is exact modulo 2^32.

S. Winograd, "A new algorithm for inner product", IEEE Transactions on Computers C-17 (1968).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils

from .intrinsics import I16, I32, I64, LANES, VECTORS, dot_i16, load, make_intrinsic, splat, store

WORDS = 2
"""Words that are cross-multiplied: the number of words of a run is a multiple of it."""
INNER_ROWS = 4
"""Rows of a tile: more would not leave registers for four vectors of weights."""


def _product(builder: Any, args: Any, rows: int, vectors: int) -> None:
    """Tiles one under the other."""
    tiles, a, rows_at, segments, segment_count, words, b, init, out, out_stride = args
    with cgutils.for_range(builder, tiles) as tile:
        first = builder.mul(tile.index, I64(rows))
        at = builder.add(rows_at, builder.mul(first, I64(8)))
        target = builder.add(out, builder.mul(first, out_stride))
        _tile(builder, (a, at, segments, segment_count, words, b, init, target, out_stride), rows, vectors)


def _tile(builder: Any, args: Any, rows: int, vectors: int) -> None:
    a, rows_at, segments, segment_count, words, b, init, out, out_stride = args
    vector, halves = ir.VectorType(I32, LANES), ir.VectorType(I16, 2 * LANES)
    line = 4 * LANES  # bytes of a vector
    bases: list[Any] = []
    sums: list[list[Any]] = []
    start = [load(builder, builder.add(init, I64(line * j)), vector, 4) for j in range(vectors)]
    for r in range(rows):
        at = builder.add(rows_at, I64(8 * r))
        bases.append(builder.add(a, builder.zext(load(builder, at, I32, 4), I64)))
        correction = splat(builder, load(builder, builder.add(at, I64(4)), I32, 4), LANES)
        sums.append([_variable(builder, builder.add(s, correction)) for s in start])
    weights = _variable(builder, b)
    with cgutils.for_range(builder, segment_count) as segment:
        shift = load(builder, builder.add(segments, builder.mul(segment.index, I64(8))), I64, 8)
        lines = [builder.add(base, shift) for base in bases]
        panel = builder.load(weights)

        def step(word: Any) -> None:
            """Two words of every row with two of every column."""
            at = builder.add(panel, builder.mul(word, I64(line * vectors)))
            w = [
                [load(builder, builder.add(at, I64(line * (half * vectors + j))), halves) for j in range(vectors)]
                for half in (1, 0)
            ]
            along = builder.mul(word, I64(4))
            for r in range(rows):
                address = builder.add(lines[r], along)
                x = [
                    builder.bitcast(
                        splat(builder, load(builder, builder.add(address, I64(4 * half)), I32), LANES), halves
                    )
                    for half in (0, 1)
                ]
                for j in range(vectors):
                    pair = [builder.add(x[half], w[half][j]) for half in (0, 1)]
                    builder.store(dot_i16(builder, builder.load(sums[r][j]), *pair), sums[r][j])

        twice = builder.and_(words, I64(-2 * WORDS))
        with cgutils.for_range_slice(builder, I64(0), twice, I64(2 * WORDS)) as (word, _):
            step(word)
            step(builder.add(word, I64(WORDS)))
        with cgutils.for_range_slice(builder, twice, words, I64(WORDS)) as (word, _):
            step(word)
        builder.store(builder.add(panel, builder.mul(words, I64(line * vectors))), weights)
    for r in range(rows):
        target = builder.add(out, builder.mul(out_stride, I64(r)))
        for j in range(vectors):
            store(builder, builder.load(sums[r][j]), builder.add(target, I64(line * j)), 4)


def _variable(builder: Any, value: Any) -> Any:
    """A variable that holds `value` each time that control comes by (LLVM makes it a register)."""
    variable = cgutils.alloca_once(builder, value.type)
    builder.store(value, variable)
    return variable


def make_product(rows: int, vectors: int) -> Any:
    """product(tiles, a, rows_at, segments, segment_count, words, b, init, out, out_stride): addresses, counts, bytes.

    out[r, n] = init[n] + correction[r] + cross-multiplied sums of a[offset[r] + segments[s] ...] and b[s, ..., n], for
    `tiles` times `rows` rows of int32.  rows_at: for each row an int32 byte offset and an int32 correction, as
    `row_corrections` leaves them; words: of a run, a multiple of WORDS; b: (segment, word, column, 2) int16.
    """
    return make_intrinsic(10, lambda builder, args: _product(builder, args, rows, vectors))


def _corrections(builder: Any, args: Any) -> None:
    a, rows_at, rows, segments, segment_count, words = args
    vector, halves = ir.VectorType(I32, LANES), ir.VectorType(I16, 2 * LANES)
    swap = ir.Constant(vector, [lane ^ 1 for lane in range(LANES)])
    whole = builder.and_(words, I64(-LANES))
    total = cgutils.alloca_once(builder, vector)
    rest = cgutils.alloca_once(builder, I32)
    with cgutils.for_range(builder, rows) as row:
        at = builder.add(rows_at, builder.mul(row.index, I64(8)))
        base = builder.add(a, builder.zext(load(builder, at, I32, 4), I64))
        builder.store(ir.Constant(vector, None), total)
        builder.store(I32(0), rest)
        with cgutils.for_range(builder, segment_count) as segment:
            shift = load(builder, builder.add(segments, builder.mul(segment.index, I64(8))), I64, 8)
            line = builder.add(base, shift)
            with cgutils.for_range_slice(builder, I64(0), whole, I64(LANES)) as (word, _):
                x = load(builder, builder.add(line, builder.mul(word, I64(4))), vector)
                other = builder.shuffle_vector(x, x, swap)
                pair = [builder.bitcast(v, halves) for v in (x, other)]
                builder.store(dot_i16(builder, builder.load(total), *pair), total)
            with cgutils.for_range_slice(builder, whole, words, I64(WORDS)) as (word, _):
                x = load(builder, builder.add(line, builder.mul(word, I64(4))), ir.VectorType(I16, 4))
                parts = [builder.sext(builder.extract_element(x, I32(i)), I32) for i in range(4)]
                more = builder.add(builder.mul(parts[0], parts[2]), builder.mul(parts[1], parts[3]))
                builder.store(builder.add(builder.load(rest), more), rest)
        lanes = builder.load(total)
        half = LANES // 2
        while half > 1:  # down to two lanes, which are equal: each product stands in two
            parts = [list(range(start, start + half)) for start in (0, half)]
            kind = ir.VectorType(I32, half)
            lanes = builder.add(*(builder.shuffle_vector(lanes, lanes, ir.Constant(kind, part)) for part in parts))
            half //= 2
        found = builder.add(builder.load(rest), builder.extract_element(lanes, I32(0)))
        store(builder, builder.neg(found), builder.add(at, I64(4)), 4)


row_corrections = make_intrinsic(6, _corrections)
"""row_corrections(a, rows_at, rows, segments, segment_count, words): fills in the corrections of `rows` rows.

rows_at: for each row an int32 byte offset (read) and an int32 correction, minus the cross-multiplied sum of its words.
"""

_p12, _p22, _p32, _p42 = (make_product(r, VECTORS) for r in range(1, INNER_ROWS + 1))
_p11, _p21, _p31, _p41 = (make_product(r, 1) for r in range(1, INNER_ROWS + 1))


@njit(nogil=True)
def inner_product(
    rows: int, vectors: int, a: int, at: int, segments: int, count: int, words: int, b: int, init: int, out: int,
    stride: int,
) -> None:  # fmt: skip
    """The kernels for any number of rows and one or two vectors: tiles of four rows, then one of what is left."""
    tiles = rows // INNER_ROWS
    left = rows - tiles * INNER_ROWS
    last, end = at + 8 * (rows - left), out + (rows - left) * stride
    if vectors == 2:
        _p42(tiles, a, at, segments, count, words, b, init, out, stride)
        if left == 3:
            _p32(1, a, last, segments, count, words, b, init, end, stride)
        elif left == 2:
            _p22(1, a, last, segments, count, words, b, init, end, stride)
        elif left == 1:
            _p12(1, a, last, segments, count, words, b, init, end, stride)
    else:
        _p41(tiles, a, at, segments, count, words, b, init, out, stride)
        if left == 3:
            _p31(1, a, last, segments, count, words, b, init, end, stride)
        elif left == 2:
            _p21(1, a, last, segments, count, words, b, init, end, stride)
        elif left == 1:
            _p11(1, a, last, segments, count, words, b, init, end, stride)
