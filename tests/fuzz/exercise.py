"""What is done with one file, the way users do it; each kind of file by its own reader."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

import qir
from qir import models
from qir.__main__ import main
from qir.errors import QirError
from qir.graph import Graph, Stage
from qir.ops.memory import check_graph
from qir.passes.calibration.data import batches
from qir.passes.mixed_precision.search import load_latency
from qir.passes.mixed_precision.sensitivity import Sensitivity
from qir.passes.quantization.ranges import Ranges
from qir.passes.recipes import Recipe
from qir.runtime import Session
from qir.sizes import dim_at
from qir.types import Array
from qir.verify import verify

BACKENDS = ("reference", "onnxruntime", "cpu")
BATCH = 2


class Disagreement(Exception):
    """Two executors gave different bits for an integer graph, or one of them nothing."""


def exercise(kind: str, path: Path) -> str:
    """ "done", or what was refused, by which error.  Anything but a QirError leaves as it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning of NumPy's is a line that means nothing to a user
            KINDS[kind](path)
    except QirError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def run_model(path: Path) -> None:
    """inspect, load, run everywhere; float networks are quantized, and the result runs everywhere."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        main(["inspect", str(path)])
    if "this should not happen" in said.getvalue():
        raise AssertionError(said.getvalue())
    graph = qir.load(path)
    if graph.stage is Stage.INTEGER:
        same_everywhere(graph)
        return
    feeds = feeds_of(graph)
    Session(graph, "reference").run(feeds)
    with contextlib.suppress(QirError):  # it has not every kernel
        Session(graph, "onnxruntime").run(feeds)
    recipe = ("w8a8", "data_free")[len(graph) % 2]
    integer, _ = qir.quantize(graph, None if recipe == "data_free" else [feeds], recipe)
    same_everywhere(integer)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "saved.onnx"
        qir.save(integer, saved)
        if plain(qir.load(saved)) != plain(integer):
            raise Disagreement("saved and loaded, it is another graph")


def plain(graph: Graph) -> list[str]:
    """The text but for what the axes are called: a file always calls them something."""
    names = ("  size ", '  metadata "qir.signature"')
    return [line for line in str(graph).splitlines() if not line.startswith(names)]


def same_everywhere(graph: Graph) -> None:
    """Raises Disagreement unless all executors that can run a verified graph give the reference's bits."""
    feeds = feeds_of(graph)
    wanted = Session(graph, "reference").run(feeds)
    for backend in BACKENDS[1:]:
        try:
            found = Session(graph, backend).run(feeds)
        except QirError as error:
            if backend == "onnxruntime":  # not every operator has a kernel for every dtype there
                continue
            raise Disagreement(f"{backend} cannot what the reference can: {error}") from error
        for name, array in wanted.items():
            if found[name].dtype != array.dtype or not np.array_equal(found[name], array, equal_nan=True):
                raise Disagreement(f"{backend} gives other bits for {name!r} ({array.shape} and {found[name].shape})")


def feeds_of(graph: Graph) -> Mapping[str, Array]:
    rng = np.random.default_rng(1)
    feeds: dict[str, Array] = {}
    for value in graph.inputs:
        shape = [dim_at(d, BATCH) for d in value.shape]
        if value.dtype.is_float:
            feeds[value.name] = rng.normal(size=shape).astype(value.dtype.numpy)
        elif value.dtype.is_integer:
            lo, hi = max(value.dtype.lo, -1000), min(value.dtype.hi, 1000)
            feeds[value.name] = rng.integers(lo, hi + 1, shape).astype(value.dtype.numpy)
        else:
            feeds[value.name] = rng.integers(0, 2, shape).astype(np.bool_)
    return feeds


def run_graph_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    graph = Graph.parse(text)
    verify(graph)
    check_graph(graph)
    Session(graph, "reference").run(feeds_of(graph))


def run_arrays(path: Path) -> None:
    graph = digits()
    for feeds in batches(path, graph):
        Session(graph, "reference").run(feeds)


def warm(path: Path) -> None:
    """Imports, and kernels compiled."""
    graph, _ = qir.quantize(digits(), models.digits().calibration[:8])
    same_everywhere(graph)


_digits: list[Graph] = []


def digits() -> Graph:
    if not _digits:
        _digits.append(qir.load(models.bundled_path("digits_mobile")))
    return _digits[0]


KINDS: dict[str, Callable[[Path], object]] = {
    "model": run_model, "graph": run_graph_text, "ranges": Ranges.load, "latency": load_latency,
    "sensitivity": Sensitivity.load, "recipe": Recipe.load, "npy": run_arrays, "npz": run_arrays, "images": run_arrays,
    "warm": warm,
}  # fmt: skip
SUFFIX = {"model": "onnx", "recipe": "toml", "npy": "npy", "npz": "npz", "graph": "txt", "images": ""}
