"""The layer over CuPy: on a stand-in for CuPy whose streams and kernels are the emulation's, and CuPy's real names.

The stand-in has the calls of CuPy 13 and 14 that the layer uses, with their signatures, and nothing else.
"""

from __future__ import annotations

import ctypes
import inspect
import re
import shutil
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qir.errors import BackendError, DataError
from qir.graph import Graph
from qir.runtime.cuda.device import cupy_modules
from qir.runtime.cuda.device.cupy_streams import Handle, handle_of
from qir.runtime.cuda.device.emulated import EmulatedDevice, GuardedMemory
from qir.runtime.cuda.device.emulated_stream import EmulatedEvent, EmulatedStream
from qir.runtime.cuda.instances import INSTANCES
from qir.runtime.session import Session

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)


class StandIn(ModuleType):
    """A module `cupy` with one GPU."""

    def __init__(self, capability: str = "90") -> None:
        super().__init__("cupy")
        self.emulation = EmulatedDevice()
        self.room = 1 << 30
        self.streams: dict[int, EmulatedStream] = {0: EmulatedStream()}
        self.events: dict[int, EmulatedEvent] = {}
        self.captures: dict[int, list[Callable[[], None]]] = {}
        self.pinned: list[tuple[int, int]] = []
        self.functions: list[str] = []
        world, modules = self, self.functions

        class RuntimeFailure(RuntimeError):
            pass

        class OutOfMemoryError(MemoryError):
            pass

        class DeviceOf:
            def __init__(self, index: int) -> None:
                self.id, self.compute_capability = index, capability

            def __enter__(self) -> None: ...
            def __exit__(self, *error: object) -> None: ...
            def synchronize(self) -> None:
                for stream in world.streams.values():
                    stream.synchronize()

        class Stream:
            def __init__(self, non_blocking: bool = False) -> None:
                self.ptr = len(world.streams) + 16
                world.streams[self.ptr] = EmulatedStream()

            def begin_capture(self) -> None:
                world.captures[self.ptr] = []

            def end_capture(self) -> Any:
                work = world.captures.pop(self.ptr)

                def launch(stream: Any) -> None:
                    for item in work:
                        world.streams[stream.ptr].push(item)

                return SimpleNamespace(launch=launch, upload=lambda stream: None)

            def synchronize(self) -> None:
                world.streams[self.ptr].synchronize()

        class Event:
            def __init__(self, disable_timing: bool = False) -> None:
                self.ptr = len(world.events) + 1
                world.events[self.ptr] = EmulatedEvent(world.emulation._waits)

            @property
            def done(self) -> bool:
                return world.events[self.ptr].done

            def record(self, stream: Any) -> None:
                world.events[self.ptr].record(world.streams[stream.ptr])

            def synchronize(self) -> None:
                world.events[self.ptr].wait()

        def pinned(size: int) -> Any:
            memory: Any = type("Pinned", (ctypes.c_uint8 * size,), {})()  # has a buffer and a pointer, as CuPy's
            memory.ptr = ctypes.addressof(memory)
            world.pinned.append((memory.ptr, size))
            return memory

        class Block(GuardedMemory):
            def __init__(self, size: int) -> None:
                if size > world.room:
                    raise OutOfMemoryError("out of memory")
                super().__init__(size)
                self.ptr, self.size = self.pointer, size

        class NdArray:
            def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
                self.shape, self.dtype = shape, np.dtype(dtype)
                self.data = Block(int(np.prod(shape)) * self.dtype.itemsize)
                self.device, self.flags = DeviceOf(0), SimpleNamespace(c_contiguous=True)

            @property
            def __cuda_array_interface__(self) -> Any:
                return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.data.ptr, False), "version": 3}

            def set(self, array: Any) -> NdArray:
                ctypes.memmove(self.data.ptr, np.ascontiguousarray(array).ctypes.data, array.nbytes)
                return self

            def get(self) -> Any:
                for stream in world.streams.values():
                    stream.synchronize()
                array = np.empty(self.shape, self.dtype)
                ctypes.memmove(array.ctypes.data, self.data.ptr, array.nbytes)
                return array

        def push(stream: int, work: Callable[[], None]) -> None:
            if stream in world.captures:
                world.captures[stream].append(work)
            else:
                world.streams[stream].push(work)

        def copy(dst: int, src: int, size: int, kind: int, stream: int) -> None:
            def move() -> None:
                ctypes.memmove(dst, src, size)

            push(stream, move)

        def launch_kernel(
            f: int, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared: int, stream: int, params: int,
            extra: int,
        ) -> None:  # fmt: skip
            general = re.sub(r"(, )?\d+u>$", ">", modules[f])  # the emulation has one instance for all programs
            kernel = next(k for k in INSTANCES if k.expression == general)
            assert (bx, by, bz, shared, extra) == (kernel.threads, 1, 1, kernel.shared_bytes, 0)
            pointers = (ctypes.c_void_p * 32).from_address(params)
            sizes = world.emulation.parameter_sizes(kernel)
            values = [  # by value, when the launch is made
                np.frombuffer(ctypes.string_at(p, n), np.uint8) for p, n in zip(pointers, sizes, strict=False)
            ]  # fmt: skip
            push(stream, lambda: world.emulation._launch(kernel, (gx, gy, gz), values))

        def get_function(module: int, name: str) -> int:
            modules.append(name)
            return len(modules) - 1

        def hold(stream: int, event: int) -> None:
            world.events[event].hold(world.streams[stream])

        def kind_of(pointer: int) -> Any:
            return SimpleNamespace(type=int(any(0 <= pointer - at < size for at, size in world.pinned)))

        runtime = SimpleNamespace(
            CUDARuntimeError=RuntimeFailure, driverGetVersion=lambda: 13000,
            getDeviceCount=lambda: 1, setDevice=lambda device: None,
            getDeviceProperties=lambda device: {"name": b"stand-in"}, memGetInfo=lambda: (world.room, 1 << 30),
            memcpyAsync=copy, memcpyHostToDevice=1, memcpyDefault=4, memoryTypeHost=1,
            streamSynchronize=lambda stream: world.streams[stream].synchronize(), streamWaitEvent=hold,
            eventRecord=lambda event, stream: world.events[event].record(world.streams[stream]),
            pointerGetAttributes=kind_of, deviceGetAttribute=lambda attrib, device: attrib,
            cudaDevAttrMultiProcessorCount=132, cudaDevAttrClockRate=1_980_000, cudaDevAttrMemoryClockRate=3_201_000,
            cudaDevAttrGlobalMemoryBusWidth=6144,
        )  # fmt: skip
        driver = SimpleNamespace(
            CUDADriverError=RuntimeFailure, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
            moduleLoadData=lambda image: 1, moduleGetFunction=get_function, launchKernel=launch_kernel,
            funcSetAttribute=lambda f, attribute, value: None,
        )  # fmt: skip
        self.ndarray, self.empty = NdArray, NdArray
        self.from_dlpack: Any = None
        self.null = SimpleNamespace(ptr=0)
        self.cuda = SimpleNamespace(
            runtime=runtime, driver=driver, Device=DeviceOf, Stream=Stream, Event=Event, alloc=Block,
            alloc_pinned_memory=pinned, memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            get_current_stream=lambda: self.null, get_elapsed_time=lambda start, end: 2.0,
        )  # fmt: skip


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., StandIn]:
    import qir.runtime.cuda.device.cupy_device as layer

    def build(**options: Any) -> StandIn:
        made = StandIn(**options)
        monkeypatch.setattr(layer, "import_module", lambda name: made)
        return made

    monkeypatch.setenv("QIR_CUDA_TUNE", "0")
    monkeypatch.setattr(cupy_modules, "_loaded", {})
    monkeypatch.setattr(cupy_modules, "Nvrtc", lambda newest: SimpleNamespace(version=lambda: (13, 0)))
    monkeypatch.setattr(cupy_modules, "cubin", lambda kernel, architecture, compiler: (kernel.expression, b"cubin"))
    return build


def images(seed: int) -> Any:
    return np.random.default_rng(seed).uniform(-2, 8, (2, 3, 8, 8)).astype(np.float32)


@needs_compiler
def test_runs_as_the_reference_says(stand_in: Callable[..., StandIn], two_convs: Callable[..., Graph]) -> None:
    cupy = stand_in()
    graph = two_convs()
    session, reference = Session(graph, "cuda"), Session(graph, "reference")
    assert session.executor.device.name == "stand-in" and session.executor.device.architecture == "90a"
    pending = [session.run_async({"x": images(i)}) for i in range(4)]
    for i in (3, 1, 0, 2):
        np.testing.assert_array_equal(pending[i].result()["y"], reference.run({"x": images(i)})["y"])
    other = cupy.cuda.Stream()
    x, y = cupy.empty((2, 3, 8, 8), np.float32).set(images(7)), cupy.empty((2, 4, 8, 8), np.float32)
    want = reference.run({"x": images(7)})["y"]
    for stream in (None, other, None):
        got = session.run({"x": x}, out={"y": y}, stream=stream)["y"]
        assert got is y
        np.testing.assert_array_equal(y.get(), want)
        np.testing.assert_array_equal(session.run({"x": x}, where="host", stream=stream)["y"], want)
    loaded = len(cupy.functions)
    Session(graph, "cuda").run({"x": images(1)})
    assert len(cupy.functions) == loaded  # modules are the process's, not the session's


@needs_compiler
def test_layers_are_timed_as_graphs(
    stand_in: Callable[..., StandIn], two_convs: Callable[..., Graph], tmp_path: Any
) -> None:
    """Two milliseconds between the events, for 8 launches in one graph."""
    stand_in()
    graph = two_convs()
    session = Session(graph, "cuda", tune=tmp_path)
    want = Session(graph, "reference").run({"x": images(3)})["y"]
    np.testing.assert_array_equal(session.run({"x": images(3)})["y"], want)
    entries = session.executor.table._measured
    assert entries and all(s == pytest.approx(2e-3 / 8) for e in entries.values() for s in e["seconds"].values())


@needs_compiler
def test_tensors_of_other_packages(stand_in: Callable[..., StandIn], two_convs: Callable[..., Graph]) -> None:
    """By DLPack for the stream of the run; by `__cuda_array_interface__`, with its stream waited for; or refused."""
    cupy = stand_in()
    graph = two_convs()
    session, want = Session(graph, "cuda"), Session(graph, "reference").run({"x": images(7)})["y"]
    inner = cupy.empty((2, 3, 8, 8), np.float32).set(images(7))
    asked: list[dict[str, Any]] = []

    class Torch:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self, **options: Any) -> Any:
            asked.append(options)
            return inner

    cupy.from_dlpack = lambda tensor: tensor.__dlpack__(stream=0, max_version=(1, 0))  # as CuPy asks
    side = cupy.cuda.Stream()
    for stream, number in ((None, 1), (side, side.ptr)):
        np.testing.assert_array_equal(session.run({"x": Torch()}, where="host", stream=stream)["y"], want)
        assert asked[-1] == {"stream": number, "max_version": (1, 0)}

    late = cupy.empty((2, 3, 8, 8), np.float32)
    cupy.streams[side.ptr].push(lambda: late.set(images(7)) and None)
    interface = {**late.__cuda_array_interface__, "stream": side.ptr}
    numba = SimpleNamespace(__cuda_array_interface__=interface)
    np.testing.assert_array_equal(session.run({"x": numba}, where="host")["y"], want)
    for broken in ({**interface, "mask": numba}, {**interface, "strides": (4, 4, 4, 4)}):
        with pytest.raises(DataError):
            session.run({"x": SimpleNamespace(__cuda_array_interface__=broken)})

    def refuse(tensor: Any) -> Any:
        raise BufferError("requires grad")

    cupy.from_dlpack = refuse
    with pytest.raises(DataError, match="requires grad"):
        session.run({"x": Torch()})
    inner.device.id = 1
    with pytest.raises(DataError, match="GPU 1"):
        session.run({"x": inner})


@needs_compiler
def test_page_locked_memory_is_told_apart(stand_in: Callable[..., StandIn]) -> None:
    from qir.runtime.cuda.device.cupy_device import CupyDevice

    stand_in()
    device = CupyDevice()
    memory = device.pinned(100)
    assert memory.array.nbytes == 100 and device.is_pinned(memory.array) and not device.is_pinned(np.zeros(3))


@needs_compiler
def test_ceilings_are_the_data_sheet_s(stand_in: Callable[..., StandIn]) -> None:
    """H200: 1,979 TOP/s of dense int8, 4.8 TB/s; the boost clock is a little above the sheet's."""
    from qir.runtime.cuda.device.cupy_device import CupyDevice

    stand_in()
    tops, gbs = CupyDevice().ceilings()
    assert tops == pytest.approx(1979, rel=0.1) and gbs == pytest.approx(4800, rel=0.05)


@needs_compiler
def test_what_can_be_missing(stand_in: Callable[..., StandIn], two_convs: Callable[..., Graph]) -> None:
    graph = two_convs()
    stand_in(capability="70")
    with pytest.raises(BackendError, match=r"sm_70.*sm_75"):
        Session(graph, "cuda")
    cupy = stand_in()
    session = Session(graph, "cuda")
    session.run({"x": images(0)[:1]})
    cupy.room = 500
    with pytest.raises(BackendError, match=r"no room for a batch of 2: activations take .* asked for, 500 of"):
        session.run({"x": images(0)})
    cupy = stand_in()
    cupy.cuda.runtime.getDeviceCount = lambda: 0
    with pytest.raises(BackendError, match="no NVIDIA GPU"):
        Session(graph, "cuda")

    def insufficient() -> int:
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorInsufficientDriver")

    cupy.cuda.runtime.getDeviceCount = insufficient
    with pytest.raises(BackendError, match="cudaErrorInsufficientDriver"):
        Session(graph, "cuda")


@needs_compiler
def test_failures_of_the_driver_name_the_kernel(
    stand_in: Callable[..., StandIn], two_convs: Callable[..., Graph]
) -> None:
    cupy = stand_in()
    session = Session(two_convs(), "cuda")

    def fail(*arguments: object) -> int:
        raise cupy.cuda.driver.CUDADriverError("CUDA_ERROR")

    good = cupy.cuda.driver.launchKernel
    cupy.cuda.driver.launchKernel = fail
    with pytest.raises(BackendError, match=r"qir::.*cannot be launched on .* blocks: CUDA_ERROR"):
        session.run({"x": images(0)})
    cupy.cuda.driver.launchKernel, cupy.cuda.driver.moduleLoadData = good, fail
    cupy_modules._loaded.clear()
    with pytest.raises(BackendError, match=r"sm_90a.*NVRTC is 13\.0"):
        session.run({"x": images(0)})


@needs_compiler
def test_memory_is_free_of_earlier_work(stand_in: Callable[..., StandIn]) -> None:
    """CuPy's pool hands on what was freed in the order of the current stream; plans are run on any."""
    from qir.runtime.cuda.device.cupy_device import CupyDevice

    cupy = stand_in()
    device, side = CupyDevice(), cupy.cuda.Stream()
    done: list[int] = []
    cupy.null.ptr = side.ptr
    cupy.streams[side.ptr].push(lambda: done.append(1))
    device.allocate(100)
    assert done == [1]


@needs_compiler
def test_no_room_for_results_or_graphs(stand_in: Callable[..., StandIn], two_convs: Callable[..., Graph]) -> None:
    cupy = stand_in()
    session = Session(two_convs(), "cuda")
    session.run({"x": images(0)})
    x, cupy.room = cupy.empty((2, 3, 8, 8), np.float32).set(images(1)), 500
    with pytest.raises(BackendError, match=r"no room for a result: 2,048 bytes asked for, 500 of"):
        session.run({"x": x})
    cupy.room = 1 << 30

    def fail(self: Any) -> Any:
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorMemoryAllocation")

    cupy.cuda.Stream.end_capture = fail
    with pytest.raises(BackendError, match=r"launches make no CUDA graph: cudaErrorMemoryAllocation"):
        session.run({"x": images(0)[:1]})


def test_streams_of_other_packages() -> None:
    protocol = type("Core", (), {"__cuda_stream__": lambda self: (0, 9)})()
    for given, ptr in ((7, 7), (SimpleNamespace(ptr=5), 5), (SimpleNamespace(cuda_stream=6), 6), (protocol, 9)):
        assert handle_of(given).ptr == ptr and handle_of(given) == Handle(ptr)
    assert handle_of(protocol).__cuda_stream__() == (0, 9)
    with pytest.raises(DataError, match="no CUDA stream"):
        handle_of("default")


def test_cubins_are_kept(tmp_path: Any) -> None:
    """By source, compiler, architecture and kernel; a folder that cannot be written costs time only."""
    asked: list[str] = []

    def compile_(source: str, kernels: Any, architecture: str) -> Any:
        asked.append(architecture)
        return b"\x7fELF\nrest", {kernels[0].expression: "_Z1k"}, ""

    compiler: Any = SimpleNamespace(version=lambda: (13, 0), compile=compile_)
    kernel = INSTANCES[0]
    for architecture in ("90a", "90a", "80", "90a"):
        assert cupy_modules.cubin(kernel, architecture, compiler, tmp_path) == ("_Z1k", b"\x7fELF\nrest")
    assert asked == ["90a", "80"]
    (tmp_path / "file").write_text("")
    assert cupy_modules.cubin(kernel, "75", compiler, tmp_path / "file")[0] == "_Z1k"
    assert cupy_modules.architecture_of(89) == "89" and cupy_modules.architecture_of(90) == "90a"


def test_architectures_that_a_gpu_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine code is bound to a generation: what would not load is refused by name."""
    for asked, capability in (("90", 90), ("90a", 90), ("80", 89), ("75", 75)):
        monkeypatch.setenv(cupy_modules.ARCHITECTURE, asked)
        assert cupy_modules.architecture_of(capability) == asked
    for asked, capability in (("80", 90), ("89", 86), ("90a", 100), ("100", 90), ("80a", 89), ("hopper", 90)):
        monkeypatch.setenv(cupy_modules.ARCHITECTURE, asked)
        with pytest.raises(BackendError, match=f"{asked}: this GPU runs code of sm_.* to sm_{capability}"):
            cupy_modules.architecture_of(capability)


def test_cupy_has_what_is_used() -> None:
    """Where CuPy is installed (no GPU needed): the names, and the parameters that its compiled functions document."""
    cupy = pytest.importorskip("cupy")
    runtime, driver = cupy.cuda.runtime, cupy.cuda.driver
    parameters = {
        runtime.memcpyAsync: 5, runtime.streamSynchronize: 1, runtime.streamWaitEvent: 3, runtime.eventRecord: 2,
        runtime.pointerGetAttributes: 1, runtime.deviceGetAttribute: 2, runtime.setDevice: 1,
        driver.moduleLoadData: 1, driver.moduleGetFunction: 2, driver.funcSetAttribute: 3, driver.launchKernel: 11,
    }  # fmt: skip
    for function, count in parameters.items():
        listed = re.match(r"\w+\(([^)]*)\)", inspect.getdoc(function) or "")
        assert listed and len(listed[1].split(",")) == count, function
    for name in ("memcpyHostToDevice", "memcpyDefault", "memoryTypeHost", "cudaDevAttrClockRate",
                 "cudaDevAttrMemoryClockRate", "cudaDevAttrGlobalMemoryBusWidth", "cudaDevAttrMultiProcessorCount",
                 "getDeviceCount", "getDeviceProperties", "memGetInfo",
                 "driverGetVersion", "CUDARuntimeError"):  # fmt: skip
        assert hasattr(runtime, name), name
    assert driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES == 8 and issubclass(driver.CUDADriverError, Exception)
    for name in ("begin_capture", "end_capture", "synchronize"):
        assert hasattr(cupy.cuda.Stream, name)
    for name in ("upload", "launch"):
        assert hasattr(cupy.cuda.Graph, name)
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    assert callable(cupy.cuda.alloc) and callable(cupy.cuda.alloc_pinned_memory) and callable(cupy.from_dlpack)
    assert callable(cupy.cuda.get_elapsed_time) and callable(cupy.cuda.get_current_stream)
