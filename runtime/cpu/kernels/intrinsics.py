"""LLVM pieces that Python cannot spell: the integer dot-product tile, 64-bit requantization lanes, atomics.

Each is a numba intrinsic that writes vector IR; everything around them is ordinary numba code.  The tile is the
classic outer-product register kernel: MR rows by NV vectors of int32 accumulators, one broadcast of a group of
G activations against NV vectors of weights in every step.

    kind      step                                            group G   vector lanes
    vnni512   vpdpbusd, u8 x s8                                  4          16
    vnni256   vpdpbusd, u8 x s8                                  4           8
    avx2      vpmaddwd, s16 x s16 (exact: no saturating step)    2           8
    generic   widening multiply-add that LLVM legalises          2           8
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from qir.errors import BackendError

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


KINDS = ("vnni512", "vnni256", "avx2", "generic")
"""From the best to what runs anywhere."""


def host_kinds() -> list[str]:
    """The dot-product steps that this CPU has, best first."""
    features: dict[str, bool] = dict(llvm.get_host_cpu_features())
    has = {
        "vnni512": features.get("avx512vnni") and features.get("avx512vl") and features.get("avx512bw"),
        "vnni256": features.get("avxvnni") or (features.get("avx512vnni") and features.get("avx512vl")),
        "avx2": features.get("avx2"),
        "generic": True,
    }
    return [kind for kind in KINDS if has[kind]]


def chosen_kind() -> str:
    """The best step, or the one that QIR_CPU_KIND names: what other CPUs take can be tried here.

    Raises BackendError for a kind that this CPU lacks.
    """
    able = host_kinds()
    wanted = os.environ.get("QIR_CPU_KIND", able[0])
    if wanted not in able:
        raise BackendError(f"QIR_CPU_KIND={wanted!r}; this CPU has {', '.join(able)}", hint="unset QIR_CPU_KIND")
    return wanted


KIND = chosen_kind()
LANES = 16 if KIND == "vnni512" else 8
GROUP = 4 if KIND.startswith("vnni") else 2
ELEMENT = 1 if GROUP == 4 else 2
"""Bytes of an activation in the widened patch that the tile reads."""
MAX_ROWS = 6
VECTORS = 2
PANEL = LANES * VECTORS
"""Output channels of one weight panel."""


def pointer(builder: Any, address: Any, type: Any) -> Any:
    return builder.inttoptr(address, ir.PointerType(type))


def load(builder: Any, address: Any, type: Any, align: int = 1) -> Any:
    value = builder.load(pointer(builder, address, type))
    value.align = align
    return value


def store(builder: Any, value: Any, address: Any, align: int = 1) -> None:
    builder.store(value, pointer(builder, address, value.type)).align = align


def external(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    found = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def splat(builder: Any, scalar: Any, lanes: int) -> Any:
    vector = ir.VectorType(scalar.type, lanes)
    empty = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(empty, scalar, I32(0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def dot(builder: Any, acc: Any, x: Any, w: Any) -> Any:
    """acc (lanes of int32) + groups of x times groups of w; x, w: bit patterns in lanes of int32."""
    if GROUP == 2:
        return dot_i16(builder, acc, x, w)
    vector = ir.VectorType(I32, LANES)
    name = "llvm.x86.avx512.vpdpbusd." + ("512" if LANES == 16 else "256")
    return builder.call(external(builder, name, vector, [vector, vector, vector]), [acc, x, w])


def dot_i16(builder: Any, acc: Any, x: Any, w: Any) -> Any:
    """acc (lanes of int32) + pairs of int16 of x times those of w, on every CPU; x, w: bit patterns of any lanes."""
    vector, wide = ir.VectorType(I32, LANES), ir.VectorType(I16, 2 * LANES)
    x16, w16 = builder.bitcast(x, wide), builder.bitcast(w, wide)
    if KIND != "generic":
        name = "llvm.x86.avx512.pmaddw.d.512" if LANES == 16 else "llvm.x86.avx2.pmadd.wd"
        return builder.add(acc, builder.call(external(builder, name, vector, [wide, wide]), [x16, w16]))
    for parity in (0, 1):
        pick = ir.Constant(ir.VectorType(I32, LANES), list(range(parity, 2 * LANES, 2)))
        halves = [builder.sext(builder.shuffle_vector(v, v, pick), vector) for v in (x16, w16)]
        acc = builder.add(acc, builder.mul(*halves))
    return acc


def _tile(builder: Any, rows: int, vectors: int, args: Any) -> None:
    """The body of one tile kernel; args as in `make_tile`."""
    a, row_offsets, segments, segment_count, groups, b, out, out_stride = args
    vector = ir.VectorType(I32, LANES)
    count = LANES * GROUP  # weights in one vector step
    bases = [builder.add(a, load(builder, builder.add(row_offsets, I64(8 * r)), I64, 8)) for r in range(rows)]
    entry, function = builder.block, builder.function
    outer, inner, next_segment, done = (function.append_basic_block(n) for n in ("segment", "k", "next", "done"))
    builder.branch(outer)

    builder.position_at_end(outer)
    s, b_segment = builder.phi(I64), builder.phi(I64)
    outer_acc = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
    shift = load(builder, builder.add(segments, builder.mul(s, I64(8))), I64, 8)
    pointers = [builder.add(base, shift) for base in bases]
    builder.branch(inner)

    builder.position_at_end(inner)
    k, b_k = builder.phi(I64), builder.phi(I64)
    acc = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
    weights: list[Any] = []
    for j in range(vectors):
        raw = load(builder, builder.add(b_k, I64(count * j)), ir.VectorType(I8, count))
        if GROUP == 2:
            raw = builder.sext(raw, ir.VectorType(I16, count))
        weights.append(builder.bitcast(raw, vector))
    new: list[list[Any]] = []
    offset = builder.mul(k, I64(GROUP * ELEMENT))
    for r in range(rows):
        x = splat(builder, load(builder, builder.add(pointers[r], offset), I32), LANES)
        new.append([dot(builder, acc[r][j], x, weights[j]) for j in range(vectors)])
    k_next, b_next = builder.add(k, I64(1)), builder.add(b_k, I64(count * vectors))
    builder.cbranch(builder.icmp_signed("<", k_next, groups), inner, next_segment)

    builder.position_at_end(next_segment)
    s_next = builder.add(s, I64(1))
    builder.cbranch(builder.icmp_signed("<", s_next, segment_count), outer, done)

    zero = ir.Constant(vector, None)
    for phi, first, later in ((s, I64(0), s_next), (b_segment, b, b_next)):
        phi.add_incoming(first, entry)
        phi.add_incoming(later, next_segment)
    for phi, first, later in ((k, I64(0), k_next), (b_k, b_segment, b_next)):
        phi.add_incoming(first, outer)
        phi.add_incoming(later, inner)
    for r in range(rows):
        for j in range(vectors):
            outer_acc[r][j].add_incoming(zero, entry)
            outer_acc[r][j].add_incoming(new[r][j], next_segment)
            acc[r][j].add_incoming(outer_acc[r][j], outer)
            acc[r][j].add_incoming(new[r][j], inner)
    builder.position_at_end(done)
    for r in range(rows):
        line = builder.add(out, builder.mul(out_stride, I64(r)))
        for j in range(vectors):
            store(builder, new[r][j], builder.add(line, I64(4 * LANES * j)), 4)


def make_intrinsic(count: int, emit: Callable[[Any, Any], Any], result: Any = types.void) -> Any:
    """An intrinsic of `count` int64 arguments whose body is `emit(builder, args)`."""

    def typer(_context: Any, *_args: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            value = emit(builder, args)
            return context.get_dummy_value() if value is None else value

        return result(*[types.int64] * count), codegen

    names = ", ".join(f"a{i}" for i in range(count))
    scope: dict[str, Any] = {"typer": typer}
    # numba reads the parameter list of an intrinsic, so it must be spelled out
    exec(f"def call(context, {names}):\n    return typer(context, {names})", scope)
    return intrinsic(scope["call"])


def make_tile(rows: int, vectors: int) -> Any:
    """tile(a, row_offsets, segments, segment_count, groups, b, out, out_stride): all addresses or byte counts.

    out[r, n] = sum over segments s and k < groups * G of a[row_offsets[r] + segments[s] + k] * b[s, k, n], int32,
    for `rows` rows and LANES * vectors columns; b is (segment, group, column, G) int8.
    """
    return make_intrinsic(8, lambda builder, args: _tile(builder, rows, vectors, args))


def _fetch_add(builder: Any, args: Any) -> Any:
    return builder.atomic_rmw("add", pointer(builder, args[0], I64), args[1], "seq_cst")


fetch_add = make_intrinsic(2, _fetch_add, types.int64)
"""fetch_add(address, value): the old value of an int64, atomically."""


def _atomic_load(builder: Any, args: Any) -> Any:
    return builder.load_atomic(pointer(builder, args[0], I64), "acquire", 8)


atomic_load = make_intrinsic(1, _atomic_load, types.int64)


def _pause(builder: Any, _args: Any) -> None:
    if KIND != "generic":
        builder.call(external(builder, "llvm.x86.sse2.pause", ir.VoidType(), []), [])


pause = make_intrinsic(1, _pause)
"""pause(0): tells the core that it spins."""


def _prefetch(builder: Any, args: Any, write: int) -> None:
    base, stride, rows, size = args
    byte_pointer = ir.PointerType(I8)
    function = external(builder, "llvm.prefetch.p0i8", ir.VoidType(), [byte_pointer, I32, I32, I32])
    with cgutils.for_range(builder, rows) as row:
        line = builder.add(base, builder.mul(row.index, stride))
        end = builder.add(line, size)
        with cgutils.for_range_slice(builder, builder.and_(line, I64(-64)), end, I64(64)) as (at, _):
            builder.call(function, [pointer(builder, at, I8), I32(write), I32(3), I32(1)])


prefetch_read = make_intrinsic(4, lambda builder, args: _prefetch(builder, args, 0))
prefetch_write = make_intrinsic(4, lambda builder, args: _prefetch(builder, args, 1))
"""prefetch_*(base, stride, rows, size): asks for `size` bytes of each row, soon to be read or written."""


def _as_pointer(_context: Any, _address: Any) -> Any:
    """as_pointer(address): an int64 as the void pointer that carray takes."""

    def codegen(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


as_pointer: Any = intrinsic(_as_pointer)
carray: Any = numba.carray  # pyright: ignore[reportPrivateImportUsage]  # numba documents it
"""carray(pointer, count, dtype): memory as an array, nothing allocated."""
