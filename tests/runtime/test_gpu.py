"""On an NVIDIA GPU: whole networks, every tensor, against the reference; callers' tensors, streams, steady memory.

pytest -m gpu tests/runtime/test_gpu.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qir
from qir import models
from qir.errors import QirError
from qir.graph import Graph
from qir.runtime.measure.exactness import computed
from qir.runtime.session import Session
from qir.testing import Dice, random_network
from qir.testing.integer import IntegerCase
from qir.testing.integer_cases import BUILDERS
from qir.types import Array

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def no_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIR_CUDA_TUNE", "0")


def compare(graph: Graph, feeds: dict[str, Array], **options: Any) -> None:
    """Every tensor (which keeps layers apart), then the outputs alone (which fuses them)."""
    names = computed(graph)
    want = Session(graph, "reference").run(feeds, outputs=names)
    session = Session(graph, "cuda", **options)
    for outputs in (names, None):
        for name, got in session.run(feeds, outputs=outputs).items():
            assert got.dtype == want[name].dtype
            np.testing.assert_array_equal(got, want[name], err_msg=name)


def digits(name: str = "digits_residual", recipe: str = "w8a8") -> tuple[Graph, Array]:
    images = models.digits()
    graph, _ = qir.quantize(str(models.bundled_path(name)), images.calibration[:32], recipe=recipe)
    return graph, np.ascontiguousarray(images.test[:64])


@pytest.mark.parametrize("build", BUILDERS, ids=lambda b: b.__name__)
def test_operators(gpu: Any, build: Any) -> None:
    case = IntegerCase(seed=5, batch=3)
    build(case)
    values = [v for n in case.graph.nodes for v in n.outputs]
    case.graph.set_outputs([v for v in values if not v.uses()])
    compare(case.graph, case.feeds)


@pytest.mark.parametrize("recipe", ["w8a8", "w8a8_per_tensor", "w4a8", "w4a4"])
@pytest.mark.parametrize("seed", range(20))
def test_random_networks(gpu: Any, seed: int, recipe: str) -> None:
    network = random_network(Dice(seed))
    try:
        graph, _ = qir.quantize(network.graph, [network.feeds(4)], recipe=recipe)
    except QirError as error:
        pytest.skip(f"seed {seed} cannot be quantized: {error}")
    compare(graph, network.feeds(7, salt=1))


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8", "w4a4"])
@pytest.mark.parametrize("name", sorted(models.bundled()))
def test_trained_networks(gpu: Any, name: str, recipe: str) -> None:
    graph, x = digits(name, recipe)
    compare(graph, {graph.inputs[0].name: x})


def test_tuning_changes_speed_only(gpu: Any, tmp_path: Path) -> None:
    graph, x = digits()
    compare(graph, {graph.inputs[0].name: x}, tune=tmp_path)
    assert list(tmp_path.glob("tuning-*.json"))


def test_tensors_of_cupy_and_pytorch(gpu: Any) -> None:
    cupy: Any = pytest.importorskip("cupy")

    graph, x = digits()
    name = graph.inputs[0].name
    want = Session(graph, "reference").run({name: x})
    session = Session(graph, "cuda")
    y = next(iter(want))
    on_device = cupy.asarray(x)
    for stream in (None, cupy.cuda.Stream(non_blocking=True)):
        for _ in range(3):  # copied, then in place
            got: Any = session.run({name: on_device}, stream=stream)[y]
            assert isinstance(got, cupy.ndarray)
            if stream is not None:
                stream.synchronize()
            np.testing.assert_array_equal(got.get(), want[y])
    torch: Any = pytest.importorskip("torch")
    tensor = torch.from_numpy(x).cuda()
    result = session.run({name: tensor}, stream=torch.cuda.current_stream())[y]
    np.testing.assert_array_equal(torch.from_dlpack(result).cpu().numpy(), want[y])
    out = torch.empty(want[y].shape, device="cuda")
    side = torch.cuda.Stream()
    for _ in range(3):
        assert session.run({name: tensor}, out={y: out}, stream=side)[y] is not None
    side.synchronize()
    np.testing.assert_array_equal(out.cpu().numpy(), want[y])


def test_streams_and_batches_under_way(gpu: Any) -> None:
    cupy: Any = pytest.importorskip("cupy")

    graph, x = digits()
    name = graph.inputs[0].name
    session, reference = Session(graph, "cuda", lanes=2), Session(graph, "reference")
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    parts = [x[i : i + 1 + i % 5] for i in range(24)]
    pending = [session.run_async({name: p}, stream=streams[i % 3]) for i, p in enumerate(parts)]
    for part, run in zip(reversed(parts), reversed(pending), strict=True):
        for key, want in reference.run({name: part}).items():
            np.testing.assert_array_equal(run.result()[key], want)


def test_memory_stays_as_it_is(gpu: Any) -> None:
    cupy: Any = pytest.importorskip("cupy")

    graph, x = digits()
    name = graph.inputs[0].name
    session = Session(graph, "cuda")
    session.executor.prepare(len(x))
    for _ in range(3):
        session.run({name: x})
    pool = cupy.get_default_memory_pool()
    before = pool.total_bytes(), pool.used_bytes(), cupy.cuda.runtime.memGetInfo()[0]
    for _ in range(1000):
        session.run({name: x})
    assert (pool.total_bytes(), pool.used_bytes(), cupy.cuda.runtime.memGetInfo()[0]) == before


def test_a_capture_s_profile(gpu: Any) -> None:
    graph, x = digits()
    profile = Session(graph, "cuda").profile({graph.inputs[0].name: x})
    assert 0 < profile.seconds < 1 and all(r.roofline is not None and 0 <= r.roofline < 1.2 for r in profile.rows)
