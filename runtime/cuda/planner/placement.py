"""Where tensors live: layouts (channels last for images), strided views, and an arena planned by liveness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qir.errors import BackendError
from qir.graph import Value
from qir.sizes import Sizes, dim_at
from qir.types import Array

from ..arguments import KINDS, RANK, VIEW, record

ALIGNMENT = 256
"""Bytes: what the arena aligns storages to, and the slack kept after each so that 16-byte reads stay inside."""

CHUNK = 16
"""Channels of images are padded to a multiple of this."""

SMALL = 4
"""8-bit images of no more channels (network inputs) are padded to this many instead."""


@dataclass(eq=False)
class Storage:
    """A piece of device memory; `pointer` is set when the plan has laid out its arena."""

    size: int
    pointer: int = 0
    first: int = -1
    last: int = -1
    offset: int = 0  # in the arena
    spare_channels: bool = False  # channels are padded, and nobody reads what is written there


@dataclass(frozen=True)
class Placement:
    """A tensor inside a storage. strides and offset in elements, along the logical axes (N, C, H, W)."""

    storage: Storage
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def contiguous(self) -> bool:
        """Row-major in logical order, without gaps; how far apart an axis of one element steps means nothing."""
        dense = zip(self.shape, self.strides, row_major(self.shape), strict=True)
        return self.offset == 0 and all(d == 1 or s == r for d, s, r in dense)

    @property
    def pointer(self) -> int:
        return self.storage.pointer + self.offset * self.dtype.itemsize

    def view(self, shape: Sequence[int] | None = None) -> Array:
        """Struct `View` of this tensor broadcast to `shape` (default its own), axes aligned at the right."""
        target = tuple(self.shape if shape is None else shape)
        strides = [0] * RANK
        for i in range(1, len(self.shape) + 1):
            if self.shape[-i] == target[-i]:
                strides[RANK - i] = self.strides[-i]
        return record(VIEW, data=self.storage.pointer, offset=self.offset, strides=strides, kind=KINDS[self.dtype.name])

    def part(self, axis: int, start: int, size: int, step: int = 1) -> Placement:
        """The slice [start : start + size*step : step] along one axis, in place."""
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + start * strides[axis]
        shape[axis], strides[axis] = size, strides[axis] * step
        return replace(self, shape=tuple(shape), strides=tuple(strides), offset=offset)

    def permuted(self, order: Sequence[int]) -> Placement:
        return replace(self, shape=tuple(self.shape[i] for i in order), strides=tuple(self.strides[i] for i in order))

    def reshaped(self, shape: Sequence[int]) -> Placement:
        """Another shape over the same memory; the tensor must be contiguous."""
        return replace(self, shape=tuple(shape), strides=row_major(shape))


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [1] * len(shape), 1
    for i in range(len(shape) - 1, -1, -1):
        strides[i], step = step, step * shape[i]
    return tuple(strides)


def place(value: Value, sizes: Sizes, image: bool) -> Placement:
    """A placement in a storage of its own, channels last if it is an image."""
    shape = tuple(dim_at(d, sizes) for d in value.shape)
    dtype = value.dtype.numpy
    if image:
        unit = SMALL if shape[1] <= SMALL and dtype.itemsize == 1 else CHUNK
        channels = -(-shape[1] // unit) * unit
        spatial = row_major(shape[2:])
        pixels = int(np.prod(shape[2:]))
        strides = (pixels * channels, 1, *(s * channels for s in spatial))
        size = shape[0] * pixels * channels
    else:
        strides, size = row_major(shape), int(np.prod(shape))
    return Placement(Storage(size * dtype.itemsize, spare_channels=image), dtype, shape, strides)


def pixel_of_image(p: Placement) -> tuple[int, int]:
    """(stride between pixels, offset) of a tensor of images; its pixels must follow one another evenly."""
    if len(p.shape) == 2:
        return p.strides[0], p.offset
    step = p.strides[-1]
    expected = step
    for i in range(len(p.shape) - 1, 1, -1):
        if p.shape[i] > 1 and p.strides[i] != expected:
            raise BackendError("an image in a layout that is no row of pixels")
        expected *= p.shape[i]
    if (p.shape[0] > 1 and p.strides[0] != expected) or p.strides[1] != 1:
        raise BackendError("an image in a layout that is no row of pixels")
    return step, p.offset


def pixel_of_rows(p: Placement) -> tuple[int, int]:
    """(stride between rows, offset) of a row-major matrix."""
    if not p.contiguous:
        raise BackendError("a matrix in a layout that is no row of rows")
    return p.shape[-1], 0
