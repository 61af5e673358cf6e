"""Sessions: what is fed is checked, any value can be asked for, backends agree."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qir.errors import BackendError, DataError, GraphError
from qir.graph import Graph, Stage
from qir.runtime import BACKENDS, Backend, Session
from qir.runtime import session as session_module
from qir.runtime.reference import Reference
from qir.runtime.session import backend_class
from qir.types import DType, TensorType


@pytest.fixture
def feeds() -> dict[str, Any]:
    return {"x": np.random.default_rng(7).normal(0, 3, (2, 3, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("activations", ["uint8", "uint4"])
def test_backends_agree_on_every_value(two_convs: Any, feeds: Any, weights: str, activations: str) -> None:
    graph: Graph = two_convs(weights, activations)
    names = [v.name for v in graph.values]
    a = Session(graph, "reference").run(feeds, outputs=names)
    b = Session(graph, "onnxruntime").run(feeds, outputs=names)
    assert list(a) == list(b) == names
    for name in names:
        assert a[name].dtype == b[name].dtype == graph.value(name).dtype.numpy
        np.testing.assert_array_equal(a[name], b[name])
    assert len(np.unique(a["c0"])) > 4  # the comparison is not of constants


def test_default_outputs_and_any_batch(two_convs: Any) -> None:
    graph: Graph = two_convs()
    for batch in (1, 5):
        y = Session(graph, "onnxruntime").run({"x": np.zeros((batch, 3, 8, 8), np.float32)})
        assert {k: v.shape for k, v in y.items()} == {"y": (batch, 4, 8, 8)}


def test_path_is_loaded(two_convs: Any, feeds: Any, tmp_path: Any) -> None:
    from qir.io import save

    graph: Graph = two_convs()
    save(graph, tmp_path / "m.onnx")
    np.testing.assert_array_equal(
        Session(tmp_path / "m.onnx", "reference").run(feeds)["y"], Session(graph, "reference").run(feeds)["y"]
    )


GOOD = np.zeros((1, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"input 'x': is missing, float32\[N,3,8,8\] expected"),
        ({"x": GOOD, "z": GOOD}, r"feed 'z': is no input of the graph \(inputs are x\)"),
        ({"x": GOOD.astype(np.int64)}, r"float32\['N', 3, 8, 8\] expected, int64\[1, 3, 8, 8\] given"),
        ({"x": GOOD.astype(np.uint8)}, r"convert it with .astype\(np.float32\)"),
        ({"x": GOOD[0]}, r"shape \['N', 3, 8, 8\] expected but \[3, 8, 8\] given"),
        ({"x": GOOD[:, :2]}, r"but \[1, 2, 8, 8\] given"),
        ({"x": GOOD[:0]}, r"but \[0, 3, 8, 8\] given"),
        ({"x": GOOD + np.nan}, r"input 'x': holds NaN"),
        (GOOD, r"pass \{'x': array\}"),
    ],
)
def test_bad_feeds(two_convs: Any, feeds: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Session(two_convs(), "reference").run(feeds)


def test_an_array_that_its_package_does_not_give(two_convs: Any) -> None:
    class Guarded:
        def __array__(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")

    for feed, message in ((Guarded(), "requires grad"), ([[1.0], [1.0, 2.0]], "inhomogeneous")):
        with pytest.raises(DataError, match=f"input 'x': cannot be read as an array: .*{message}"):
            Session(two_convs(), "reference").run({"x": feed})


def test_inputs_share_one_batch() -> None:
    g = Graph("two")
    a = g.add_input("a", TensorType(DType.FLOAT32, ("N", 2)))
    b = g.add_input("b", TensorType(DType.FLOAT32, ("2*N", 2)))
    g.set_outputs([a, b])
    session = Session(g, "reference")
    assert session.run({"a": np.ones((3, 2), np.float32), "b": np.ones((6, 2), np.float32)})["b"].shape == (6, 2)
    with pytest.raises(DataError, match=r"input 'b': shape .* expected with a batch of 3 but"):
        session.run({"a": np.ones((3, 2), np.float32), "b": np.ones((8, 2), np.float32)})


@pytest.mark.parametrize("backend", ["reference", "onnxruntime"])
def test_inputs_and_constants_as_outputs(backend: str) -> None:
    g = Graph("through")
    a = g.add_input("a", TensorType(DType.UINT4, ("N", 2)))
    c = g.add_constant("c", np.asarray([1, -2], np.int8), DType.INT4)
    g.set_outputs([a, c])
    feed = np.asarray([[3, 15]], np.uint8)
    y = Session(g, backend).run({"a": feed})
    np.testing.assert_array_equal(y["a"], feed)
    np.testing.assert_array_equal(y["c"], [1, -2])
    with pytest.raises(DataError, match="outside uint4"):
        Session(g, backend).run({"a": feed + 1})


def test_unknown_output(two_convs: Any, feeds: Any) -> None:
    with pytest.raises(GraphError, match="no value named 'nope'"):
        Session(two_convs(), "reference").run(feeds, outputs=["nope"])


def test_unknown_backend(two_convs: Any) -> None:
    with pytest.raises(BackendError, match=r"no backend 'tpu' .there are reference, onnxruntime"):
        Session(two_convs(), "tpu")


@pytest.mark.parametrize("name", BACKENDS)
def test_backends_say_what_they_are(name: str) -> None:
    backend = backend_class(name)
    assert issubclass(backend, Backend) and backend.name == name


def test_what_a_backend_cannot_do_is_said(two_convs: Any, feeds: Any) -> None:
    session = Session(two_convs(), "reference")
    with pytest.raises(BackendError, match="'reference' cannot run asynchronously"):
        session.run_async(feeds)
    with pytest.raises(BackendError, match="'reference' has no profile"):
        session.profile(feeds)


def test_missing_package_is_named(two_convs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "cpu", "no_such_package_of_ours:Class")
    with pytest.raises(BackendError, match=r"needs no_such_package_of_ours, .*pip install qir\[cpu\]"):
        Session(two_convs(), "cpu")


def test_reference_names_the_node_that_fails() -> None:
    g = Graph("g", Stage.INTEGER)
    x = g.add_input("x", TensorType(DType.UINT8, ("N", 1, 1, 1)))
    w = g.add_constant("w", np.full((1, 1, 1, 1), 127, np.int8))
    bias = g.add_constant("b", np.asarray([2**31 - 5], np.int32))
    attrs = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "pad_value": [0]}
    g.set_outputs([g.add_node("qir.Conv", [x, w, bias], attrs, outputs=["acc"]).output])
    with pytest.raises(Exception, match=r"qir\.Conv node 'acc': an accumulator left int32"):
        Reference(g).run({"x": np.full((1, 1, 1, 1), 255, np.uint8)})


def test_reference_frees_what_is_dead(two_convs: Any) -> None:
    from qir.runtime.reference import last_uses

    graph: Graph = two_convs()
    last = last_uses(graph.nodes, graph.outputs)
    assert last[graph.value("c0")].name == "c1.acc"
    assert graph.value("y") not in last


def test_the_default_is_the_fastest_backend_here(
    two_convs: Any, feeds: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """CUDA with CuPy and a GPU, else the CPU runtime, without numba onnxruntime, without that the reference."""
    integer: Graph = two_convs()
    real = Graph("real")
    real.set_outputs([real.add_node("Relu", [real.add_input("x", TensorType(DType.FLOAT32, ("N", 2)))]).output])
    missing: set[str] = set()
    find = session_module.find_spec
    monkeypatch.setattr(session_module, "find_spec", lambda name: None if name in missing else find(name))
    missing.add("cupy")
    if find("numba") is not None:
        default = Session(integer)
        assert default.backend == "cpu"
        for name, array in Session(integer, "reference").run(feeds).items():
            np.testing.assert_array_equal(default.run(feeds)[name], array)
    assert Session(real).backend == "onnxruntime"
    missing.add("numba")
    assert Session(integer).backend == "onnxruntime"
    missing.add("onnxruntime")
    assert Session(integer).backend == Session(real).backend == "reference"

    class FakeRuntime:
        devices = 1
        CUDARuntimeError = RuntimeError

        def getDeviceCount(self) -> int:
            return self.devices

    runtime = FakeRuntime()
    hopper = SimpleNamespace(compute_capability="90")
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, Device=lambda _: hopper))
    monkeypatch.setattr(session_module, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert session_module.default_backend(integer) == "cuda" and session_module.default_backend(real) == "onnxruntime"
    runtime.devices = 0
    assert session_module.default_backend(integer) == "cpu"
