"""Streams and events of a GPU, whoever made the stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qir.errors import DataError


@dataclass(frozen=True)
class Handle:
    """A cudaStream_t. owner: the object that keeps it alive."""

    ptr: int
    owner: object = field(default=None, compare=False)

    def __cuda_stream__(self) -> tuple[int, int]:
        """CUDA stream protocol: (version, handle)."""
        return 0, self.ptr

    def as_cupy(self, cupy: Any) -> Any:
        """CuPy's own object for the stream, to make it current."""
        if isinstance(self.owner, cupy.cuda.Stream):
            return self.owner
        make = getattr(cupy.cuda.Stream, "from_external", None)  # since CuPy 14
        return make(self) if make is not None else cupy.cuda.ExternalStream(self.ptr)


def handle_of(stream: object) -> Handle:
    """The handle of a stream of CuPy (`ptr`), PyTorch (`cuda_stream`), of any package with `__cuda_stream__`, or a
    bare integer.  Raises DataError for anything else."""
    given: Any = stream
    if isinstance(given, Handle):
        return given
    if isinstance(given, int):
        return Handle(given)
    for name in ("ptr", "cuda_stream"):
        found = getattr(given, name, None)
        if isinstance(found, int):
            return Handle(found, given)
    if hasattr(given, "__cuda_stream__"):
        return Handle(int(given.__cuda_stream__()[1]), given)
    raise DataError(f"a {type(given).__name__} is no CUDA stream")


class OnStream:
    """A tensor of another package, exported for a stream of ours: its producer makes that stream wait for its own.

    CuPy itself would name its current stream.  1 stands for the default stream  [DLPack, Python specification].
    """

    def __init__(self, tensor: Any, stream: Handle) -> None:
        self._tensor, self._stream = tensor, stream

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._tensor.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        return self._tensor.__dlpack__(**{**options, "stream": self._stream.ptr or 1})


class CupyEvent:
    """See `device.Event`; without timing, so that it costs little."""

    def __init__(self, device: Any, cupy: Any) -> None:
        self._device, self._runtime = device, cupy.cuda.runtime
        with device:
            self._event = cupy.cuda.Event(disable_timing=True)

    @property
    def done(self) -> bool:
        return bool(self._event.done)

    def record(self, stream: Handle) -> None:
        with self._device:
            self._runtime.eventRecord(self._event.ptr, stream.ptr)

    def hold(self, stream: Handle) -> None:
        with self._device:
            self._runtime.streamWaitEvent(stream.ptr, self._event.ptr)

    def wait(self) -> None:
        self._event.synchronize()
