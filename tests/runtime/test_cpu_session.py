"""The CPU session: threads, bad input, memory, profile, kernels without numba, the command line's bench."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qir
from qir.errors import DataError
from qir.graph import Graph, Stage
from qir.models import bundled, bundled_path, digits
from qir.runtime import Session
from qir.runtime.compile.tensors import Buffer, View, assign_offsets, dense_view
from qir.runtime.measure.bench import alternate, bench, rank
from qir.types import DType, TensorType

pytest.importorskip("numba")


@pytest.fixture(scope="module", params=sorted(bundled()))
def graph(request: pytest.FixtureRequest) -> Graph:
    """A trained network of models/, quantized."""
    float_graph = qir.load(bundled_path(request.param))
    return qir.quantize(float_graph, digits().calibration[:64])[0]


@pytest.fixture(scope="module")
def one() -> Graph:
    return qir.quantize(qir.load(bundled_path("digits_residual")), digits().calibration[:64])[0]


def feed(graph: Graph, batch: int, seed: int = 0) -> dict[str, Any]:
    value = graph.inputs[0]
    shape = [batch if isinstance(d, str) else d for d in value.shape]
    return {value.name: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def test_trained_networks_every_tensor(graph: Graph) -> None:
    names = [v.name for v in graph.values if v.data is None and v.producer is not None]
    reference, cpu = Session(graph, "reference"), Session(graph, "cpu")
    for batch in (1, 5):
        x = feed(graph, batch)
        want, fused, all_kept = reference.run(x, outputs=names), cpu.run(x), cpu.run(x, outputs=names)
        for name, array in fused.items():
            np.testing.assert_array_equal(array, want[name])
        for name in names:
            np.testing.assert_array_equal(all_kept[name], want[name], err_msg=name)


def test_kernels_run_everything_of_a_plain_network(graph: Graph) -> None:
    session = Session(graph, "cpu")
    profile = session.profile(feed(graph, 2), repeat=2)
    assert all(row.native for row in profile.rows), [r.op for r in profile.rows if not r.native]
    assert json.loads(profile.to_json())["rows"][0]["op"] == profile.rows[0].op
    assert sum(profile.share(r) for r in profile.rows) == pytest.approx(1.0)
    assert "GMAC/s" in str(profile)
    assert sum(r.macs for r in profile.rows) > 0


def test_without_numba_the_same_bits(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    slow = Session(graph, "cpu")
    assert not slow.executor.native
    x = feed(graph, 3)
    want = Session(graph, "reference").run(x)
    for name, array in slow.run(x).items():
        np.testing.assert_array_equal(array, want[name])


def test_sessions_in_threads_give_the_bits_of_one(one: Graph) -> None:
    shared = Session(one, "cpu", threads=2)
    feeds = [feed(one, 1 + i % 3, i) for i in range(6)]
    want = [Session(one, "reference").run(x) for x in feeds]
    wrong: list[str] = []

    def work(index: int, session: Session) -> None:
        for _ in range(20):
            for name, array in session.run(feeds[index]).items():
                if not np.array_equal(array, want[index][name]):
                    wrong.append(f"thread {index}")

    threads = [
        threading.Thread(target=work, args=(i, shared if i % 2 else Session(one, "cpu", threads=3))) for i in range(6)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_thread_counts_change_nothing(one: Graph) -> None:
    x = feed(one, 4)
    want = Session(one, "reference").run(x)
    for threads in (1, 2, 3, 7):
        for name, array in Session(one, "cpu", threads=threads).run(x).items():
            np.testing.assert_array_equal(array, want[name])


def test_a_session_survives_bad_input(one: Graph) -> None:
    session = Session(one, "cpu")
    good = feed(one, 2)
    name = one.inputs[0].name
    want = session.run(good)
    for bad in ({}, {name: good[name][..., :-1]}, {name: good[name].astype(np.int64)}, {name: good[name] * np.nan}):
        with pytest.raises(DataError):
            session.run(bad)
        for key, array in session.run(good).items():
            np.testing.assert_array_equal(array, want[key])


def test_feeds_need_not_be_contiguous(one: Graph) -> None:
    x = feed(one, 4)
    (name,) = x
    strided = np.repeat(x[name], 2, axis=-1)[..., ::2]
    want = Session(one, "reference").run(x)
    for key, array in Session(one, "cpu").run({name: strided}).items():
        np.testing.assert_array_equal(array, want[key])


def test_outputs_are_the_callers_own(one: Graph) -> None:
    session = Session(one, "cpu")
    first = session.run(feed(one, 1, 1))
    kept = {k: v.copy() for k, v in first.items()}
    session.run(feed(one, 1, 2))
    for key, array in first.items():
        np.testing.assert_array_equal(array, kept[key])


def test_run_allocates_nothing_but_its_outputs(one: Graph) -> None:
    session = Session(one, "cpu")
    x = feed(one, 64)
    outputs = sum(a.nbytes for a in session.run(x).values())
    assert session.executor.plan(64).arena_bytes > 250_000
    tracemalloc.start()
    for _ in range(300):  # free lists and the threads' own state settle
        session.run(x)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for _ in range(1000):
        session.run(x)
    peak = tracemalloc.get_traced_memory()[1]
    gc.collect()
    now = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # the rest is Python's own small change: frames, and the free lists of tuples that gc.collect() emptied
    assert now - before < 4096
    assert peak - before < outputs + 200_000


def test_checking_a_large_input_allocates_nothing(one: Graph) -> None:
    session = Session(one, "cpu")
    x = feed(one, 1024)
    assert max(v.size for v in x.values()) > 32_768  # what a boolean for each element would take
    tracemalloc.start()
    for _ in range(2):
        session.run(x)
    outputs = sum(a.nbytes for a in session.run(x).values())
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    session.run(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - before < outputs + 16_384


def test_linear_memory_of_plans(one: Graph) -> None:
    session = Session(one, "cpu")
    for batch in range(1, 20):
        session.run(feed(one, batch))
    assert len(session.executor._plans) <= 8


def test_buffers_alive_together_never_overlap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        buffers: list[Buffer] = []
        for _ in range(rng.integers(1, 40)):
            buffer = Buffer(int(rng.integers(1, 5000)))
            buffer.touch(int(rng.integers(0, 20)))
            buffer.touch(int(rng.integers(buffer.first, 21)))
            buffers.append(buffer)
        total = assign_offsets(buffers)
        for i, a in enumerate(buffers):
            assert a.offset % 64 == 0 and a.offset + a.size <= total
            for b in buffers[:i]:
                together = a.first <= b.last and b.first <= a.last
                apart = a.offset + a.size <= b.offset or b.offset + b.size <= a.offset
                assert apart or not together


def test_views_are_numpy_views() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 100, (2, 6, 5, 4)).astype(np.int16)
    view: View = dense_view(x.shape, (0, 2, 3, 1), x.dtype)
    memory = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).view(np.uint8).reshape(-1)
    np.testing.assert_array_equal(view.array(memory), x)
    np.testing.assert_array_equal(view.sliced(1, 2, 3).array(memory), x[:, 2:5])
    np.testing.assert_array_equal(view.sliced(2, 0, 3, 2).array(memory), x[:, :, 0:5:2])
    assert view.sliced(1, 2, 3).rows() == (40, 3, 12)
    assert view.sliced(3, 1, 2).rows() is None


def test_a_second_process_starts_quickly(one: Graph, tmp_path: Path) -> None:
    """Kernels come from the disk cache (this process has filled it)."""
    qir.save(one, tmp_path / "net.onnx")
    Session(one, "cpu")
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "import qir; from qir.runtime import Session; from qir.runtime.measure.bench import random_feeds\n"
        "graph = qir.load(sys.argv[1]); Session(graph, 'cpu').run(random_feeds(graph, 1))\n"
        "print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "net.onnx")]
    runs = [float(subprocess.run(command, capture_output=True, check=True, text=True).stdout) for _ in range(2)]
    assert min(runs) < 10.0, runs  # a compilation takes 20 s and more; the rest is room for a busy machine


def test_bench_takes_turns(one: Graph) -> None:
    rows = bench(one, against=("reference",), batch=2, seconds=0.0)
    assert [r.name for r in rows] == ["cpu", "reference"]
    assert rows[0].ratio == 1.0 and rows[0].batch == 2 and rows[0].best <= rows[0].median
    calls: list[str] = []
    samples = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, rest=0.0)
    assert calls == ["a", "b"] + ["a", "a", "b", "b"] * 3 and len(samples["a"]) == 3  # a call not counted before each
    assert [r.ratio for r in rank({"a": [1.0, 1.0, 3.0], "b": [2.0, 2.0, 3.0]}, 1)] == [1.0, 2.0]


def test_a_graph_with_nothing_but_reference_operators() -> None:
    graph = qir.load(bundled_path("digits_mobile"))
    x = feed(graph, 2)
    want = Session(graph, "reference").run(x)
    for key, array in Session(graph, "cpu").run(x).items():
        np.testing.assert_array_equal(array, want[key])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_helpers_keep_off_the_core_of_the_caller(one: Graph) -> None:
    """One that woke there would go ahead of the caller, which then stood still for milliseconds beside an idle core."""
    session = Session(one, "cpu", threads=2)
    cores = sorted(os.sched_getaffinity(0))
    x = feed(one, 1)
    (want,) = Session(one, "reference").run(x).values()
    main = threading.get_native_id()
    helpers = session.executor._pool._state.ids
    deadline = time.monotonic() + 10
    while not helpers and time.monotonic() < deadline:
        time.sleep(0.001)
    try:
        for core in cores[:2] * 2:
            os.sched_setaffinity(main, {core})
            (got,) = session.run(x).values()
            np.testing.assert_array_equal(got, want)
            (helper,) = helpers
            assert os.sched_getaffinity(helper) == set(cores) - {core}
    finally:
        os.sched_setaffinity(main, cores)


def test_operands_of_fewer_axes() -> None:
    """A summand without the batch axis, as large as the tensor it is added to at a batch of 1."""
    graph = Graph("low", Stage.INTEGER)
    a = graph.add_input("a", TensorType(DType.UINT8, (1, 5, 2, 3)))
    b = graph.add_input("b", TensorType(DType.UINT8, (5, 2, 3)))
    numbers = {"a_multiplier": 1 << 20, "b_multiplier": 3 << 19, "shift": 21, "a_zero_point": 3, "b_zero_point": 7}
    limits = {"zero_point": 9, "lo": 0, "hi": 255, "dtype": "uint8"}
    total = graph.add_node("qir.Add", [a, b], {**numbers, **limits}).output
    graph.set_outputs([total, graph.add_node("qir.Add", [b, total], {**numbers, **limits}).output])
    rng = np.random.default_rng(0)
    feeds = {"a": rng.integers(0, 256, (1, 5, 2, 3), np.uint8), "b": rng.integers(0, 256, (5, 2, 3), np.uint8)}
    want = Session(graph, "reference").run(feeds)
    for name, array in Session(graph, "cpu").run(feeds).items():
        np.testing.assert_array_equal(array, want[name])
