"""An NVIDIA GPU through CuPy: memory, modules and launches. Imported only when a CUDA session is made."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qir.errors import BackendError
from qir.types import Array

from .kernels import Kernel, sources

if TYPE_CHECKING:
    from .plan import Launch

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


class CupyDevice:
    """GPU number `index`; work goes to the current CuPy stream of the calling thread.

    Raises BackendError for no CuPy, no GPU, a GPU older than sm_75, or too little memory.
    """

    def __init__(self, index: int = 0) -> None:
        self.cupy = import_cupy()
        count = self.cupy.cuda.runtime.getDeviceCount()
        if not 0 <= index < count:
            raise BackendError(f"there is no GPU {index}", hint=f"GPUs are 0 to {count - 1}")
        self.index = index
        self._device = self.cupy.cuda.Device(index)
        capability = int(self._device.compute_capability)
        if capability < OLDEST:
            raise BackendError(f"GPU {index} is sm_{capability}", hint=f"sm_{OLDEST} (Turing) or later is needed")
        properties = self.cupy.cuda.runtime.getDeviceProperties(index)
        self.name = str(properties["name"].decode())
        self._functions: dict[Kernel, Any] = {}

    def allocate(self, size: int) -> Any:
        with self._device:
            try:
                return _Memory(self.cupy.cuda.alloc(max(size, 16)))
            except self.cupy.cuda.memory.OutOfMemoryError as error:
                raise BackendError(
                    f"GPU {self.index} has no room for {size:,} bytes", hint="use a smaller batch"
                ) from error

    def upload(self, pointer: int, array: Array) -> None:
        data = np.ascontiguousarray(array)
        stream = self.cupy.cuda.get_current_stream().ptr
        with self._device:
            self.cupy.cuda.runtime.memcpyAsync(pointer, data.ctypes.data, data.nbytes, 1, stream)
            self.cupy.cuda.runtime.streamSynchronize(stream)  # pageable memory: `data` may go after the return

    def download(self, pointer: int, array: Array) -> None:
        stream = self.cupy.cuda.get_current_stream().ptr
        with self._device:
            self.cupy.cuda.runtime.memcpyAsync(array.ctypes.data, pointer, array.nbytes, 2, stream)
            self.cupy.cuda.runtime.streamSynchronize(stream)

    def record(self, launches: Sequence[Launch]) -> Callable[[], None]:
        """A CUDA graph of the launches; calling it enqueues one graph launch on the caller's stream."""
        for launch in launches:
            if launch.kernel not in self._functions:  # compile before the capture: modules cannot load inside
                self._load(launch.kernel)
        with self._device:
            stream = self.cupy.cuda.Stream(non_blocking=True)
            with stream:
                stream.begin_capture()
                for launch in launches:
                    self._launch(launch)
                graph = stream.end_capture()
        return lambda: graph.launch(self.cupy.cuda.get_current_stream())

    def time(self, launches: Sequence[Launch], repeat: int) -> list[float]:
        """Seconds of each launch by CUDA events."""
        seconds: list[float] = []
        with self._device:
            for launch in launches:
                self._launch(launch)  # warm
                runs: list[float] = []
                for _ in range(repeat):
                    start, stop = self.cupy.cuda.Event(), self.cupy.cuda.Event()
                    start.record()
                    self._launch(launch)
                    stop.record()
                    stop.synchronize()
                    runs.append(self.cupy.cuda.get_elapsed_time(start, stop) / 1e3)
                seconds.append(statistics.median(runs))
        return seconds

    def _launch(self, launch: Launch) -> None:
        """One launch on the current stream; each argument is a 0-d array holding one parameter, by value."""
        kernel, grid, arguments = launch.kernel, launch.grid, launch.arguments
        with self._device:
            function = self._functions.get(kernel) or self._load(kernel)
            parameters = (ctypes.c_void_p * len(arguments))(*(a.ctypes.data for a in arguments))
            x, y, z = (*grid, *[1] * (3 - len(grid)))
            self.cupy.cuda.driver.launchKernel(
                function.ptr, x, y, z, kernel.threads, 1, 1, kernel.shared_bytes,
                self.cupy.cuda.get_current_stream().ptr, ctypes.addressof(parameters), 0,
            )  # fmt: skip

    def synchronize(self) -> None:
        self.cupy.cuda.get_current_stream().synchronize()

    def _load(self, kernel: Kernel) -> Any:
        """Compile one instance. CuPy keeps what it compiled on disk, by source and options: so the folder of headers
        has a name that follows their content, not a random one."""
        texts = sources()
        digest = hashlib.sha256("\0".join(f"{n}\0{t}" for n, t in sorted(texts.items())).encode()).hexdigest()[:24]
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qir"
        folder = cache / f"kernels-{digest}"
        if not folder.exists():
            cache.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(dir=cache))
            for name, text in texts.items():
                (fresh / name).write_text(text)
            try:
                fresh.rename(folder)
            except OSError:  # another process was faster
                shutil.rmtree(fresh, ignore_errors=True)
        module = self.cupy.RawModule(
            code=texts[kernel.source], options=("-std=c++17", f"-I{folder}"), name_expressions=[kernel.expression]
        )
        raw = module.get_function(kernel.expression)
        if kernel.shared_bytes > 48 << 10:
            raw.max_dynamic_shared_size_bytes = kernel.shared_bytes
        self._functions[kernel] = raw.kernel
        return self._functions[kernel]


class _Memory:
    """A CuPy allocation with the address that plans use."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self.pointer = int(memory.ptr)
