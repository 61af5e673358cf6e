"""How the CUDA runtime runs: streams, staging, callers' tensors, plans kept; on the emulated device.

Its streams do nothing before somebody waits for them, so that a missing wait or a staging buffer that is written too
early gives wrong results here.
"""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qir.errors import BackendError, DataError
from qir.graph import Graph
from qir.runtime.cuda.device.emulated import EmulatedDevice, EmulatedTensor
from qir.runtime.cuda.device.emulated_stream import EmulatedStream
from qir.runtime.cuda.runner import PATIENCE
from qir.runtime.session import Session
from qir.types import Array

pytestmark = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)


class Bench:
    """A small network, its reference, and a session on an emulated device."""

    def __init__(self, graph: Graph, **options: Any) -> None:
        self.graph = graph
        self.device = EmulatedDevice()
        self.session = Session(graph, "cuda", device=self.device, **options)
        self._reference = Session(graph, "reference")
        self._rng = np.random.default_rng(0)

    def image(self, batch: int = 2) -> Array:
        return self._rng.uniform(-2, 8, (batch, 3, 8, 8)).astype(np.float32)

    def want(self, x: Array) -> Array:
        return self._reference.run({"x": x})["y"]

    def on_device(self, x: Array) -> EmulatedTensor:
        return EmulatedTensor(x.shape, x.dtype).set(x)


@pytest.fixture
def bench(two_convs: Callable[..., Graph]) -> Callable[..., Bench]:
    return lambda **options: Bench(two_convs(), **options)


def test_host_arrays_of_any_layout_and_batch(bench: Callable[..., Bench]) -> None:
    b = bench()
    for x in (b.image(3), np.asfortranarray(b.image(1)), b.image(4)[::2]):
        y = b.session.run({"x": x})["y"]
        assert isinstance(y, np.ndarray) and y.flags.owndata
        np.testing.assert_array_equal(y, b.want(x))


def test_what_speaks_only_dlpack(bench: Callable[..., Bench]) -> None:
    class Foreign:
        def __init__(self, array: Array) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    b = bench()
    x = b.image()
    np.testing.assert_array_equal(b.session.run({"x": Foreign(x)})["y"], b.want(x))


def test_many_runs_under_way(bench: Callable[..., Bench]) -> None:
    """More than there are staging buffers, asked for in the opposite order; what is fed may change after the call."""
    b = bench()
    images = [b.image() for _ in range(5)]
    wanted = [b.want(x) for x in images]
    pending = []
    for x in images:
        pending.append(b.session.run_async({"x": x}))
        x[:] = 0
    assert not pending[-1].done
    for p, want in zip(reversed(pending), reversed(wanted), strict=True):
        np.testing.assert_array_equal(p.result()["y"], want)
        assert p.done and p.result()["y"] is p.result()["y"]


def test_results_nobody_waits_for(bench: Callable[..., Bench]) -> None:
    b = bench()
    for _ in range(3):
        b.session.run_async({"x": b.image()})
    x = b.image()
    np.testing.assert_array_equal(b.session.run({"x": x})["y"], b.want(x))


def test_a_run_allocates_nothing_and_waits_once(bench: Callable[..., Bench]) -> None:
    b = bench()
    x = b.image()
    b.session.executor.prepare(2)
    device = b.device
    before = device.allocations, device.recordings
    for _ in range(20):
        waits = device.waits
        b.session.run({"x": x})
        assert device.waits == waits + 1
    assert (device.allocations, device.recordings) == before


def test_device_tensors_stay_on_the_device(bench: Callable[..., Bench]) -> None:
    b = bench()
    x, y = b.on_device(b.image()), EmulatedTensor((2, 4, 8, 8), np.dtype(np.float32))
    before = b.device.waits
    first = b.session.run({"x": x})["y"]
    assert isinstance(first, EmulatedTensor) and b.device.waits == before  # in order on the stream, nobody waits
    assert b.session.run({"x": x}, out={"y": y})["y"] is y
    assert b.device.waits == before
    b.device.synchronize()
    for got in (first, y):
        np.testing.assert_array_equal(got.get(), b.want(x.get()))


def test_the_same_device_tensors_again_are_not_copied(bench: Callable[..., Bench]) -> None:
    b = bench()
    pairs = [(b.on_device(b.image()), EmulatedTensor((2, 4, 8, 8), np.dtype(np.float32))) for _ in range(6)]
    for n in range(3):  # more pairs than recordings are kept
        for x, y in pairs:
            x.set(b.image())
            y.set(np.zeros(y.shape, np.float32))
            b.session.run({"x": x}, out={"y": y})
            b.device.synchronize()
            np.testing.assert_array_equal(y.get(), b.want(x.get()), err_msg=str(n))

    def counts() -> tuple[int, int, int, int]:
        return b.device.copies, b.device.allocations, b.device.recordings, b.device.waits

    before = counts()
    for x, y in pairs * 5:  # no graph makes room for another while its own turn comes round
        b.session.run({"x": x}, out={"y": y})
    assert counts() == (before[0] + 2 * 2 * 5, *before[1:])
    x, y = pairs[-1]
    for _ in range(PATIENCE):  # the others stay away
        b.session.run({"x": x}, out={"y": y})
    before = counts()
    for _ in range(5):
        b.session.run({"x": x}, out={"y": y})
    assert counts() == before
    b.device.synchronize()
    np.testing.assert_array_equal(y.get(), b.want(x.get()))


def test_an_output_over_its_input(bench: Callable[..., Bench]) -> None:
    """x and y in one piece of memory: y is stored when x has been read."""
    b = bench()
    x = b.image()
    both = EmulatedTensor((2, 4, 8, 8), np.dtype(np.float32))
    view = EmulatedTensor(x.shape, x.dtype)
    view.memory = both.memory
    for _ in range(3):
        view.set(x)
        b.session.run({"x": view}, out={"y": both})
        b.device.synchronize()
        np.testing.assert_array_equal(both.get(), b.want(x))


def test_a_misaligned_tensor_is_copied(bench: Callable[..., Bench]) -> None:
    b = bench()
    x = b.image()
    memory = EmulatedTensor((x.size + 1,), np.dtype(np.float32)).set(np.append(0, x).astype(np.float32))
    tensor = EmulatedTensor(x.shape, x.dtype)
    shifted, shifted.pointer = memory.memory, memory.memory.pointer + 4
    tensor.memory = shifted
    for _ in range(3):
        np.testing.assert_array_equal(b.session.run({"x": tensor}, where="host")["y"], b.want(x))


def test_page_locked_arrays_need_no_staging(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.session.executor.prepare(2)
    memory = b.device.pinned(2 * 3 * 64 * 4), b.device.pinned(2 * 4 * 64 * 4)
    x = memory[0].array.view(np.float32).reshape(2, 3, 8, 8)
    y = memory[1].array.view(np.float32).reshape(2, 4, 8, 8)
    x[:] = first = b.image()
    pending = b.session.run_async({"x": x}, out={"y": y})
    x[:] = second = b.image()  # read when the stream gets there: the caller's to keep until then
    assert pending.result()["y"] is y
    np.testing.assert_array_equal(y, b.want(second))
    assert not np.array_equal(b.want(first), y)


def test_where_results_go(bench: Callable[..., Bench]) -> None:
    b = bench()
    x = b.image()
    target = np.zeros((2, 4, 8, 8), np.float32)
    assert b.session.run({"x": b.on_device(x)}, out={"y": target})["y"] is target
    np.testing.assert_array_equal(target, b.want(x))
    y = b.session.run({"x": x}, where="device")["y"]
    b.device.synchronize()
    assert isinstance(y, EmulatedTensor)
    np.testing.assert_array_equal(y.get(), b.want(x))


@pytest.mark.parametrize("lanes", [1, 2])
def test_streams_share_a_session(bench: Callable[..., Bench], lanes: int) -> None:
    b = bench(lanes=lanes)
    streams = [EmulatedStream() for _ in range(3)]
    images = [b.image() for _ in range(9)]
    pending = [b.session.run_async({"x": x}, stream=streams[i % 3]) for i, x in enumerate(images)]
    for i in (8, 0, 4, 1, 7, 2, 6, 3, 5):
        np.testing.assert_array_equal(pending[i].result()["y"], b.want(images[i]))


def test_device_results_in_order_over_streams(bench: Callable[..., Bench]) -> None:
    b = bench()
    one, two = EmulatedStream(), EmulatedStream()
    x, z = b.image(), b.image()
    first: Any = b.session.run({"x": b.on_device(x)}, stream=one)["y"]
    second: Any = b.session.run({"x": b.on_device(z)}, stream=two)["y"]
    two.synchronize()  # the run on `one` comes first: they share an arena
    np.testing.assert_array_equal(second.get(), b.want(z))
    np.testing.assert_array_equal(first.get(), b.want(x))


def test_threads_and_sessions(bench: Callable[..., Bench]) -> None:
    device = EmulatedDevice()
    benches = [bench() for _ in range(2)]
    for b in benches:
        b.session = Session(b.graph, "cuda", device=device)
    failed: list[str] = []

    def work(b: Bench, seed: int) -> None:
        rng, stream = np.random.default_rng(seed), EmulatedStream()
        for _ in range(4):
            x = rng.uniform(-2, 8, (1 + seed % 2, 3, 8, 8)).astype(np.float32)
            if not np.array_equal(b.session.run({"x": x}, stream=stream)["y"], b.want(x)):
                failed.append(f"seed {seed}")

    threads = [threading.Thread(target=work, args=(benches[i % 2], i)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed


def test_plans_used_longest_ago_go_first(bench: Callable[..., Bench]) -> None:
    b = bench(plans=2)
    executor = b.session.executor
    b.session.run({"x": b.image(1)})
    b.session.run({"x": b.image(2)})
    arenas = {dict(key[0])["N"]: weakref.ref(lanes[0].arena) for key, lanes in executor._runners.items()}
    b.session.run({"x": b.image(1)})
    pending = b.session.run_async({"x": b.image(2)})
    b.session.run({"x": b.image(1)})
    x = b.image(3)
    np.testing.assert_array_equal(b.session.run({"x": x})["y"], b.want(x))
    gc.collect()
    assert arenas[1]() is not None and arenas[2]() is None
    assert pending.result()["y"].shape[0] == 2  # what was under way has been finished before its memory went
    assert {dict(key[0])["N"] for key in executor._runners} == {1, 3}


def test_intermediate_values_too(bench: Callable[..., Bench]) -> None:
    b = bench()
    x = b.image()
    got = b.session.run({"x": x}, outputs=["c0", "y"])
    want = Session(b.graph, "reference").run({"x": x}, outputs=["c0", "y"])
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_out_of_memory_says_what_is_needed(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()

    def refuse(size: int, what: str = "a buffer") -> Any:
        raise BackendError(f"no room for {what}")

    b.session.run({"x": b.image(1)})
    monkeypatch.setattr(b.device, "allocate", refuse)
    with pytest.raises(BackendError, match=r"a batch of 7: activations take [\d,]+ bytes, constants [\d,]+"):
        b.session.run({"x": b.image(7)})
    monkeypatch.undo()
    assert b.session.run({"x": b.image(7)})["y"].shape[0] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": {"z": np.zeros(1)}}, "is no output"),
        ({"out": {"y": np.zeros((2, 4, 8, 7), np.float32)}}, "expected"),
        ({"out": {"y": np.zeros((2, 4, 8, 8), np.float64)}}, "expected"),
        ({"stream": 3}, "stream"),
        ({"where": "gpu"}, '"host" or "device"'),
    ],
)
def test_wrong_options(bench: Callable[..., Bench], options: dict[str, Any], message: str) -> None:
    b = bench()
    with pytest.raises(DataError, match=message):
        b.session.run({"x": b.image()}, **options)


def test_wrong_device_tensors(bench: Callable[..., Bench]) -> None:
    b = bench()
    with pytest.raises(DataError, match="float32"):
        b.session.run({"x": EmulatedTensor((2, 3, 8, 8), np.dtype(np.int8))})
    with pytest.raises(DataError, match="shape"):
        b.session.run({"x": EmulatedTensor((2, 3, 8), np.dtype(np.float32))})

    class Elsewhere:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    with pytest.raises(DataError, match="Elsewhere"):
        b.session.run({"x": Elsewhere()})
    with pytest.raises(DataError, match="memory of a GPU"):
        Session(b.graph, "reference").run({"x": Elsewhere()})
    with pytest.raises(BackendError, match="asynchronously"):
        Session(b.graph, "reference").run_async({"x": b.image()})
