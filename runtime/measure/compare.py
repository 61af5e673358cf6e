"""A float graph and its integer counterpart side by side: how much noise each tensor carries."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qir.errors import DataError
from qir.graph import Graph
from qir.types import Array, QuantParams

from ..session import Session

RESCALED_GAIN_DB = 6.0
"""A tensor counts as rescaled by a rewrite when a per-channel affine fit explains this much of the noise."""


AT_ONCE = 256 << 20
"""Bytes of inner tensors that are looked at together: a batch is run in parts that keep below."""


@dataclass
class PairMoments:
    """Sums over one tensor, by channel (axis 1): single pass, constant memory."""

    count: float = 0.0
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((5, 1)))
    """sum f, sum q, sum f^2, sum q^2, sum f q"""

    def add(self, f: Array, q: Array) -> None:
        f, q = by_channel(f), by_channel(q)
        if self.count and len(f) != self.sums.shape[1]:  # channels of an open size: all are one
            self.count, self.sums = self.count * self.sums.shape[1], self.sums.sum(1, keepdims=True)
            f, q = f.reshape(1, -1), q.reshape(1, -1)
        new = np.stack([f.sum(1), q.sum(1), (f * f).sum(1), (q * q).sum(1), (f * q).sum(1)])
        self.sums = new if self.count == 0 else self.sums + new
        self.count += f.shape[1]

    @property
    def sqnr(self) -> float:
        """10 log10(sum f^2 / sum (f - q)^2) in dB; inf where both are equal."""
        _, _, ff, qq, fq = self.sums
        return decibel(ff.sum(), (ff - 2 * fq + qq).sum())

    @property
    def worst(self) -> tuple[int, float] | None:
        """(channel, its SQNR) of the noisiest of several; None where there is one."""
        _, _, ff, qq, fq = self.sums
        if len(ff) < 2:
            return None
        each = [decibel(float(s), float(n)) if s or n else math.inf for s, n in zip(ff, ff - 2 * fq + qq, strict=True)]
        index = int(np.argmin(each))
        return index, each[index]

    @property
    def fitted_sqnr(self) -> float:
        """The same after the best affine map a*q + b of each channel: what equalization and bias absorption change."""
        f, q, ff, qq, fq = self.sums
        n = max(self.count, 1.0)
        var_f, var_q, cov = ff - f * f / n, qq - q * q / n, fq - f * q / n
        left = var_f - np.where(var_q > 0, cov * cov / np.where(var_q > 0, var_q, 1.0), 0.0)
        return decibel(ff.sum(), np.maximum(left, 0.0).sum())


def by_channel(x: Array) -> NDArray[np.float64]:
    """(channels, everything else); one row where there is no channel axis."""
    x = np.asarray(x, dtype=np.float64)
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1) if x.ndim > 1 and x.size else x.reshape(1, -1)


def columns_first(x: Array) -> Array:
    """An output with its columns on axis 1: the last axis, where that is the shorter."""
    return np.moveaxis(x, -1, 1) if x.ndim > 2 and x.shape[-1] < x.shape[1] else x


def decibel(signal: float, noise: float) -> float:
    # sums of squares cancel to about 1e-13 of the signal: what is below is equality
    if noise <= 1e-12 * signal:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0 else -math.inf


@dataclass(frozen=True)
class TensorNoise:
    """One tensor in both graphs. sqnr: dB.  fitted: dB after a per-channel affine fit."""

    name: str
    op: str
    dtype: str
    sqnr: float
    fitted: float

    @property
    def rescaled(self) -> bool:
        """A rewrite (equalization, bias absorption) changed what the tensor stands for, channel by channel."""
        return self.fitted > max(self.sqnr, 0.0) + RESCALED_GAIN_DB and self.sqnr < 15.0

    @property
    def score(self) -> float:
        """The figure that says how well the tensor is kept."""
        return self.fitted if self.rescaled else self.sqnr


@dataclass(frozen=True)
class OutputMatch:
    """One output. agreement: share of equal argmax over the last axis (None for outputs that are no scores).

    column, column_sqnr: the noisiest column (channel, where these are fewer), of outputs that have some: columns in
    units of their own are lost without a trace in the whole.
    """

    name: str
    sqnr: float
    agreement: float | None
    largest_difference: float
    column: int | None = None
    column_sqnr: float | None = None


@dataclass(frozen=True)
class Comparison:
    """tensors: worst first.  samples: how many inputs."""

    tensors: list[TensorNoise]
    outputs: list[OutputMatch]
    samples: int


def dequantized(array: Array, quant: QuantParams | None) -> Array:
    return array if quant is None else quant.dequantize(array)


def shared_tensors(reference: Graph, integer: Graph) -> list[str]:
    """Names of the quantized tensors of `integer` that are tensors of `reference` too, in execution order."""
    return [
        v.name
        for node in integer.nodes
        for v in node.outputs
        if v.quant is not None and v.name in reference and not reference.value(v.name).is_constant
    ]


def compare_graphs(
    reference: Graph, integer: Graph, batches: Iterable[Mapping[str, Array]], *, backend: str = "onnxruntime",
    per_layer: bool = True,
) -> Comparison:  # fmt: skip
    """Run both graphs on the same inputs and measure the noise of every tensor that has the same name in both.

    batches: feeds of the float graph; an integer input (`io="integer"`) is quantized on its own grid, and becomes
    pixels where a normalization was folded.
    Raises DataError where there are no samples or the graphs' inputs or outputs differ in number.
    """
    if len(reference.inputs) != len(integer.inputs) or len(reference.outputs) != len(integer.outputs):
        raise DataError("the two models have different inputs or outputs", hint="the second must be made of the first")
    one, two = Session(reference, backend="onnxruntime"), Session(integer, backend=backend)
    names = shared_tensors(reference, integer) if per_layer else []
    ours = [v.name for v in reference.outputs]
    theirs = [v.name for v in integer.outputs]
    moments: dict[str, PairMoments] = {n: PairMoments() for n in names}
    output_moments: dict[str, PairMoments] = {n: PairMoments() for n in ours}
    equal: dict[str, list[float]] = {n: [] for n in ours}
    largest: dict[str, float] = dict.fromkeys(ours, 0.0)
    samples = 0
    step = max(1, AT_ONCE // max(_sample_bytes(reference, names) + _sample_bytes(integer, names), 1))
    free = all(not v.shape or v.shape[0] == "N" for g in (reference, integer) for v in g.inputs)
    for feeds in (part for whole in batches for part in (_parts(whole, step) if free else [whole])):
        f = one.run(feeds, outputs=list(dict.fromkeys([*names, *ours])))
        twin_feeds = dict(zip((v.name for v in integer.inputs), (feeds[v.name] for v in reference.inputs), strict=True))
        q = two.run(on_grid(integer, twin_feeds), outputs=list(dict.fromkeys([*names, *theirs])))
        samples += len(next(iter(feeds.values())))
        for name in names:
            moments[name].add(f[name], dequantized(q[name], integer.value(name).quant))
        for a, b in zip(ours, theirs, strict=True):
            x, y = f[a], dequantized(q[b], integer.value(b).quant)
            if x.shape != y.shape:
                raise DataError(f"output {a!r} has shape {x.shape} in one model and {y.shape} in the other")
            output_moments[a].add(columns_first(x), columns_first(y))
            largest[a] = max(largest[a], float(np.abs(x.astype(np.float64) - y).max(initial=0.0)))
            if x.ndim >= 2 and x.shape[-1] > 1:
                equal[a].append(float((x.argmax(-1) == y.argmax(-1)).mean()) * len(x))
    if not samples:
        raise DataError("no samples to compare on")
    tensors = [_noise(integer, name, moments[name]) for name in names]
    outputs = [
        OutputMatch(
            n, output_moments[n].sqnr, sum(equal[n]) / samples if _is_scores(reference, n) else None, largest[n],
            *(output_moments[n].worst or (None, None)),
        )
        for n in ours
    ]  # fmt: skip
    return Comparison(sorted(tensors, key=lambda t: t.score), outputs, samples)


def _sample_bytes(graph: Graph, names: Iterable[str]) -> int:
    """Bytes of these tensors for one sample, and of their copies in double precision."""
    return sum(
        (8 + value.dtype.numpy.itemsize) * math.prod(d for d in value.shape if isinstance(d, int))
        for value in map(graph.value, names)
    )


def _parts(feeds: Mapping[str, Array], step: int) -> Iterator[dict[str, Array]]:
    """The batch, a few samples at a time."""
    count = len(next(iter(feeds.values())))
    for start in range(0, count, step):
        yield {name: x[start : start + step] for name, x in feeds.items()}


def _noise(integer: Graph, name: str, m: PairMoments) -> TensorNoise:
    value = integer.value(name)
    producer: Any = value.producer
    return TensorNoise(name, producer.op, str(value.dtype), m.sqnr, m.fitted_sqnr)


def _is_scores(graph: Graph, name: str) -> bool:
    """One score for each class: (batch, classes)."""
    shape = graph.value(name).shape
    return len(shape) == 2 and isinstance(shape[-1], int) and shape[-1] > 1


def on_grid(integer: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Float feeds as an integer graph takes them: pixels where a normalization was folded, quantized where asked."""
    folded: dict[str, Any] = json.loads(integer.metadata.get("qir.normalization", "{}"))
    result: dict[str, Array] = {}
    for value in integer.inputs:
        x = np.asarray(feeds[value.name])
        if value.name in folded and x.dtype.kind == "f":
            shape = [1] * x.ndim
            shape[folded[value.name]["axis"]] = -1
            mean, std = (np.asarray(folded[value.name][k], np.float64).reshape(shape) for k in ("mean", "std"))
            x = np.clip(np.rint(x * std + mean), 0, 255).astype(value.dtype.numpy)
        elif value.quant is not None and x.dtype.kind == "f":
            x = value.quant.quantize(x)
        result[value.name] = x
    return result
