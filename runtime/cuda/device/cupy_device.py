"""An NVIDIA GPU through CuPy: memory, copies, graphs.  Imported only when a CUDA session is made."""

from __future__ import annotations

import ctypes
import statistics
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np

from qir.errors import BackendError, DataError
from qir.types import Array

from ...compile.tensors import dense_strides
from ..instances import Kernel
from .cupy_modules import Modules, architecture_of
from .cupy_streams import CupyEvent, Handle, OnStream, handle_of
from .interface import ImageMap, Launch, Tensor
from .tensor_maps import driver, encode, switched_on

OLDEST = 75
"""Compute capability * 10 of the oldest architecture with s8 mma.sync."""


def import_cupy() -> Any:
    """The cupy module.  Raises BackendError where it, a driver or a GPU is missing."""
    try:
        cupy = import_module("cupy")
    except ImportError as error:
        raise BackendError("the CUDA runtime needs CuPy", hint="pip install qir[cuda12] or qir[cuda13]") from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendError(f"no NVIDIA GPU can be used: {error}", hint='use backend="cpu"') from error
    if count == 0:
        raise BackendError("this machine has no NVIDIA GPU", hint='use backend="cpu"')
    return cupy


def find_gpu(index: int = 0) -> tuple[Any, int]:
    """(cupy, compute capability * 10) of GPU number `index`.

    Raises BackendError for no CuPy, no such GPU, or one older than sm_75.
    """
    cupy = import_cupy()
    count = cupy.cuda.runtime.getDeviceCount()
    if not 0 <= index < count:
        raise BackendError(f"there is no GPU {index}", hint=f"GPUs are 0 to {count - 1}")
    capability = int(cupy.cuda.Device(index).compute_capability)
    if capability < OLDEST:
        raise BackendError(f"GPU {index} is sm_{capability}", hint=f"sm_{OLDEST} (Turing) or later is needed")
    return cupy, capability


class CupyDevice:
    """GPU number `index`.

    Raises BackendError for no CuPy, no GPU, a GPU older than sm_75, or too little memory.
    """

    specialises = True
    tunes = True

    def __init__(self, index: int = 0) -> None:
        self.cupy, capability = find_gpu(index)
        self._runtime = self.cupy.cuda.runtime
        self.index = index
        self._device = self.cupy.cuda.Device(index)
        self.architecture = architecture_of(capability)
        self.tensor_maps = self.architecture == "90a" and switched_on() and driver() is not None
        name: Any = self._runtime.getDeviceProperties(index)["name"]
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        with self._device:
            # the driver's functions need the GPU's context in this thread, which this makes and sets
            self._runtime.setDevice(index)
            self._joining = threading.Lock()
            self._joint = CupyEvent(self._device, self.cupy)
        self._modules = Modules(self.cupy, index, self.architecture)

    # -- streams ------------------------------------------------------------------------------
    def stream(self, given: object = None) -> Handle:
        if given is not None:
            return handle_of(given)
        with self._device:
            return handle_of(self.cupy.cuda.get_current_stream())

    def tensor_map(self, image: ImageMap) -> Array:
        return encode(image, driver())

    def event(self) -> CupyEvent:
        return CupyEvent(self._device, self.cupy)

    def synchronize(self) -> None:
        self._device.synchronize()

    # -- memory -------------------------------------------------------------------------------
    def allocate(self, size: int, what: str = "a buffer") -> CupyMemory:
        with self._device:
            try:
                memory = CupyMemory(self.cupy.cuda.alloc(max(size, 16)))
            except self.cupy.cuda.memory.OutOfMemoryError as error:
                raise self._no_room(size, what) from error
            # The pool hands on what was freed in the order of the current stream: work there may still use it, and this
            # memory is written by any stream.
            self._runtime.streamSynchronize(self.stream().ptr)
            return memory

    def _no_room(self, size: int, what: str) -> BackendError:
        free, total = self._runtime.memGetInfo()
        return BackendError(
            f"GPU {self.index} has no room for {what}: {size:,} bytes asked for, {free:,} of {total:,} free",
            hint="use a smaller batch, or keep fewer plans",
        )

    def pinned(self, size: int) -> PinnedMemory:
        with self._device:
            try:
                return PinnedMemory(self.cupy.cuda.alloc_pinned_memory(max(size, 1)), size)
            except self._runtime.CUDARuntimeError as error:
                raise BackendError(f"the host has no {size:,} bytes of memory to lock: {error}") from error

    def is_pinned(self, array: Array) -> bool:
        with self._device:  # or the question would make a context on the thread's GPU, which may be another
            kind = self._runtime.pointerGetAttributes(array.ctypes.data).type
        return kind == self._runtime.memoryTypeHost

    def upload(self, pointer: int, array: Array) -> None:
        data = np.ascontiguousarray(array)
        with self._device:
            self._runtime.memcpyAsync(pointer, data.ctypes.data, data.nbytes, self._runtime.memcpyHostToDevice, 0)
            self._runtime.streamSynchronize(0)  # a return from the copy alone would not mean that it has arrived

    def copy(self, to: int, source: int, size: int, stream: Handle) -> None:
        with self._device:
            self._runtime.memcpyAsync(to, source, size, self._runtime.memcpyDefault, stream.ptr)

    # -- launches -----------------------------------------------------------------------------
    def prepare(self, kernels: Iterable[Kernel]) -> None:
        with self._device:
            self._runtime.setDevice(self.index)  # the context, for the driver's functions in this thread
            self._modules.prepare(kernels)

    def record(self, launches: Sequence[Launch]) -> CupyRecording:
        """A CUDA graph of the launches, on the device when this returns."""
        with self._device:
            self.prepare(launch.kernel for launch in launches)  # modules cannot load during a capture
            stream = self.cupy.cuda.Stream(non_blocking=True)
            stream.begin_capture()
            try:
                for launch in launches:
                    self._launch(launch, stream.ptr)
            except BackendError:
                with suppress(RuntimeError):  # what ends is of no use
                    stream.end_capture()
                raise
            try:
                graph = stream.end_capture()
                graph.upload(stream)
                stream.synchronize()
            except self._runtime.CUDARuntimeError as error:
                raise BackendError(f"{len(launches)} launches make no CUDA graph: {error}") from error
        return CupyRecording(graph, self._device)

    def _launch(self, launch: Launch, stream: int) -> None:
        """Each argument is an array holding one parameter, which goes by value."""
        arguments = launch.arguments
        parameters = (ctypes.c_void_p * len(arguments))(*(a.ctypes.data for a in arguments))
        x, y, z = (*launch.grid, *[1] * (3 - len(launch.grid)))
        kernel, driver = launch.kernel, self.cupy.cuda.driver
        try:
            driver.launchKernel(
                self._modules.function(kernel), x, y, z, kernel.threads, 1, 1, kernel.shared_bytes, stream,
                ctypes.addressof(parameters), 0,
            )  # fmt: skip
        except driver.CUDADriverError as error:
            raise BackendError(
                f"{kernel.expression} cannot be launched on {launch.grid} blocks: {error}", where=str(launch.head)
            ) from error

    def time(self, launches: Sequence[Launch], repeat: int) -> list[float]:
        """Seconds of each launch: graphs of `repeat` copies between two events, the median of three.

        A graph, because an event, a launch from Python and another event would time Python.
        """
        seconds: list[float] = []
        with self._device:
            stream = self.cupy.cuda.Stream(non_blocking=True)
            start, stop = self.cupy.cuda.Event(), self.cupy.cuda.Event()
            for launch in launches:
                recording = self.record([launch] * repeat)
                recording.launch(handle_of(stream))
                runs: list[float] = []
                for _ in range(3):
                    start.record(stream)
                    recording.launch(handle_of(stream))
                    stop.record(stream)
                    stop.synchronize()
                    runs.append(self.cupy.cuda.get_elapsed_time(start, stop) / 1e3 / repeat)
                seconds.append(statistics.median(runs))
        return seconds

    def ceilings(self) -> tuple[float, float]:
        """(10^12 8-bit operations, 10^9 bytes) a second at the clocks that the device names.

        Operations a clock and multiprocessor of dense s8 tensor cores by architecture  [NVIDIA's architecture papers].
        """
        known = {75: 2048, 80: 4096, 86: 2048, 87: 2048, 89: 2048, 90: 8192}
        each = known.get(int(self._device.compute_capability), 8192)

        def attribute(name: str) -> int:
            try:
                number = getattr(self._runtime, f"cudaDevAttr{name}")
                return max(1, int(self._runtime.deviceGetAttribute(number, self.index)))
            except self._runtime.CUDARuntimeError:
                return 1

        tops = attribute("MultiProcessorCount") * attribute("ClockRate") * 1e3 * each / 1e12
        return tops, 2 * attribute("MemoryClockRate") * 1e3 * attribute("GlobalMemoryBusWidth") / 8 / 1e9

    # -- callers' tensors ---------------------------------------------------------------------
    def empty(self, shape: Sequence[int], dtype: np.dtype[Any], stream: Handle) -> Any:
        with self._device:
            try:
                if stream == self.stream():
                    return self.cupy.empty(tuple(shape), dtype)
                with stream.as_cupy(self.cupy):  # memory is kept in the order of the stream that it was asked on
                    return self.cupy.empty(tuple(shape), dtype)
            except self.cupy.cuda.memory.OutOfMemoryError as error:
                raise self._no_room(int(np.prod(shape)) * dtype.itemsize, "a result") from error

    def adopt(self, tensor: object, stream: Handle) -> Tensor:
        given: Any = tensor
        with self._device:
            if isinstance(given, self.cupy.ndarray):
                self._join(self.stream(), stream)
                return self._tensor(given)
            if hasattr(given, "__dlpack__"):
                return self._tensor(self._from_dlpack(given, stream))
            interface = getattr(given, "__cuda_array_interface__", None)
            if interface is None or interface.get("mask") is not None:
                raise DataError(f"a {type(given).__name__} is no tensor that CuPy can use")
            if interface.get("stream") is not None:
                self._join(Handle(int(interface["stream"])), stream)
            dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
            strides = interface.get("strides")
            dense = strides is None or tuple(strides) == dense_strides(shape, dtype.itemsize)
            return Tensor(int(interface["data"][0]), dtype, shape, dense, given)

    def _from_dlpack(self, given: Any, stream: Handle) -> Any:
        try:
            return self.cupy.from_dlpack(OnStream(given, stream))
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"a {type(given).__name__} cannot be shared: {error}") from error

    def _join(self, earlier: Handle, later: Handle) -> None:
        """What is enqueued on `later` from now on waits for what is on `earlier`."""
        if earlier != later:
            with self._joining:
                self._joint.record(earlier)
                self._joint.hold(later)

    def _tensor(self, array: Any) -> Tensor:
        if array.device.id != self.index:
            raise DataError(f"a tensor on GPU {array.device.id}, the session is on GPU {self.index}")
        return Tensor(int(array.data.ptr), array.dtype, tuple(array.shape), bool(array.flags.c_contiguous), array)


class CupyRecording:
    """An instantiated CUDA graph."""

    def __init__(self, graph: Any, device: Any) -> None:
        self._graph, self._device = graph, device

    def launch(self, stream: Handle) -> None:
        with self._device:
            self._graph.launch(stream)


class CupyMemory:
    """A CuPy allocation with the address that plans use."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self.pointer = int(memory.ptr)


class PinnedMemory:
    """Page-locked host memory; its array keeps it alive."""

    def __init__(self, memory: Any, size: int) -> None:
        self.pointer = int(memory.ptr)
        self.array: Array = np.frombuffer(memory, np.uint8, size)
