"""What quantizing cost, measured on calibration data: the integer graph runs beside the float one, a few samples.

    SQNR = 10 log10(sum f^2 / sum (f - q)^2)
of each tensor and output; steps: how many steps of its grid the middle 90 % of a tensor's values span.  `collapse` says
what that means.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qir.cost import macs
from qir.errors import QirError
from qir.graph import Graph, Value
from qir.ops import op_of
from qir.running import RunningGraph, session
from qir.types import Array, DType, QuantParams

from .collapse import OutputQuality, Quality, TensorQuality, decibel, warnings
from .feature_axes import feature_axis

log = logging.getLogger("qir.passes")

Feeds = Mapping[str, Array]
Pairs = Sequence[tuple[str, Value]]
"""(name in the float graph, tensor of the integer graph)."""

SAMPLES, AT_ONCE = 32, 64 << 20
"""At most so many samples, and bytes of inner tensors, are looked at."""

BATCH = 8
"""Samples at a time where only outputs are wanted."""

MIDDLE = (0.05, 0.95)
FEW = 12
"""Elements from which a distribution can be told."""


class First(Iterable[Feeds]):
    """Batches that are handed through; the first samples of them stay behind in `kept`."""

    def __init__(self, batches: Iterable[Feeds], samples: int = SAMPLES) -> None:
        self.batches, self.samples = batches, samples
        self.kept: list[Feeds] = []
        self.once = getattr(batches, "once", False) or iter(batches) is batches

    def __iter__(self) -> Iterator[Feeds]:
        first = not self.kept
        seen = 0
        for feeds in self.batches:
            if first and seen < self.samples:
                self.kept.append(feeds)
                seen += _count(feeds)
            yield feeds

    def first(self) -> list[Feeds]:
        """The first batches, read now where nobody has."""
        if not self.kept:
            for _ in self:
                if sum(map(_count, self.kept)) >= self.samples:
                    break
        return self.kept


def measure(prepared: Graph, integer: Graph, feeds: Sequence[Feeds]) -> Quality | None:
    """The quality of an integer graph against the float graph it was made from.

    None where they cannot be compared: other inputs or outputs, no data, or no executor here that runs both.
    """
    if not feeds or [v.name for v in integer.outputs] != [v.name for v in prepared.outputs]:
        return None
    if {v.name: v.type for v in prepared.inputs} != {v.name: v.type for v in integer.inputs}:
        return None
    shared = _shared(prepared, integer)
    backend = "reference" if sum(macs(n) for n in integer.nodes) * SAMPLES < SMALL else "onnxruntime"
    samples = max(FEWEST, min(SAMPLES, BUDGET // max(sum(_sizes(v for _, v in shared)), 1)))
    try:
        both = _Comparison(prepared, integer, shared, (session(prepared), session(integer, backend)))
        for inner, parts in zip((True, False), _parts(feeds, prepared, shared, samples), strict=True):
            for part in parts:
                both.add(part, inner)
        return both.quality()
    except QirError as error:  # quantizing has not failed where measuring it does
        log.info("the quality is not known: %s", error)
        return None


def _shared(prepared: Graph, integer: Graph) -> Pairs:
    """(name in the float graph, tensor of the integer graph), in the float graph's order; inputs as quantized."""
    twins = {n.input(0).name: n.output for n in integer.nodes if n.op == "QuantizeLinear"}
    twins = {v.name: twins[v.name] for v in integer.inputs if v.name in twins}
    twins |= {v.name: v for n in integer.nodes for v in n.outputs if v.quant is not None or v.is_output}
    order = [*prepared.inputs, *(v for n in prepared.nodes for v in n.outputs)]
    return [(v.name, twins[v.name]) for v in order if v.name in twins]


class _Comparison:
    """Both graphs on the same batches: sums for each tensor, in constant memory."""

    def __init__(self, prepared: Graph, integer: Graph, shared: Pairs, runs: tuple[RunningGraph, RunningGraph]) -> None:
        self.prepared, self.integer, self.shared, self.runs = prepared, integer, shared, runs
        self.names = [v.name for v in integer.outputs]
        self.bounded = shares(prepared)
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.columns: dict[str, NDArray[np.float64]] = {}
        self.spans: dict[str, list[tuple[float, float]]] = {}
        self.equal: dict[str, float] = dict.fromkeys(self.names, 0.0)
        self.samples = 0

    def add(self, part: Feeds, inner: bool) -> None:
        """One batch; inner: with all tensors, not the outputs alone."""
        shared = self.shared if inner else ()
        sides = [name for name, _ in shared], [value.name for _, value in shared]
        wanted = [list(dict.fromkeys([*side, *self.names])) for side in sides]
        f, q = (run.run(part, outputs=names) for run, names in zip(self.runs, wanted, strict=True))
        self.samples += _count(part)
        for name, value in shared:
            if name not in self.names:
                self._noise(name, f[name], _reals(value, q[value.name]))
            span = _span(self.prepared.value(name), f[name], value.quant)
            if span is not None:
                self.spans.setdefault(name, []).append(span)
        for value in self.integer.outputs:
            x, y = np.asarray(f[value.name], np.float64), _reals(value, q[value.name])
            self._noise(value.name, x, y)
            if x.ndim == 2 and x.shape[-1] > 1 and isinstance(value.shape[-1], int):
                self.equal[value.name] += float((x.argmax(-1) == y.argmax(-1)).sum()) * _count(part) / max(len(x), 1)
            axis = _columns_axis(value)
            if axis is not None and x.shape == y.shape:
                others = tuple(a for a in range(x.ndim) if a != axis)
                error = np.stack([(x * x).sum(others), ((x - y) ** 2).sum(others)])
                self.columns[value.name] = self.columns.get(value.name, 0) + error

    def _noise(self, name: str, f: Array, q: Array) -> None:
        f = np.asarray(f, np.float64)
        if f.shape == q.shape:
            signal = max(float((f * f).sum()), PROBABLE**2 * f.size if name in self.bounded else 0.0)
            self.sums[name] = self.sums.get(name, np.zeros(2)) + np.asarray([signal, ((f - q) ** 2).sum()])

    def quality(self) -> Quality:
        """What was found."""
        tensors = tuple(self._tensor(name, value) for name, value in self.shared if name in self.sums)
        outputs = tuple(self._output(n) for n in self.names if n in self.sums)
        bounded = self.bounded
        return Quality(self.samples, outputs, tensors, tuple(warnings(outputs, tensors, bounded, self.prepared)))

    def _tensor(self, name: str, value: Value) -> TensorQuality:
        spans = np.asarray(self.spans.get(name, []))
        steps, reach = (float(v) for v in spans.mean(axis=0)) if len(spans) else (None, 1.0)
        op = value.producer.op if value.producer is not None else ""
        return TensorQuality(name, op, decibel(*self.sums[name]), steps, reach or 1.0)

    def _output(self, name: str) -> OutputQuality:
        total, columns = self.sums[name], self.columns.get(name)
        if columns is None or columns.shape[1] < 2:
            return OutputQuality(name, decibel(*total))
        each = [decibel(*c) for c in columns.T]
        worst = int(np.argmin(each))
        same = self.equal[name] / self.samples if len(self.prepared.value(name).shape) == 2 else None
        return OutputQuality(name, decibel(*total), same, worst, each[worst])


BOUNDED = ("Sigmoid", "Softmax", "HardSigmoid", "MaskedSoftmax")
"""What gives shares of one: the sizes of their noise are told from one, and near zero they may well lie in one step."""

PROBABLE = 0.1
"""The signal of a share is taken as at least so large."""

SMALL = 50_000_000
"""Multiply-accumulates for which the reference is as fast as a session of onnxruntime (which compiles nothing)."""

BUDGET, FEWEST = 60_000_000, 4
"""Elements of inner tensors that are computed in all, and how many samples there are at least."""


def shares(graph: Graph) -> set[str]:
    """Names of tensors that hold shares of one, or what is chosen and multiplied of them."""
    found = {v.name for n in graph.nodes if n.op == "Cast" and n.input(0).dtype is DType.BOOL for v in n.outputs}
    for node in graph.nodes:
        op, sources = op_of(node.op), [v.name in found for v in node.inputs if v is not None]
        kept = (op.moves or op.chooses or op.pools) and bool(sources) and sources[0]
        if node.op in BOUNDED or kept or (node.op in ("Mul", "Concat") and all(sources)):
            found.update(v.name for v in node.outputs)
    return found


def _columns_axis(value: Value) -> int | None:
    """The axis of an output's columns: the shorter of the second and the last, of a fixed size."""
    if value.type.rank < 2:
        return None
    second, last = value.shape[1], value.shape[-1]
    if isinstance(second, int) and (isinstance(last, str) or last >= second):
        return 1
    return value.type.rank - 1 if isinstance(last, int) else None


def _count(feeds: Feeds) -> int:
    """Samples in a batch."""
    return max((len(x) for x in feeds.values() if np.ndim(x)), default=1)


def _parts(feeds: Sequence[Feeds], prepared: Graph, shared: Pairs, samples: int) -> tuple[list[Feeds], list[Feeds]]:
    """(batches small enough to look at all tensors in AT_ONCE bytes, further ones)."""
    step = max(1, AT_ONCE // max(24 * sum(_sizes(v for _, v in shared)), 1))
    if len(prepared.symbols) > 1 or not all(v.shape and v.shape[0] == "N" for v in prepared.inputs):
        most = max(1, samples // _count(feeds[0]))
        few = max(1, min(4, 2 * step, most))
        return list(feeds[:few]), list(feeds[few:most])
    names = list(feeds[0])
    whole = {n: np.concatenate([np.asarray(part[n]) for part in feeds])[:samples] for n in names}
    count = _count(whole)
    cuts = [*range(0, min(2 * step, count), step), min(2 * step, count)]
    cuts += [*range(cuts[-1] + BATCH, count, BATCH), count] if cuts[-1] < count else []
    parts: list[Feeds] = [{n: x[i:j] for n, x in whole.items()} for i, j in itertools.pairwise(cuts)]
    inner = min(2, len(parts)) if 2 * step < count else len(parts)
    return parts[:inner], parts[inner:]


def _sizes(values: Iterable[Value]) -> list[int]:
    """Elements of each tensor, for one sample."""
    return [math.prod(d for d in v.shape if isinstance(d, int)) for v in values]


def _reals(value: Value, array: Array) -> NDArray[np.float64]:
    return np.asarray(array, np.float64) if value.quant is None else value.quant.dequantize(array)


def _span(value: Value, f: Array, q: QuantParams | None) -> tuple[float, float] | None:
    """(steps of the grid that the middle of the values takes up, largest over usual size).

    Of an input the median of its channels; zeros (of a Relu, of padding) do not count.
    """
    if q is None or q.dtype.bits > 16:
        return None
    steps = np.asarray(f, np.float64) / q.along(np.ndim(f))[0]
    axis = _channels(value)
    rows = [steps.reshape(-1)] if axis is None else list(np.moveaxis(steps, axis, 0).reshape(steps.shape[axis], -1))
    rows = [r[: 4 * MOST] for r in rows[:: max(1, len(rows) // CHANNELS)]]
    rows = [r[r != 0][:MOST] for r in rows]
    spans = [span for r in rows if r.size >= FEW and (span := float(np.ptp(np.quantile(r, MIDDLE)))) > 0]
    if not spans:  # constants lose nothing
        return None
    sizes = np.abs(steps.reshape(-1)[:: max(1, steps.size // 100_000)])
    usual = float(np.quantile(sizes, 0.999))
    return float(np.median(spans)) + 1, float(sizes.max()) / usual if usual > 0 else math.inf


MOST, CHANNELS = 8192, 32
"""Values of a channel, and channels, that are looked at."""


def _channels(value: Value) -> int | None:
    """The axis of an input along which it may be in units of its own; of what is computed all values count alike."""
    rank = value.type.rank
    if rank < 2 or value.producer is not None:
        return None
    axes = [a for a in (feature_axis(n, i) for n, i in value.uses()) if a is not None]
    return axes[0] if axes else 1 if rank != 3 else 2
