"""Which operands the 16-channel kernels of chunks.cu can take, and their arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qir.errors import BackendError
from qir.types import Array

from ..arguments import EXTENT, KINDS, ROWS, record
from ..instances import kernel
from ..planner.placement import CHUNK, Placement, pixel_of_image
from ..planner.plan import Plan

KINDS_OF_CHUNKS = ("int8", "uint8", "int16", "uint16", "int32")


@dataclass(frozen=True)
class Chunked:
    """An output in chunks of 16 channels, and the strides (image, pixel) of every operand, the output's first."""

    images: int
    pixels: int
    channels: int
    placements: tuple[Placement, ...]
    strides: tuple[tuple[int, int], ...]

    @property
    def chunks(self) -> int:
        return -(-self.channels // CHUNK)

    def extent(self) -> Array:
        """Struct `Extent`."""
        count = self.images * self.pixels * self.chunks
        return record(EXTENT, count=count, pixels=self.pixels, chunks=self.chunks)

    def rows(self, which: int) -> Array:
        """Struct `Rows` of operand `which` (0: the output); to be called once addresses are known."""
        p, (image, pixel) = self.placements[which], self.strides[which]
        return record(ROWS, data=p.pointer, image_stride=image, pixel_stride=pixel, kind=KINDS[p.dtype.name])

    def launch(self, plan: Plan, name: str, build: Callable[[], Sequence[Array]], width: int = 1) -> None:
        """A grid-stride launch, `width` threads a chunk; the extent is put before what `build` yields."""
        which = kernel(name)
        threads = self.images * self.pixels * self.chunks * width
        plan.launch(which, (min(-(-threads // which.threads), 65535),), lambda: [self.extent(), *build()])


def chunked(out: Placement, *operands: Placement) -> Chunked | None:
    """The operands as chunks, or None where one does not lie so.

    Operands have the output's shape, or one pixel an image that stands for all (the gate of squeeze-and-excite).
    Row-major tensors of one shape count as a single pixel of many channels.
    """
    everything = (out, *operands)
    size = int(np.prod(out.shape))
    if not 0 < size < 2**31 or any(p.dtype.name not in KINDS_OF_CHUNKS for p in everything):
        return None
    if all(p.contiguous and p.shape == out.shape for p in everything) and size % CHUNK == 0:
        return Chunked(1, 1, size, everything, ((0, 0),) * len(everything))
    return _images(everything, [pixels_of(p, out.shape) for p in everything])


def chunked_windows(out: Placement, x: Placement) -> Chunked | None:
    """Likewise for pooling: the operand's images have pixels of their own, in reach of int32 sums."""
    if out.dtype.name not in KINDS_OF_CHUNKS or x.dtype.name not in KINDS_OF_CHUNKS or int(np.prod(x.shape)) >= 2**31:
        return None
    return _images((out, x), [pixels_of(p, p.shape) for p in (out, x)])


def _images(placements: tuple[Placement, ...], found: list[tuple[int, int] | None]) -> Chunked | None:
    out, strides = placements[0], [s for s in found if s is not None]
    if len(strides) < len(found):
        return None
    n, channels, *spatial = out.shape
    whole = -(-channels // CHUNK) * CHUNK
    if channels != whole and not (out.storage.spare_channels and out.offset == 0 and strides[0][1] == whole):
        return None  # the channels past the last one belong to others
    return Chunked(n, int(np.prod(spatial)), channels, placements, tuple(strides))


def pixels_of(p: Placement, shape: Sequence[int]) -> tuple[int, int] | None:
    """(image stride, pixel stride) of an image whose pixels begin at whole chunks; pixel stride 0 where one is all."""
    if len(shape) < 3 or len(p.shape) != len(shape) or p.shape[:2] != tuple(shape[:2]):
        return None
    single = all(d == 1 for d in p.shape[2:])
    if not single and p.shape != tuple(shape):
        return None
    try:
        step, offset = pixel_of_image(p)
    except BackendError:
        return None
    if step % CHUNK or offset % CHUNK or step < -(-p.shape[1] // CHUNK) * CHUNK:
        return None
    if single and any(d != 1 for d in shape[2:]):
        return p.strides[0], 0
    return int(np.prod(p.shape[2:])) * step, step
