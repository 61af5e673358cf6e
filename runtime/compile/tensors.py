"""What every compiled runtime plans before it runs: strided views, buffer lifetimes, arena offsets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from qir.types import Array

ALIGNMENT = 64


class Timed(Protocol):
    """Bytes that matter between two steps; `assign_offsets` sets where they begin."""

    size: int
    first: int
    last: int
    offset: int


class Buffer:
    """Bytes with a lifetime. `space`: "arena" (placed by `assign_offsets`), "input:name", "output:name", "constant".

    first, last: the steps between which the bytes matter; data: the array of a constant.
    """

    __slots__ = ("data", "first", "last", "offset", "size", "space")

    def __init__(self, size: int, space: str = "arena", data: Array | None = None) -> None:
        self.size, self.space, self.data = size, space, data
        self.first, self.last = -1, -1
        self.offset = 0

    def touch(self, step: int) -> None:
        """The step reads or writes it."""
        if self.first < 0:
            self.first = step
        self.last = max(self.last, step)


@dataclass(frozen=True)
class View:
    """A tensor in a buffer. shape, strides (bytes): memory order; `order[i]` is the logical axis of memory axis i."""

    buffer: Buffer
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    order: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def inverse(self) -> tuple[int, ...]:
        """Memory axis of each logical axis."""
        return tuple(self.order.index(a) for a in range(self.rank))

    @property
    def logical_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[i] for i in self.inverse)

    @property
    def logical_strides(self) -> tuple[int, ...]:
        return tuple(self.strides[i] for i in self.inverse)

    def rows(self) -> tuple[int, int, int] | None:
        """(rows, columns, row stride in bytes) where the outer axes collapse into one; None where they do not."""
        if self.rank == 0:
            return 1, 1, self.dtype.itemsize
        columns = self.shape[-1]
        if columns > 1 and self.strides[-1] != self.dtype.itemsize:
            return None
        rows, stride = 1, 0
        for size, step in zip(reversed(self.shape[:-1]), reversed(self.strides[:-1]), strict=True):
            if size == 1:
                continue
            if rows == 1:
                stride = step
            elif step != rows * stride:
                return None
            rows *= size
        return rows, columns, stride if rows > 1 else columns * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        return self.strides == dense_strides(self.shape, self.dtype.itemsize, self.strides)

    def reordered(self, order: Sequence[int]) -> View:
        """The same bytes with memory axes listed in another order (strides go along)."""
        inverse = self.inverse
        axes = [inverse[a] for a in order]
        return replace(
            self, shape=tuple(self.shape[i] for i in axes), strides=tuple(self.strides[i] for i in axes),
            order=tuple(order),
        )  # fmt: skip

    def sliced(self, axis: int, start: int, count: int, step: int = 1) -> View:
        """`count` elements along a logical axis."""
        at = self.order.index(axis)
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + start * strides[at]
        shape[at], strides[at] = count, strides[at] * step
        return replace(self, offset=offset, shape=tuple(shape), strides=tuple(strides))

    def array(self, memory: Array) -> Array:
        """The tensor in logical order, as a NumPy view of its buffer's bytes."""
        base = np.ndarray(self.shape, self.dtype, memory, self.offset, self.strides)
        return base.transpose(self.inverse) if self.rank else base


def dense_strides(shape: Sequence[int], item: int, like: Sequence[int] | None = None) -> tuple[int, ...]:
    """Strides of a contiguous array; axes of size 1 keep their stride in `like`."""
    strides: list[int] = []
    step = item
    for i in reversed(range(len(shape))):
        strides.append(like[i] if like is not None and shape[i] == 1 else step)
        step *= shape[i]
    return tuple(reversed(strides))


def dense_view(
    shape: Sequence[int], order: Sequence[int], dtype: np.dtype[np.generic], buffer: Buffer | None = None
) -> View:
    """A contiguous view of a logical shape stored in `order`, in a new arena buffer unless one is given."""
    memory = tuple(shape[a] for a in order)
    size = math.prod(memory) * dtype.itemsize
    return View(buffer or Buffer(size), 0, memory, dense_strides(memory, dtype.itemsize), tuple(order), dtype)


def channels_last(rank: int) -> tuple[int, ...]:
    """(0, 2, ..., rank-1, 1) for rank 3 and more, else the identity."""
    return (0, *range(2, rank), 1) if rank >= 3 else tuple(range(rank))


def same_order(shape: Sequence[int], a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two orders mean the same bytes for a logical shape (axes of size 1 move freely)."""
    return [x for x in a if shape[x] != 1] == [x for x in b if shape[x] != 1]


def assign_offsets(buffers: Iterable[Timed], alignment: int = ALIGNMENT, slack: int = ALIGNMENT) -> int:
    """Offsets such that buffers alive at the same step never overlap; returns the arena's size.

    Largest first, each in the tightest gap that its lifetime leaves [greedy by size].  `slack` bytes follow each
    buffer: vector loads may read, and never use, a few bytes past an end.
    """
    placed: list[Timed] = []
    total = 0
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.first)):
        size = -(-(buffer.size + slack) // alignment) * alignment
        busy = sorted(
            (other.offset, other.offset + -(-(other.size + slack) // alignment) * alignment)
            for other in placed
            if other.first <= buffer.last and buffer.first <= other.last
        )
        best: tuple[int, int] | None = None
        end = 0
        for start, stop in busy:
            gap = start - end
            if gap >= size and (best is None or gap < best[0]):
                best = (gap, end)
            end = max(end, stop)
        buffer.offset = best[1] if best else end
        total = max(total, buffer.offset + size)
        placed.append(buffer)
    return total
