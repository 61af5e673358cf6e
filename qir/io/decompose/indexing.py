"""Index operators as comparisons, selections and gathers that every executor has."""

from __future__ import annotations

import math

import numpy as np

from ...types import Array, DType
from ..adapters import Raw, Scope
from .steps import Decomposition, Steps, Writer

LONGEST = 4096
"""Longest axis that a cumulative sum takes: it is a product with a triangle of ones."""


def trilu(scope: Scope, raw: Raw) -> Steps:
    """Trilu: x where a constant triangle keeps it, else 0; sizes that are open are compared at run time."""
    w = Writer(scope, raw)
    x, k = w.need(0), scope.data(raw.input(1))
    if raw.input(1) and k is None:
        raise w.refuse("the diagonal of a Trilu is no constant")
    offset, upper = int(k.reshape(())) if k is not None else 0, bool(w.number("upper", 1))
    rows, columns = w.shape(x)[-2:]
    kind = scope.type(x).dtype
    zero = w.constant(np.zeros((), kind.numpy))
    if isinstance(rows, int) and isinstance(columns, int):
        whole = np.ones((rows, columns), bool)
        keep = w.constant(np.triu(whole, offset) if upper else np.tril(whole, offset))
    else:
        sides: list[str] = []
        for axis in (-2, -1):
            yield w("Shape", x, start=axis, end=-1) if axis == -2 else w("Shape", x, start=axis)
            yield w("Squeeze", w.last, w.ints([0]))
            yield w("Range", w.ints(0), w.last, w.ints(1))
            if axis == -2:
                yield w("Add", w.last, w.ints(offset))
                yield w("Unsqueeze", w.last, w.ints([1]))
            sides.append(w.last)
        yield w("LessOrEqual", *(sides if upper else reversed(sides)))
        keep = w.last
    if kind is DType.BOOL:
        yield w("And", x, keep, output=w.result)
    else:
        yield w("Where", keep, x, zero, output=w.result)


def cumulative_sum(scope: Scope, raw: Raw) -> Steps:
    """CumSum along an axis of known size n: reals times an n x n triangle of ones, integers by selecting and adding."""
    w = Writer(scope, raw)
    x, given = w.need(0), scope.data(raw.input(1))
    rank, kind = w.rank(x), scope.type(x).dtype
    if given is None:
        raise w.refuse("the axis of a CumSum is no constant")
    axis = int(given.reshape(())) % max(rank, 1)
    n = w.shape(x)[axis]
    if not isinstance(n, int) or n > LONGEST:
        raise w.refuse(f"a cumulative sum over {n} elements", f"the size must be known, {LONGEST} at most")
    keep = np.tril(np.ones((n, n), bool), -1 if w.number("exclusive", 0) else 0)  # [to, from]
    keep = keep[::-1, ::-1] if w.number("reverse", 0) else keep
    if kind.is_float:
        triangle, last = w.constant(np.ascontiguousarray(keep.T).astype(kind.numpy)), rank - 1
        if axis == last:
            yield w("MatMul", x, triangle, output=w.result)
            return
        perm = [*(i for i in range(rank) if i != axis), axis]
        yield w("Transpose", x, perm=perm)
        yield w("MatMul", w.last, triangle)
        yield w("Transpose", w.last, perm=[perm.index(i) for i in range(rank)], output=w.result)
        return
    yield w("Unsqueeze", x, w.ints([axis]))  # the axis `to` in front of the axis `from`
    grid = keep.reshape(n, n, *[1] * (rank - 1 - axis))
    yield w("Where", w.constant(np.ascontiguousarray(grid)), w.last, w.constant(np.zeros((), kind.numpy)))
    yield w("ReduceSum", w.last, w.ints([axis + 1]), keepdims=0, output=w.result)


def gather_nd(scope: Scope, raw: Raw) -> Steps:
    """GatherND: tuples of indices become one index into the flattened axes, and a Gather takes it."""
    w = Writer(scope, raw)
    w.only()
    x, index = w.need(0), w.need(1)
    shape, wanted = w.shape(x), w.shape(index)
    depth = wanted[-1]
    if not isinstance(depth, int) or not 1 <= depth <= len(shape):
        raise w.refuse(f"indices of shape {list(wanted)} into a tensor of shape {list(shape)}")
    if depth == 1:
        yield w("Squeeze", index, w.ints([len(wanted) - 1]))
        yield w("Gather", x, w.last, axis=0, output=w.result)
        return
    strides: list[str] = []
    numbers = [math.prod(d for d in shape[i + 1 : depth] if isinstance(d, int)) for i in range(depth)]
    if all(isinstance(d, int) for d in shape[1:depth]):
        known = w.ints(numbers)
        sizes = w.ints([d if isinstance(d, int) else 0 for d in shape[:depth]])
        if not isinstance(shape[0], int):  # negative indices need the sizes
            yield w("Shape", x, start=0, end=depth)
            sizes = w.last
    else:
        yield w("Shape", x, start=0, end=depth)
        sizes = w.last
        for i in range(depth):
            yield w("Slice", sizes, w.ints([i + 1]), w.ints([depth]), w.ints([0]))
            yield w("ReduceProd", w.last, keepdims=1)
            strides.append(w.last)
        yield w("Concat", *strides, axis=0)
        known = w.last
    zero = w.ints(0)
    yield w("Cast", index, to="int64")
    index = w.last
    yield w("Add", index, sizes)
    lifted = w.last
    yield w("Less", index, zero)
    yield w("Where", w.last, lifted, index)
    yield w("Mul", w.last, known)
    yield w("ReduceSum", w.last, w.ints([-1]), keepdims=0)
    flat = w.last
    rest = [d if isinstance(d, int) else None for d in shape[depth:]]
    if None in rest[1:] or (None in rest and not all(isinstance(d, int) for d in shape[:depth])):
        raise w.refuse("gathers slices whose sizes are open")
    front = math.prod(d for d in shape[:depth] if isinstance(d, int)) if None in rest else -1
    yield w("Reshape", x, w.ints([front, *(-1 if d is None else d for d in rest)]))
    yield w("Gather", w.last, flat, axis=0, output=w.result)


def one_hot(scope: Scope, raw: Raw) -> Steps:
    """OneHot: where the index, taken from the end where it is negative, is the position."""
    w = Writer(scope, raw)
    index, depth, values = w.need(0), scope.data(raw.input(1)), w.need(2)
    if depth is None:
        raise w.refuse("the depth of a OneHot is no constant")
    count, rank = int(depth.reshape(-1)[0]), w.rank(index)
    axis = int(w.number("axis", -1)) % (rank + 1)
    yield w("Cast", index, to="int64")
    yield w("Unsqueeze", w.last, w.ints([axis]))
    index = w.last
    yield w("Add", index, w.ints(count))
    lifted = w.last
    yield w("Less", index, w.ints(0))
    yield w("Where", w.last, lifted, index)
    place = np.arange(count, dtype=np.int64).reshape(-1, *[1] * (rank - axis))
    yield w("Equal", w.last, w.constant(place))
    here = w.last
    sides: list[str] = []
    for i in (1, 0):
        yield w("Slice", values, w.ints([i]), w.ints([i + 1]), w.ints([0]))
        yield w("Squeeze", w.last, w.ints([0]))
        sides.append(w.last)
    yield w("Where", here, *sides, output=w.result)


def scatter_nd(scope: Scope, raw: Raw) -> Steps:
    """ScatterND with constant indices: each element of the result is one of x or one of the updates, a Gather of both.

    Raises UnsupportedError: indices that are no constants, a reduction, open sizes.
    """
    w = Writer(scope, raw)
    w.only("reduction")
    if w.number("reduction", "none") not in ("none", b"none"):
        raise w.refuse(f"reduction {w.number('reduction', '')!r} is not supported")
    x, updates, index = w.need(0), w.need(2), scope.data(raw.input(1))
    shape = w.shape(x)
    if index is None:
        raise w.refuse("indices that are no constants", "scatter with Where and comparisons instead")
    depth = index.shape[-1]
    sizes = [d for d in shape[:depth] if isinstance(d, int)]
    if len(sizes) < depth:
        raise w.refuse("scatters along an axis whose size is open")
    total = math.prod(sizes)
    flat = np.ravel_multi_index(tuple(np.moveaxis(index.reshape(-1, depth) % np.asarray(sizes), -1, 0)), tuple(sizes))
    source = np.arange(total, dtype=np.int64)
    source[flat] = total + np.arange(flat.size)
    if flat.size == total and np.array_equal(np.sort(flat), np.arange(total)):  # all of x is replaced
        parts, source = [updates], source - total
    else:
        parts = [x, updates]
    rest = [d if isinstance(d, int) else -1 for d in shape[depth:]]
    if rest.count(-1) > 1:
        raise w.refuse("scatters slices whose sizes are open")
    flats: list[str] = []
    for name, count in zip(parts, [total, flat.size] if len(parts) == 2 else [flat.size], strict=True):
        yield w("Reshape", name, w.ints([count, *rest]))
        flats.append(w.last)
    if len(flats) > 1:
        yield w("Concat", *flats, axis=0)
    yield w("Gather", w.last, w.ints(source.tolist()), axis=0)
    yield w("Reshape", w.last, w.ints([*sizes, *rest]), output=w.result)


def scatter_elements(scope: Scope, raw: Raw) -> Steps:
    """ScatterElements with constant indices, on a tensor of known sizes: a Gather of x and the updates."""
    w = Writer(scope, raw)
    w.only("reduction", "axis")
    if w.number("reduction", "none") not in ("none", b"none"):
        raise w.refuse(f"reduction {w.number('reduction', '')!r} is not supported")
    x, updates, index = w.need(0), w.need(2), scope.data(raw.input(1))
    shape = w.shape(x)
    if index is None or not all(isinstance(d, int) for d in shape):
        raise w.refuse("indices that are no constants, or a tensor of open sizes",
                       "scatter with Where and comparisons instead")  # fmt: skip
    sizes = [int(d) for d in shape]
    axis = int(w.number("axis", 0)) % len(sizes)
    places: list[Array] = [np.asarray(p) for p in np.indices(index.shape)]
    places[axis] = index % sizes[axis]
    flat = np.ravel_multi_index(tuple(p.reshape(-1) for p in places), tuple(sizes))
    source = np.arange(math.prod(sizes), dtype=np.int64)
    source[flat] = source.size + np.arange(flat.size)
    flats: list[str] = []
    for name in (x, updates):
        yield w("Reshape", name, w.ints([-1]))
        flats.append(w.last)
    yield w("Concat", *flats, axis=0)
    yield w("Gather", w.last, w.ints(source.tolist()), axis=0)
    yield w("Reshape", w.last, w.ints(sizes), output=w.result)


def gather_elements(scope: Scope, raw: Raw) -> Steps:
    """GatherElements with constant indices, on a tensor of known sizes."""
    w = Writer(scope, raw)
    x, index = w.need(0), scope.data(raw.input(1))
    shape = w.shape(x)
    if index is None or not all(isinstance(d, int) for d in shape):
        raise w.refuse("indices that are no constants, or a tensor of open sizes")
    sizes = [int(d) for d in shape]
    axis = int(w.number("axis", 0)) % len(sizes)
    places: list[Array] = [np.asarray(p) for p in np.indices(index.shape)]
    places[axis] = index % sizes[axis]
    yield w("Reshape", x, w.ints([-1]))
    flat = np.ravel_multi_index(tuple(places), tuple(sizes))
    yield w("Gather", w.last, w.constant(np.asarray(flat, np.int64)), axis=0, output=w.result)


def exclusive_or(scope: Scope, raw: Raw) -> Steps:
    """Xor: one of both, and not both."""
    w = Writer(scope, raw)
    a, b = w.need(0), w.need(1)
    yield w("Or", a, b)
    either = w.last
    yield w("And", a, b)
    yield w("Not", w.last)
    yield w("And", either, w.last, output=w.result)


def reduced(scope: Scope, raw: Raw) -> Steps:
    """ReduceSumSquare and ReduceL1: of squares, of absolute values."""
    w = Writer(scope, raw)
    if raw.op == "ReduceL1":
        yield w("Abs", w.need(0))
    else:
        yield w("Mul", w.need(0), w.need(0))
    attrs = {k: v for k, v in raw.attrs.items() if k in ("keepdims", "noop_with_empty_axes")}
    axes = raw.input(1)
    if axes is None and "axes" in raw.attrs:
        axes = w.ints([int(a) for a in raw.attrs["axes"]])
    yield w("ReduceSum", w.last, axes, output=w.result, **attrs)


STANDARD: dict[str, Decomposition] = {
    "Trilu": trilu, "CumSum": cumulative_sum, "GatherND": gather_nd, "OneHot": one_hot, "ScatterND": scatter_nd,
    "ScatterElements": scatter_elements, "Scatter": scatter_elements, "GatherElements": gather_elements,
    "Xor": exclusive_or, "ReduceSumSquare": reduced, "ReduceL1": reduced,
}  # fmt: skip
