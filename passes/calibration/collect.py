"""Calibration: run the float graph over data once, keep statistics, turn them into ranges.

`collect` is the single pass; `ranges_from` reads any method's ranges out of its result; `calibrate` is both.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future

import numpy as np

from qir.errors import DataError, QirError
from qir.graph import Graph, Value
from qir.io import load, to_onnx
from qir.running import session
from qir.types import Array

from ..feature_axes import feature_axis
from ..quantization.placement import is_activation, observed
from ..quantization.ranges import Interval, Ranges, TensorRange
from .data_free import data_free_ranges
from .observers import Statistics
from .range_methods import RangeOptions, method_of

Feeds = Mapping[str, Array]
Progress = Callable[[int], None]
"""Called with the number of samples seen so far."""


@np.errstate(all="ignore")  # what is not finite is found and named
def collect(
    graph: Graph,
    batches: Iterable[Feeds],
    *,
    executor: Executor | None = None,
    samples: int | None = None,
    progress: Progress | None = None,
    names: Sequence[str] | None = None,
    threads: int = 0,
) -> Statistics:
    """Statistics of the graph's tensors over `batches` (mappings from input name to array; see `data.batches`).

    executor: any concurrent.futures.Executor; batches go to it a few at a time and merge in their order, so the
    result has the bits of the run without one.  samples: stop after so many.  names: the tensors to look at
    (default: all that a quantizer or bias correction may ask for).
    Raises DataError (no batch at all, a tensor that is not finite), and what the session raises on a wrong batch.
    """
    wanted = list(names) if names is not None else observed(graph)
    axes, rows = channel_axes(graph, wanted), logits(graph, wanted)
    total = Statistics()
    if executor is None:
        watch = _Watcher(graph, wanted, axes, rows, threads)
        for feeds in _limited(batches, samples):
            total.merge(watch(feeds))
            _tell(progress, total.samples)
    else:
        model = model_bytes(graph)
        job = (hashlib.sha256(model).hexdigest(), model, tuple(wanted), axes, rows)
        for part in _ordered(executor, job, _limited(batches, samples)):
            total.merge(part)
            _tell(progress, total.samples)
    if total.samples == 0:
        raise DataError("no calibration data", hint="at least one batch is needed")
    return total


def calibrate(
    graph: Graph,
    batches: Iterable[Feeds] | None,
    *,
    method: str = "minmax",
    executor: Executor | None = None,
    samples: int | None = None,
    progress: Progress | None = None,
    bits: Sequence[int] = (8,),
    options: RangeOptions | None = None,
    input_ranges: Mapping[str, Interval] | None = None,
) -> Ranges:
    """Activation ranges by `method`: a name of `range_methods.METHODS`, or "bn" (no data: from BN statistics).

    Otherwise as `collect`.  bits: the widths that ranges are wanted for (methods such as "mse" depend on it).
    input_ranges: for "bn", what the graph's inputs hold.
    """
    if method == "bn":
        return data_free_ranges(graph, input_ranges=input_ranges)
    method_of(method)
    seen = collect(graph, batches or (), executor=executor, samples=samples, progress=progress)
    return ranges_from(seen, method, bits=bits, options=options)


def ranges_from(
    seen: Statistics, method: str = "minmax", *, bits: Sequence[int] = (8,), options: RangeOptions | None = None
) -> Ranges:
    """Ranges of every tensor observed, by one method."""
    choose, how = method_of(method), options or RangeOptions()
    tensors: dict[str, TensorRange] = {}
    for name, t in seen.items():
        if t.count == 0:
            continue
        chosen = {b: _sane(choose(t, b, how)) for b in bits}
        tensors[name] = TensorRange((t.lo, t.hi), chosen)
    return Ranges(tensors, method, seen.samples)


def _sane(interval: Interval) -> Interval:
    lo, hi = interval
    return (float(lo), float(hi)) if lo <= hi else (float(hi), float(lo))


def channel_axes(graph: Graph, names: Iterable[str]) -> dict[str, int | None]:
    """Axis of the channels (None: all are one): 1, but the last one where a MatMul (or a Gemm) reads the tensor.

    Of an input: the one along which what reads it weighs it.
    """
    axes: dict[str, int | None] = {}
    for name in names:
        value = graph.value(name)
        users = {node.op for node, _ in value.uses()}
        axes[name] = -1 if "MatMul" in users else 1
        if value.producer is None and is_activation(value):
            own = {feature_axis(node, index) for node, index in value.uses()}
            axis = own.pop() if len(own) == 1 else None
            axes[name] = axes[name] if axis is None else axis
        axes[name] = _fixed_axis(value, axes[name])
    return axes


def _fixed_axis(value: Value, axis: int | None) -> int | None:
    """The axis, or the last one of a fixed size where its own is open; None where there is none."""
    shape = value.shape
    if len(shape) < 2 or axis is None or isinstance(shape[axis], int):
        return axis
    return next((i for i in range(len(shape) - 1, 0, -1) if isinstance(shape[i], int)), None)


def logits(graph: Graph, names: Iterable[str]) -> frozenset[str]:
    """Outputs of shape (batch, classes): their rows are kept, for the cross-entropy method."""
    outputs = {v.name for v in graph.outputs if is_activation(v) and v.type.rank == 2}
    return frozenset(name for name in names if name in outputs)


# -- running ------------------------------------------------------------------------------------
class _Watcher:
    """A session whose run yields the statistics of one batch."""

    def __init__(
        self, graph: Graph, names: Sequence[str], axes: Mapping[str, int | None], rows: frozenset[str], threads: int = 0
    ) -> None:
        self.session = session(graph, backend="onnxruntime", threads=threads)
        self.names, self.axes, self.rows = list(names), axes, rows

    def __call__(self, feeds: Feeds) -> Statistics:
        part = Statistics()
        values = self.session.run(dict(feeds), outputs=self.names)
        part.update(values, self.axes, self.rows, len(next(iter(feeds.values()))))
        return part


Job = tuple[str, bytes, tuple[str, ...], Mapping[str, int | None], frozenset[str]]

_watchers: dict[tuple[str, tuple[str, ...]], _Watcher] = {}
"""In a worker: the one session it has open, by model digest and names."""


def observe_batch(job: Job, feeds: Feeds) -> Statistics:
    """What a worker does: open the model once, then see a batch."""
    digest, model, names, axes, rows = job
    key = (digest, names)
    if key not in _watchers:
        _watchers.clear()
        _watchers[key] = _Watcher(load(model), names, axes, rows, threads=1)
    return _watchers[key](feeds)


def model_bytes(graph: Graph) -> bytes:
    """The graph as the bytes of an ONNX file, for workers.  Raises QirError where it is too large for one message."""
    try:
        return to_onnx(graph, declared=False).SerializeToString()
    except (ValueError, RuntimeError) as error:
        raise QirError(f"the graph cannot be sent to workers: {error}", hint="calibrate without an executor") from None


def _ordered(executor: Executor, job: Job, batches: Iterable[Feeds]) -> Iterator[Statistics]:
    """Results in the order of the batches, with a bounded number under way."""
    ahead: int = 2 * (getattr(executor, "_max_workers", None) or 4)
    waiting: deque[Future[Statistics]] = deque()
    try:
        for feeds in batches:
            waiting.append(executor.submit(observe_batch, job, dict(feeds)))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenExecutor as error:
        raise QirError(
            f"a worker process died: {error}", where="calibration", hint="often of memory: fewer workers, or none"
        ) from error
    finally:
        for future in waiting:
            future.cancel()


def _limited(batches: Iterable[Feeds], samples: int | None) -> Iterator[Feeds]:
    """Batches until `samples` samples have passed; the last one is cut."""
    left = samples
    for feeds in batches:
        if not isinstance(feeds, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # users pass bare arrays
            raise DataError(f"a batch is a {type(feeds).__name__}, not a mapping", hint="use passes.data.batches")
        size = len(next(iter(feeds.values()))) if feeds else 0
        if size == 0:
            raise DataError("an empty batch")
        if left is not None and size >= left:
            yield {k: v[:left] for k, v in feeds.items()}
            return
        left = None if left is None else left - size
        yield feeds


def _tell(progress: Progress | None, samples: int) -> None:
    if progress is not None:
        progress(samples)
