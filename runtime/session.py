"""`Session`: checks what it is fed, hands it to a backend.  The backends are a table, imported when asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from qir.declared import KEY as SIGNATURE
from qir.declared import as_declared
from qir.errors import BackendError, DataError, MemoryLimitError, TypeInferenceError
from qir.graph import Graph, Stage, Value
from qir.ops.memory import demand, peak, run_limit, shown
from qir.shapes import check_sizes
from qir.sizes import sizes_text, solve
from qir.types import Array, Dim, is_float
from qir.verify import verify

from .backend import Backend, Running, fed_sizes
from .interchange import host_array, on_gpu
from .profile import Profile

log = logging.getLogger(__name__)

BACKENDS: dict[str, str] = {
    "reference": "qir.runtime.reference:Reference",
    "onnxruntime": "qir.runtime.onnxruntime_session:OnnxRuntime",
    "cpu": "qir.runtime.cpu:Cpu",
    "cuda": "qir.runtime.cuda:Cuda",
}
"""name -> "module:Class", a `Backend`."""


MOST_PROVED = 4096
"""Choices of sizes that a session remembers to be possible."""


class Session:
    """A graph ready to run.

    graph: a Graph of any stage, or a path to an ONNX model.  backend: a name of `BACKENDS`; by default the fastest
    that can run the graph here (`default_backend`).  Further keyword arguments are the backend's own options
    (threads, device ...).
    An integer graph is verified, so that it means one thing on every executor.
    Raises BackendError where the backend is unknown, not installed or cannot run the graph; VerifyError.
    """

    def __init__(self, graph: Graph | str | Path, backend: str | None = None, **options: Any) -> None:
        if not isinstance(graph, Graph):
            from qir.io import load

            graph = load(graph)  # which verifies it
        elif graph.stage is Stage.INTEGER:
            verify(graph)
        if backend is None:
            backend = default_backend(graph)
        self.graph, self.backend = graph, backend
        self._proved: set[tuple[int, ...]] = set()
        self._affordable: set[tuple[tuple[int, ...], tuple[str, ...]]] = set()
        self._executor = backend_class(backend)(graph, **options)
        self._casts = graph.stage is Stage.INTEGER and SIGNATURE in graph.metadata

    @property
    def executor(self) -> Any:
        """The backend's own object, with what only that one can do."""
        return self._executor

    def run(
        self, feeds: Mapping[str, Any], *, outputs: Sequence[str] | None = None, **options: Any
    ) -> dict[str, Array]:
        """Outputs by name.

        feeds: one array for each graph input, of its dtype and shape (an open size is any, and one for each symbol).
        outputs: names of any values of the graph, intermediate ones included; default: the graph's outputs.
        options: the backend's own ("cuda": stream, out, where; it takes tensors in device memory, too).
        Raises DataError on a missing, unknown, misshapen or mistyped feed; GraphError on an unknown output.
        """
        checked = self._checked(feeds, outputs, options)
        try:
            return self._declared(self._executor.run(checked, outputs, **options))
        except MemoryError as error:
            sizes = fed_sizes(self.graph, checked)
            need = shown(peak(self.graph, sizes)[0])
            raise MemoryLimitError(
                f"needs more memory than there is, at least {need} at {sizes_text(sizes)}",
                where=f"graph {self.graph.name!r}", hint="run fewer samples at a time",
            ) from error  # fmt: skip

    def run_async(self, feeds: Mapping[str, Any], *, outputs: Sequence[str] | None = None, **options: Any) -> Running:
        """Start a run and return at once: `.result()` waits for the outputs, `.done` says whether they are there.

        Arguments and errors as in `run`; BackendError where the backend cannot.
        """
        running = self._executor.run_async(self._checked(feeds, outputs, options), outputs, **options)
        return _Declared(running, self._declared) if self._casts else running

    def _declared(self, results: dict[str, Any]) -> dict[str, Any]:
        """Outputs of an integer graph in the float types that its file declares."""
        return as_declared(results, self.graph.metadata[SIGNATURE]) if self._casts else results

    def _checked(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        for name in outputs or ():
            self.graph.value(name)
        adopt = self._executor.adopt if self._executor.takes_device_tensors else None
        checked = check_feeds(
            self.graph, feeds, None if adopt is None else lambda tensor: adopt(tensor, options.get("stream"))
        )
        if len(self.graph.symbols) > 1:
            self._check_sizes(fed_sizes(self.graph, checked))
        if adopt is None:
            self._check_memory(fed_sizes(self.graph, checked), tuple(outputs or ()))
        return checked

    def _check_memory(self, sizes: dict[str, int], kept: tuple[str, ...]) -> None:
        """What a run takes is known before it starts: looked at once for each choice of sizes and outputs."""
        key = (tuple(sizes.values()), kept)
        if key in self._affordable:
            return
        need, node = peak(self.graph, sizes, [self.graph.value(n) for n in kept])
        demand(need, f"running it at {sizes_text(sizes)}", node, run_limit())
        if len(self._affordable) >= MOST_PROVED:
            self._affordable.clear()
        self._affordable.add(key)

    def _check_sizes(self, sizes: dict[str, int]) -> None:
        """Types and proofs hold at the sizes that are fed: proved once for each choice."""
        key = tuple(sizes.values())
        if key in self._proved:
            return
        try:
            check_sizes(self.graph, sizes)
        except TypeInferenceError as error:
            raise DataError(f"the network cannot take {sizes_text(sizes)}: {error}") from error
        if len(self._proved) >= MOST_PROVED:
            self._proved.clear()
        self._proved.add(key)

    def profile(self, feeds: Mapping[str, Any], **options: Any) -> Profile:
        """Time, multiply-accumulates and bytes of each step (`str` is a table, `to_json`); "cpu", "cuda": repeat=runs.

        Raises BackendError where the backend has none.
        """
        return self._executor.profile(self._checked(feeds, None, {}), **options)


@dataclass(frozen=True)
class _Declared:
    """A run under way whose outputs are cast when they are there."""

    running: Running
    cast: Callable[[dict[str, Any]], dict[str, Any]]

    @property
    def done(self) -> bool:
        return self.running.done

    def result(self) -> dict[str, Any]:
        return self.cast(self.running.result())


def default_backend(graph: Graph) -> str:
    """The fastest that is here for this graph; the bits of integer graphs are the same in all.

    Integer graphs: "cuda" where there is a GPU and CuPy, "cpu" where there is numba, "onnxruntime", "reference".
    Float and QDQ graphs: "onnxruntime", "reference".
    """
    if graph.stage is Stage.INTEGER:
        if find_spec("cupy") is not None:
            from .cuda.device.cupy_device import find_gpu

            try:
                find_gpu()
            except BackendError as error:
                log.info("the CUDA runtime is passed over: %s", error)
            else:
                return "cuda"
        if find_spec("numba") is not None:
            return "cpu"
    return "onnxruntime" if find_spec("onnxruntime") is not None else "reference"


def backend_class(name: str) -> type[Backend]:
    """The class behind a backend's name.  Raises BackendError when unknown or when its package is missing."""
    if name not in BACKENDS:
        raise BackendError(f"no backend {name!r}", hint=f"there are {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ImportError as error:
        missing = error.name or str(error)
        extra = {"cpu": "qir[cpu]", "cuda": "qir[cuda12] or qir[cuda13]"}.get(name, "qir")
        raise BackendError(
            f"backend {name!r} needs {missing}, which cannot be imported", hint=f"pip install {extra}"
        ) from error


def check_feeds(graph: Graph, feeds: Mapping[str, Any], adopt: Callable[[object], Any] | None = None) -> dict[str, Any]:
    """Feeds as arrays in the order of the graph's inputs, after checking names, dtypes, shapes and NaN.

    adopt: makes a tensor in device memory the backend's own (its values are not looked at); None: there must be none.
    """
    known = {v.name for v in graph.inputs}
    if not isinstance(feeds, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # users pass bare arrays
        raise DataError(
            f"feeds are a mapping from input name to array, not a {type(feeds).__name__}",
            hint=f"pass {{{graph.inputs[0].name!r}: array}}" if graph.inputs else None,
        )
    for name in feeds:
        if name not in known:
            raise DataError(
                "is no input of the graph", where=f"feed {name!r}", hint=f"inputs are {', '.join(sorted(known))}"
            )
    sizes: dict[str, int] = {}
    return {v.name: _check_feed(v, feeds, sizes, adopt) for v in graph.inputs}


def _check_feed(
    value: Value, feeds: Mapping[str, Any], sizes: dict[str, int], adopt: Callable[[object], Any] | None
) -> Any:
    where = f"input {value.name!r}"
    if value.name not in feeds:
        raise DataError(f"is missing, {value.type} expected", where=where)
    array: Any = feeds[value.name]
    try:
        device = on_gpu(array)
        if device and adopt is None:
            raise DataError("is in the memory of a GPU", where=where, hint='copy it to the host, or use backend="cuda"')
        array = adopt(array) if device and adopt else host_array(array)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        # each package has reasons of its own: gradients that are asked for, ragged lists ...
        raise DataError(
            f"cannot be read as an array: {error}", where=where, hint="pass a NumPy array (of PyTorch: tensor.detach())"
        ) from error
    expected = value.dtype.numpy
    if not device and value.dtype.is_float and array.dtype != expected and is_float(array.dtype):
        with np.errstate(over="ignore"):
            array = array.astype(expected)
    if array.dtype != expected:
        raise DataError(
            f"{expected}{list(value.shape)} expected, {array.dtype}{list(array.shape)} given", where=where,
            hint=f"convert it with .astype(np.{expected})",
        )  # fmt: skip
    if len(array.shape) != len(value.shape) or not all(
        _fits(d, n, sizes) for d, n in zip(value.shape, array.shape, strict=True)
    ):
        given = f"with {sizes_text(sizes)} " if sizes else ""
        raise DataError(f"shape {list(value.shape)} expected {given}but {list(array.shape)} given", where=where)
    _check_steps(value, tuple(array.shape))
    if device:
        return array
    if array.dtype.kind == "f" and array.size and _has_nan(array):
        raise DataError("holds NaN", where=where)
    if value.dtype.bits == 4 and array.size and (array.min() < value.dtype.lo or array.max() > value.dtype.hi):
        raise DataError(f"holds values outside {value.dtype}", where=where)
    return array


def _has_nan(array: Array) -> bool:
    """Without the array of booleans that `isnan` would make: the minimum is NaN where any element is."""
    with np.errstate(invalid="ignore"):
        return bool(np.isnan(array.min()))


def _fits(dim: Dim, size: int, sizes: dict[str, int]) -> bool:
    """Whether a size fits a dim, its symbol being what the first dim that named it made it."""
    if isinstance(dim, int):
        return dim == size
    pair = solve(dim, size) if size > 0 else None
    return pair is not None and sizes.setdefault(*pair) == pair[1]


def _check_steps(value: Value, shape: tuple[int, ...]) -> None:
    """Open sizes that the network takes in multiples only."""
    for axis, (dim, size) in enumerate(zip(value.shape, shape, strict=True)):
        symbol = value.graph.symbols.get(str(dim))
        if symbol is not None and size % symbol.step:
            raise DataError(
                f"size {size} on axis {axis} is no multiple of {symbol.step}", where=f"input {value.name!r}",
                hint="the network's own shapes fit each other for such sizes only",
            )  # fmt: skip
