"""Vector kernels on rows of int32: requantization, sums, depthwise taps, Winograd's transforms.

All arithmetic is exact; (x + 2^(shift-1)) >> shift follows qir/dyadic.py, in 64-bit lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .intrinsics import I8, I16, I32, I64, KIND, external, load, make_intrinsic, splat, store


def lanes64(builder: Any, v: Any) -> tuple[Any, Any]:
    """The even and the odd int32 lanes of <8 x i32>, sign-extended in <4 x i64>."""
    wide = ir.VectorType(I64, 4)
    thirty_two = ir.Constant(wide, [32] * 4)
    both = builder.bitcast(v, wide)
    return builder.ashr(builder.shl(both, thirty_two), thirty_two), builder.ashr(both, thirty_two)


def _clamp(builder: Any, v: Any, lo: Any, hi: Any) -> Any:
    v = builder.select(builder.icmp_signed("<", v, lo), lo, v)
    return builder.select(builder.icmp_signed(">", v, hi), hi, v)


def high_halves(builder: Any, even: Any, odd: Any) -> Any:
    """The high halves of even and odd int64 lanes, interleaved to <8 x i32>."""
    wide = ir.VectorType(I64, 4)
    high = builder.and_(odd, ir.Constant(wide, [-(1 << 32)] * 4))
    low = builder.lshr(even, ir.Constant(wide, [32] * 4))
    return builder.bitcast(builder.or_(low, high), ir.VectorType(I32, 8))


def _in_groups(builder: Any, columns: Any, body: Callable[[Any, int], None]) -> None:
    """body(first column, vectors of 8) over all columns: four vectors at a time, then one."""
    whole = builder.and_(columns, I64(-32))
    with cgutils.for_range_slice(builder, I64(0), whole, I64(32)) as (c, _):
        body(c, 4)
    with cgutils.for_range_slice(builder, whole, columns, I64(8)) as (c, _):
        body(c, 1)


def _narrowed(builder: Any, vectors: list[Any], address: Any) -> None:
    """Vectors of <8 x i32> that fit 8 bits, stored as bytes."""
    while len(vectors) > 1:
        lanes = vectors[0].type.count * 2
        mask = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        vectors = [builder.shuffle_vector(a, b, mask) for a, b in zip(vectors[0::2], vectors[1::2], strict=True)]
    store(builder, builder.trunc(vectors[0], ir.VectorType(I8, vectors[0].type.count)), address)


def _stored(builder: Any, vectors: list[Any], line: Any, c: Any, bytes_each: int) -> None:
    if bytes_each == 1:
        _narrowed(builder, vectors, builder.add(line, c))
        return
    for i, v in enumerate(vectors):
        store(builder, v, builder.add(builder.add(line, builder.mul(c, I64(4))), I64(32 * i)), 4)


def _splat32(builder: Any, value: Any) -> Any:
    return splat(builder, builder.trunc(value, I32), 8)


def _requantize(builder: Any, args: Any, bytes_each: int, pre_shifted: bool) -> None:
    src, src_stride, dst, dst_stride, rows, columns, multiplier, constant, shift, raise_by, zero_point, lo, hi = args
    v32, wide = ir.VectorType(I32, 8), ir.VectorType(I64, 4)
    z, low, top = (_splat32(builder, v) for v in (zero_point, lo, hi))
    with cgutils.for_range(builder, rows) as row:
        line = builder.add(src, builder.mul(row.index, src_stride))
        out = builder.add(dst, builder.mul(row.index, dst_stride))

        def one(c: Any, i: int) -> Any:
            lane = builder.add(builder.mul(c, I64(4)), I64(32 * i))
            x = load(builder, builder.add(line, lane), v32, 4)
            if pre_shifted:
                x = builder.shl(x, load(builder, builder.add(raise_by, lane), v32, 4))
            x_even, x_odd = lanes64(builder, x)
            m_even, m_odd = lanes64(builder, load(builder, builder.add(multiplier, lane), v32, 4))
            pair = builder.add(constant, builder.mul(lane, I64(2)))
            even = builder.add(builder.mul(x_even, m_even), load(builder, pair, wide, 8))
            odd = builder.add(builder.mul(x_odd, m_odd), load(builder, builder.add(pair, I64(32)), wide, 8))
            y = builder.ashr(high_halves(builder, even, odd), load(builder, builder.add(shift, lane), v32, 4))
            return _clamp(builder, builder.add(y, z), low, top)

        _in_groups(
            builder, columns,
            lambda c, n: _stored(builder, [one(c, i) for i in range(n)], out, c, bytes_each),
        )  # fmt: skip


requantize_int32 = make_intrinsic(13, lambda builder, args: _requantize(builder, args, 4, False))
requantize_bytes = make_intrinsic(13, lambda builder, args: _requantize(builder, args, 1, False))
pre_shifted_requantize_int32 = make_intrinsic(13, lambda builder, args: _requantize(builder, args, 4, True))
pre_shifted_requantize_bytes = make_intrinsic(13, lambda builder, args: _requantize(builder, args, 1, True))
"""*(src, src_stride, dst, dst_stride, rows, columns, multiplier, constant, shift, raise, zero_point, lo, hi)

int32 rows of `columns` (a multiple of 8) to int32 or 8 bits (bytes), strides in bytes; shifts are given less
32; constant holds bias * multiplier + 2^(shift-1), for each 8 channels the even ones, then the odd ones.  Where a
shift is below 32, x is shifted left first by raise = 32 - shift (it has the room), and the constant with it.
"""


def _sum(builder: Any, args: Any, other: str, bytes_each: int) -> None:
    a, a_stride, b, b_stride, dst, dst_stride, rows, columns = args[:8]
    m_a, m_b, constant, before, after, zero_point, lo, hi = args[8:]
    v32 = ir.VectorType(I32, 8)
    z, low, top = (_splat32(builder, v) for v in (zero_point, lo, hi))
    left, right = _splat32(builder, before), _splat32(builder, after)
    m_a, m_b, constant = (splat(builder, v, 4) for v in (m_a, m_b, constant))
    # multipliers fit int32: telling LLVM so makes one vpmuldq of each product
    (m_a, _), (m_b, _) = (lanes64(builder, builder.bitcast(m, v32)) for m in (m_a, m_b))
    size = {"int32": 4, "uint8": 1, "int8": 1, "int16": 2}[other]

    with cgutils.for_range(builder, rows) as row:
        a_line, b_line, out = (
            builder.add(base, builder.mul(row.index, stride))
            for base, stride in ((a, a_stride), (b, b_stride), (dst, dst_stride))
        )

        def one(c: Any, i: int) -> Any:
            x = load(builder, builder.add(builder.add(a_line, builder.mul(c, I64(4))), I64(32 * i)), v32, 4)
            at = builder.add(builder.add(b_line, builder.mul(c, I64(size))), I64(8 * size * i))
            y = load(builder, at, ir.VectorType(ir.IntType(8 * size), 8))
            if size < 4:
                y = builder.zext(y, v32) if other[0] == "u" else builder.sext(y, v32)
            a_even, a_odd = lanes64(builder, builder.shl(x, left))
            b_even, b_odd = lanes64(builder, builder.shl(y, left))
            even = builder.add(builder.add(builder.mul(a_even, m_a), builder.mul(b_even, m_b)), constant)
            odd = builder.add(builder.add(builder.mul(a_odd, m_a), builder.mul(b_odd, m_b)), constant)
            return _clamp(builder, builder.add(builder.ashr(high_halves(builder, even, odd), right), z), low, top)

        _in_groups(
            builder, columns,
            lambda c, n: _stored(builder, [one(c, i) for i in range(n)], out, c, bytes_each),
        )  # fmt: skip


def make_sum(other: str, bytes_each: int) -> Any:
    """sum(a, a_stride, b, b_stride, dst, dst_stride, rows, columns, m_a, m_b, constant, before, after, zp, lo, hi)

    qir.Add on rows of int32 `a` and `other` (a dtype) `b`, into int32 (bytes_each 4) or 8 bits (1).  Operands are
    shifted left by `before` (they and the constant have the room), so that the sum's high half is what is wanted,
    shifted right by `after`: before - after = 32 - shift, one of them 0.
    """
    return make_intrinsic(16, lambda builder, args: _sum(builder, args, other, bytes_each))


def _depthwise(builder: Any, args: Any, signed: bool) -> None:
    taps, tap_count, weights, weight_stride, dst, columns = args
    v8, v32 = ir.VectorType(I8, 8), ir.VectorType(I32, 8)
    function = builder.function
    with cgutils.for_range_slice(builder, I64(0), columns, I64(8)) as (c, _):
        start = builder.block
        loop, end = function.append_basic_block("tap"), function.append_basic_block("taps_done")
        builder.branch(loop)
        builder.position_at_end(loop)
        t, acc = builder.phi(I64), builder.phi(v32)
        pointer = load(builder, builder.add(taps, builder.mul(t, I64(8))), I64, 8)
        raw = load(builder, builder.add(pointer, c), v8)
        x = builder.sext(raw, v32) if signed else builder.zext(raw, v32)
        w_at = builder.add(builder.add(weights, builder.mul(t, weight_stride)), builder.mul(c, I64(4)))
        new = builder.add(acc, builder.mul(x, load(builder, w_at, v32, 4)))
        t_next = builder.add(t, I64(1))
        builder.cbranch(builder.icmp_signed("<", t_next, tap_count), loop, end)
        t.add_incoming(I64(0), start)
        t.add_incoming(t_next, loop)
        acc.add_incoming(ir.Constant(v32, None), start)
        acc.add_incoming(new, loop)
        builder.position_at_end(end)
        store(builder, new, builder.add(dst, builder.mul(c, I64(4))), 4)


depthwise_unsigned = make_intrinsic(6, lambda builder, args: _depthwise(builder, args, False))
depthwise_signed = make_intrinsic(6, lambda builder, args: _depthwise(builder, args, True))
"""depthwise_*(taps, tap_count, weights, weight_stride, dst, columns): one output pixel of a depthwise convolution.

dst[c] = sum over t of x_t[c] * weights[t, c]; taps: addresses of the 8-bit pixels under each tap; weights int32.
"""


def _interleave(builder: Any, a: Any, b: Any, high: bool) -> Any:
    """Pairs (a[c], b[c]) of half the channels: 0-3, 8-11 (low) or 4-7, 12-15 (high), one shuffle on x86."""
    start = 4 if high else 0
    mask = [lane for half in (0, 8) for c in range(start + half, start + half + 4) for lane in (c, c + 16)]
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 16), mask))


def _pair_sum(builder: Any, acc: Any, x: Any, w: Any) -> Any:
    """acc + x[2i] w[2i] + x[2i+1] w[2i+1], eight int32 lanes from sixteen int16."""
    v32, v16 = ir.VectorType(I32, 8), ir.VectorType(I16, 16)
    if KIND != "generic":
        return builder.add(acc, builder.call(external(builder, "llvm.x86.avx2.pmadd.wd", v32, [v16, v16]), [x, w]))
    for parity in (0, 1):
        pick = ir.Constant(v32, list(range(parity, 16, 2)))
        halves = [builder.sext(builder.shuffle_vector(v, v, pick), v32) for v in (x, w)]
        acc = builder.add(acc, builder.mul(*halves))
    return acc


def _depthwise_row(builder: Any, args: Any, kernel: tuple[int, int], signed: bool) -> None:
    src, row_stride, tap_stride, pixel_stride, pixels, weights, dst, dst_stride, columns = args
    v8, v16, v32 = ir.VectorType(I8, 16), ir.VectorType(I16, 16), ir.VectorType(I32, 8)
    taps = [(i, j) for i in range(kernel[0]) for j in range(kernel[1])]
    block_bytes = 64 * ((len(taps) + 1) // 2)
    zero = ir.Constant(v16, None)
    orders = [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]
    with cgutils.for_range_slice(builder, I64(0), columns, I64(16)) as (c, _):
        w_block = builder.add(weights, builder.mul(builder.udiv(c, I64(16)), I64(block_bytes)))
        out = builder.add(dst, builder.mul(c, I64(4)))
        with cgutils.for_range(builder, pixels) as pixel:
            corner = builder.add(builder.add(src, c), builder.mul(pixel.index, pixel_stride))
            lines = [builder.add(corner, builder.mul(row_stride, I64(i))) for i in range(kernel[0])]
            acc = [ir.Constant(v32, None), ir.Constant(v32, None)]
            for t in range(0, len(taps), 2):
                pair: list[Any] = []
                for i, j in taps[t : t + 2]:
                    raw = load(builder, builder.add(lines[i], builder.mul(tap_stride, I64(j))), v8)
                    pair.append(builder.sext(raw, v16) if signed else builder.zext(raw, v16))
                first, second = pair[0], pair[1] if len(pair) == 2 else zero
                for half in (0, 1):
                    w = load(builder, builder.add(w_block, I64(32 * t + 32 * half)), v16)
                    acc[half] = _pair_sum(builder, acc[half], _interleave(builder, first, second, half == 1), w)
            line = builder.add(out, builder.mul(pixel.index, dst_stride))
            # back to channel order
            for half in (0, 1):
                wanted = range(8 * half, 8 * half + 8)
                mask = [orders[0].index(n) if n in orders[0] else 8 + orders[1].index(n) for n in wanted]
                value = builder.shuffle_vector(acc[0], acc[1], ir.Constant(v32, mask))
                store(builder, value, builder.add(line, I64(32 * half)), 4)


def make_depthwise_row(kernel: tuple[int, int], signed: bool) -> Any:
    """row(src, row_stride, tap_stride, pixel_stride, pixels, weights, dst, dst_stride, columns): strides in bytes.

    dst[p, c] = sum over taps (i, j) of src[i, p, j, c] * w[i, j, c] for `pixels` outputs of a padded row of 8-bit
    activations; weights: int16 pairs of taps as `pack_depthwise` orders them; 16 channels at a time.
    """
    return make_intrinsic(9, lambda builder, args: _depthwise_row(builder, args, kernel, signed))


def _winograd_input(builder: Any, args: Any) -> None:
    src, row_stride, pixel_stride, dst, plane_stride, channels = args
    vector = ir.VectorType(I16, 16)

    def forward(d: list[Any]) -> list[Any]:
        return [builder.sub(d[0], d[2]), builder.add(d[1], d[2]), builder.sub(d[2], d[1]), builder.sub(d[1], d[3])]

    with cgutils.for_range_slice(builder, I64(0), channels, I64(16)) as (c, _):
        lane = builder.mul(c, I64(2))
        rows: list[list[Any]] = []
        for i in range(4):
            line = builder.add(builder.add(src, lane), builder.mul(row_stride, I64(i)))
            pixels = [load(builder, builder.add(line, builder.mul(pixel_stride, I64(j))), vector) for j in range(4)]
            rows.append(forward(pixels))
        for j in range(4):
            for i, value in enumerate(forward([rows[r][j] for r in range(4)])):
                plane = builder.mul(plane_stride, I64(4 * i + j))
                store(builder, value, builder.add(builder.add(dst, lane), plane))


winograd_input = make_intrinsic(6, _winograd_input)
"""winograd_input(src, row_stride, pixel_stride, dst, plane_stride, channels): B^T d B of one 4x4 tile, int16.

Sixteen planes, strides in bytes; 16 channels at a time.
"""


def _winograd_output(builder: Any, args: Any, row: int) -> None:
    src, plane_stride, dst, pixel_stride, columns = args
    vector = ir.VectorType(I32, 8)
    two = ir.Constant(vector, [2] * 8)
    with cgutils.for_range_slice(builder, I64(0), columns, I64(8)) as (c, _):
        lane = builder.mul(c, I64(4))
        sums: list[Any] = []
        for j in range(4):
            first, second, third = (
                load(builder, builder.add(builder.add(src, lane), builder.mul(plane_stride, I64(4 * i + j))), vector, 4)
                for i in ((0, 1, 2) if row == 0 else (1, 2, 3))
            )
            joined = builder.add if row == 0 else builder.sub
            sums.append(joined(joined(first, second), third))
        even = builder.add(builder.add(sums[0], sums[1]), sums[2])
        odd = builder.sub(builder.sub(sums[1], sums[2]), sums[3])
        at = builder.add(dst, lane)
        store(builder, builder.ashr(even, two), at, 4)
        store(builder, builder.ashr(odd, two), builder.add(at, pixel_stride), 4)


winograd_output_0 = make_intrinsic(5, lambda builder, args: _winograd_output(builder, args, 0))
winograd_output_1 = make_intrinsic(5, lambda builder, args: _winograd_output(builder, args, 1))
"""winograd_output_*(src, plane_stride, dst, pixel_stride, columns): two pixels of output row 0 or 1 of one tile.

A^T m A / 4 in int32, from sixteen planes; the division is exact, because the kernel transform is scaled by 4.
"""
