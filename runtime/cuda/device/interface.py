"""What a plan needs of a device: memory, copies, launches, and the order of things on streams.

`CupyDevice` offers it on an NVIDIA GPU, `EmulatedDevice` on a host.  A `stream` is whatever `Device.stream` returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qir.graph import Node
from qir.types import Array

from ..instances import Kernel


@dataclass(frozen=True)
class Launch:
    """One kernel launch, arguments fixed. head: the first graph node it serves, whose operator chose the kernel."""

    kernel: Kernel
    grid: tuple[int, ...]
    arguments: tuple[Array, ...]
    head: Node


@dataclass(frozen=True)
class Tensor:
    """A caller's tensor in device memory. contiguous: row-major without gaps; owner: what keeps the memory alive."""

    pointer: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    contiguous: bool
    owner: object

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


@dataclass(frozen=True)
class ImageMap:
    """An NHWC image of bytes as the GPU's copy engine is to see it, for an implicit GEMM (im2col).

    sizes: channels, width, height, images; strides: bytes between pixels, rows, images.  lower, upper, steps: (x, y) of
    the box in which windows move, from its corner and from the image's last pixel, and how far at a time; pixels: how
    many windows one copy takes, of `span` channels each (128 or 64, swizzled as far).
    """

    pointer: int
    sizes: tuple[int, int, int, int]
    strides: tuple[int, int, int]
    lower: tuple[int, int]
    upper: tuple[int, int]
    steps: tuple[int, int]
    pixels: int
    span: int = 128


class Memory(Protocol):
    """A block of memory, freed with the object."""

    pointer: int


class HostMemory(Memory, Protocol):
    """Page-locked host memory; `array` is all of it, uint8."""

    array: Array


class Event(Protocol):
    """A point in the work of a stream; recorded again and again."""

    @property
    def done(self) -> bool: ...
    def record(self, stream: Any) -> None: ...
    def hold(self, stream: Any) -> None:
        """What is enqueued on `stream` from now on starts after the point; the host does not wait."""
        ...

    def wait(self) -> None:
        """The host waits for the point."""
        ...


class Recording(Protocol):
    """Launches as one thing to enqueue again and again (a CUDA graph)."""

    def launch(self, stream: Any) -> None: ...


class Device(Protocol):
    """A GPU, or the emulation of one. architecture: as compilers name it, "75" to "90a" and beyond."""

    name: str
    architecture: str
    tensor_maps: bool  # whether it makes them
    specialises: bool  # whether kernels are compiled for the program of their epilogue
    tunes: bool  # whether sessions tune on it unless they are told otherwise

    def stream(self, given: object = None) -> Any:
        """The stream that the caller names (None: the calling thread's current one)."""
        ...

    def allocate(self, size: int, what: str = "a buffer") -> Memory:
        """Device memory aligned to 256 bytes (emulation: 16).  Raises BackendError, naming `what`, when it is out."""
        ...

    def pinned(self, size: int) -> HostMemory: ...
    def is_pinned(self, array: Array) -> bool:
        """Whether copies can read and write this host array without staging."""
        ...

    def upload(self, pointer: int, array: Array) -> None:
        """Constants: host to device, there on return."""
        ...

    def copy(self, to: int, source: int, size: int, stream: Any) -> None:
        """Enqueue a copy between any two of device memory and page-locked host memory."""
        ...

    def tensor_map(self, image: ImageMap) -> Array:
        """A kernel argument of 128 bytes.  Raises BackendError where the driver refuses."""
        ...

    def event(self) -> Event: ...
    def prepare(self, kernels: Iterable[Kernel]) -> None:
        """Compile and load kernels now, side by side, rather than when they are first recorded."""
        ...

    def record(self, launches: Sequence[Launch]) -> Recording: ...
    def adopt(self, tensor: object, stream: Any) -> Tensor:
        """A caller's device tensor (CuPy, DLPack, __cuda_array_interface__), ready when `stream` gets there.

        Raises DataError for one that lives elsewhere.
        """
        ...

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any], stream: Any) -> object:
        """A new device tensor for a caller to keep."""
        ...

    def time(self, launches: Sequence[Launch], repeat: int) -> list[float]:
        """Seconds of each launch, the median of `repeat` runs."""
        ...

    def ceilings(self) -> tuple[float, float]:
        """(10^12 8-bit operations, 10^9 bytes) a second that the device could do at best."""
        ...

    def synchronize(self) -> None:
        """The host waits for everything."""
        ...
