"""A device without a GPU: the same .cu sources compiled by the host's C++ compiler against an emulation of CUDA.

For tests and for machines without a GPU; exact and slow.  Memory ends at a guard page, so that a read or a write past
the end of a buffer stops the process instead of passing unseen.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import Any
from weakref import WeakSet

import numpy as np

from qir.errors import BackendError, DataError
from qir.types import Array

from ..arguments import TENSOR_MAP, record
from ..instances import INSTANCES, Kernel, sources
from .emulated_stream import EmulatedEvent, EmulatedStream
from .interface import ImageMap, Launch, Tensor

PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class GuardedMemory:
    """`size` bytes (rounded up to 16) that end where an inaccessible page begins."""

    def __init__(self, size: int) -> None:
        room = -(-max(size, 1) // 16) * 16
        self._length = -(-room // PAGE) * PAGE + PAGE
        base = _LIBC.mmap(None, self._length, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if base in (None, ctypes.c_void_p(-1).value):
            raise BackendError(f"no memory for a buffer of {size} bytes")
        self._base = int(base)  # type: ignore[arg-type]
        _LIBC.mprotect(self._base + self._length - PAGE, PAGE, 0)
        self.pointer = self._base + self._length - PAGE - room
        ctypes.memset(self.pointer, 0xA5, room)  # nothing may count on zeros

    def __del__(self) -> None:
        if hasattr(self, "_base"):
            _LIBC.munmap(self._base, self._length)


class EmulatedHost(GuardedMemory):
    """What stands for page-locked host memory."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.array: Array = np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(self.pointer))[:size]


class EmulatedTensor:
    """A tensor in the emulated device's memory: what a CuPy array is on a GPU."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.memory = GuardedMemory(int(np.prod(self.shape)) * self.dtype.itemsize)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.memory.pointer, False), "version": 3}

    def set(self, array: Array) -> EmulatedTensor:
        """Fill it from a host array, at once."""
        data = np.ascontiguousarray(array, self.dtype)
        ctypes.memmove(self.memory.pointer, data.ctypes.data, data.nbytes)
        return self

    def get(self) -> Array:
        """Its content as it is now, whatever is still enqueued."""
        array = np.empty(self.shape, self.dtype)
        ctypes.memmove(array.ctypes.data, self.memory.pointer, array.nbytes)
        return array


class EmulatedRecording:
    """Launches, one after the other, when the stream gets there."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def launch(self, stream: EmulatedStream) -> None:
        stream.push(self._work)


class EmulatedDevice:
    """Device interface over host memory.

    order: in which order a block's threads run (0 forward, 1 backward, more: shuffled with that seed); asynchronous
    work is done at once in even orders, when it is waited for in odd ones.
    architecture: whose kernels are chosen; what is common to all is emulated as on sm_80.
    clock: seconds that a launch is said to take; default: those of the emulation.
    Raises BackendError when no C++ compiler is found or it fails.
    """

    name = "emulation"
    tensor_maps = True
    specialises = False
    tunes = False

    def __init__(
        self, order: int = 0, clock: Callable[[Launch], float] | None = None, architecture: str = "80"
    ) -> None:  # fmt: skip
        self.order, self.clock, self.architecture = order, clock, architecture
        self.allocations = self.recordings = self.copies = self.timed = 0
        self._waits = [0]
        self._library = _build()
        self._current = EmulatedStream()
        self._streams: WeakSet[EmulatedStream] = WeakSet([self._current])
        self._pinned: WeakSet[EmulatedHost] = WeakSet()

    @property
    def waits(self) -> int:
        """How often a host thread has waited for the device."""
        return self._waits[0]

    def stream(self, given: object = None) -> EmulatedStream:
        if given is None:
            return self._current
        if not isinstance(given, EmulatedStream):
            raise DataError(f"a stream of the emulation expected, not a {type(given).__name__}")
        self._streams.add(given)
        return given

    def allocate(self, size: int, what: str = "a buffer") -> GuardedMemory:
        self.allocations += 1
        return GuardedMemory(size)

    def pinned(self, size: int) -> EmulatedHost:
        self.allocations += 1
        memory = EmulatedHost(size)
        self._pinned.add(memory)
        return memory

    def is_pinned(self, array: Array) -> bool:
        at = array.ctypes.data
        return any(m.pointer <= at < m.pointer + m.array.nbytes for m in self._pinned)

    def upload(self, pointer: int, array: Array) -> None:
        data = np.ascontiguousarray(array)
        ctypes.memmove(pointer, data.ctypes.data, data.nbytes)

    def copy(self, to: int, source: int, size: int, stream: EmulatedStream) -> None:
        self.copies += 1

        def move() -> None:
            ctypes.memmove(to, source, size)

        stream.push(move)

    def tensor_map(self, image: ImageMap) -> Array:
        fields = {k: v for k, v in vars(image).items() if k not in ("pointer", "span")}
        return record(TENSOR_MAP, data=image.pointer, channels=image.span, **fields)

    def event(self) -> EmulatedEvent:
        return EmulatedEvent(self._waits)

    def prepare(self, kernels: Iterable[Kernel]) -> None:
        """All kernels are in one library here."""

    def record(self, launches: Sequence[Launch]) -> EmulatedRecording:
        self.recordings += 1
        for x in launches:
            given = [a.nbytes for a in x.arguments]
            if given != self.parameter_sizes(x.kernel):
                raise BackendError(f"arguments of {given} bytes given", where=x.kernel.expression)

        def replay() -> None:
            for x in launches:
                self._launch(x.kernel, x.grid, x.arguments)

        return EmulatedRecording(replay)

    def adopt(self, tensor: object, stream: EmulatedStream) -> Tensor:
        if not isinstance(tensor, EmulatedTensor):
            raise DataError(f"a {type(tensor).__name__} on a GPU; this device is an emulation")
        return Tensor(tensor.memory.pointer, tensor.dtype, tensor.shape, True, tensor)

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any], stream: EmulatedStream) -> EmulatedTensor:
        self.allocations += 1
        return EmulatedTensor(shape, dtype)

    def time(self, launches: Sequence[Launch], repeat: int) -> list[float]:
        """By `clock`, or host seconds of the emulation: what a profile looks like, not what a GPU does."""
        self.timed += len(launches)
        if self.clock is not None:
            return [self.clock(launch) for launch in launches]
        seconds: list[float] = []
        for launch in launches:
            runs: list[float] = []
            for _ in range(repeat):
                start = perf_counter()
                self._launch(launch.kernel, launch.grid, launch.arguments)
                runs.append(perf_counter() - start)
            seconds.append(statistics.median(runs))
        return seconds

    def parameter_sizes(self, kernel: Kernel) -> list[int]:
        """Bytes of each parameter, as the compiler counts them."""
        sizes = (ctypes.c_uint * 32)()
        count: int = self._library[f"sizes_{_symbol(kernel)}"](sizes)
        return list(sizes[:count])

    def ceilings(self) -> tuple[float, float]:
        return 1.0, 1.0

    def _launch(self, kernel: Kernel, grid: Sequence[int], arguments: Sequence[Array]) -> None:
        call = self._library[_symbol(kernel)]
        pointers = (ctypes.c_void_p * len(arguments))(*(a.ctypes.data for a in arguments))
        triple = ctypes.c_uint * 3
        call(
            triple(*grid, *[1] * (3 - len(grid))), triple(kernel.threads, 1, 1), ctypes.c_size_t(kernel.shared_bytes),
            ctypes.c_uint(self.order), pointers,
        )  # fmt: skip

    def synchronize(self) -> None:
        self._waits[0] += 1
        for stream in list(self._streams):
            stream.synchronize()


def _symbol(kernel: Kernel) -> str:
    return f"launch_{INSTANCES.index(kernel)}"


def _build() -> ctypes.CDLL:
    """Compile all instances into one library, cached under the user's cache folder by content."""
    folder = resources.files("qir.runtime.cuda") / "emulation"
    texts = {**sources(), **{f"emulation/{f.name}": f.read_text() for f in folder.iterdir() if f.is_file()}}
    main = [
        '#include "cuda_emulation.h"', *(f'#include "{s}"' for s in sorted({k.source for k in INSTANCES})),
        "template <class... A> int sizes_of(void (*)(A...), unsigned* to) "
        "{ return ((*to++ = sizeof(A)), ...), int(sizeof...(A)); }",
    ]  # fmt: skip
    for k in INSTANCES:
        main.append(
            f'extern "C" void {_symbol(k)}(const unsigned* grid, const unsigned* threads, std::size_t shared, '
            f"unsigned order, void** a) {{ emu::launch(&{k.expression}, grid, threads, shared, order, a); }}"
        )
        main.append(f'extern "C" int sizes_{_symbol(k)}(unsigned* to) {{ return sizes_of(&{k.expression}, to); }}')
    texts["main.cpp"] = "\n".join(main) + "\n"
    digest = hashlib.sha256("\0".join(f"{n}\0{t}" for n, t in sorted(texts.items())).encode()).hexdigest()[:24]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qir"
    target = cache / f"emulation-{digest}.so"
    if not target.exists():
        _compile(texts, target)
    return ctypes.CDLL(str(target))


def _compile(texts: dict[str, str], target: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BackendError("the CUDA emulation needs a C++ compiler", hint="install g++ or set CXX")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        for name, text in texts.items():
            path = Path(work) / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        # the emulation's own ptx.cuh comes first on the path of <...> includes
        command = [
            compiler,
            "-O2",
            "-std=c++17",
            "-fPIC",
            "-shared",
            "-I",
            "emulation",
            "-I",
            ".",
            "main.cpp",
            "-o",
            "out.so",
        ]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BackendError(f"compiling the CUDA emulation failed: {done.stderr[:2000]}")
        os.replace(Path(work) / "out.so", target)
