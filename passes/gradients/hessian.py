"""Traces of the loss's second derivatives with respect to each layer's weights, estimated without forming them.

The loss is the mean over samples of the cross-entropy of softmax(output), with labels or with the network's own
predictions as the (fixed) targets; with loss="mse" half the squared distance to the network's own output.

hessian_traces:  E[v^T H v], v of random signs (Hutchinson), H v by central differences of the gradient   [HAWQ-V2]
fisher_traces:   E|J^T u|^2, where u is random with covariance d2 loss / d output2: the Gauss-Newton matrix, which is
                 the Hessian where the targets are the network's own predictions; one backward pass a probe.  For the
                 cross-entropy u = onehot(y) - p with y drawn from p; for "mse" random signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qir.errors import DataError, QuantizationError
from qir.graph import Graph
from qir.types import Array

from .tape import Tape

Floats = NDArray[np.float64]
LOSSES = ("cross_entropy", "mse")


@dataclass(frozen=True)
class Trace:
    """An estimate of a trace, its standard error, and over how many elements the trace runs."""

    trace: float
    error: float
    size: int

    @property
    def mean(self) -> float:
        """The trace by element, which is what HAWQ-V2 multiplies |Q(W) - W|^2 with."""
        return self.trace / self.size


def softmax(y: Array) -> Floats:
    """Along the last axis."""
    e = np.exp(np.asarray(y, np.float64) - np.max(y, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def hessian_traces(
    graph: Graph,
    batches: Iterable[Mapping[str, Array]],
    names: Sequence[str],
    *,
    labels: Sequence[Array] | None = None,
    loss: str = "cross_entropy",
    probes: int = 8,
    seed: int = 0,
    step: float = 1e-4,
) -> dict[str, Trace]:
    """Traces of the diagonal blocks of the Hessian for the constants `names`.

    labels: class indices, an array for each batch; None: the network's own predictions.  probes: for each batch.
    step: of the differences, relative to the weights' root mean square.
    Raises DataError without batches or with labels that do not fit, UnsupportedError where an operator has no gradient.
    """
    rng = np.random.default_rng(seed)
    tape = Tape(graph, np.float64)
    weights = {name: graph.value(name).array().astype(np.float64) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    for i, feeds in enumerate(batches):
        out = _output(graph)
        y = tape.forward(feeds)[out]
        if labels is not None and i >= len(labels):
            raise DataError(f"labels for {len(labels)} batches only", hint="an array of class indices for each batch")
        targets = _targets(y, None if labels is None else labels[i], loss)
        for _ in range(probes):
            signs = {name: rng.choice([-1.0, 1.0], w.shape) for name, w in weights.items()}
            eps = {name: step * max(float(np.sqrt(np.mean(w * w))), 1e-6) for name, w in weights.items()}
            # steps of the blocks differ in size; scaling v by them and the result back keeps each block's diagonal,
            # and the cross terms between blocks still average out
            sides: list[dict[str, Array]] = []
            for side in (1, -1):
                moved = {name: w + side * eps[name] * signs[name] for name, w in weights.items()}
                y = tape.forward(feeds, moved)[out]
                sides.append(tape.backward({out: _residual(y, targets, loss)}, names))
            for name in names:
                product = (sides[0][name] - sides[1][name]) / (2 * eps[name])
                found[name].append(float((product * signs[name]).sum()))
    return _summary(found, {name: w.size for name, w in weights.items()})


def fisher_traces(
    graph: Graph,
    batches: Iterable[Mapping[str, Array]],
    names: Sequence[str],
    *,
    loss: str = "cross_entropy",
    probes: int = 8,
    seed: int = 0,
) -> dict[str, Trace]:
    """Traces of the Gauss-Newton (Fisher) matrix's diagonal blocks; `names` may be activations too.

    An activation's trace runs over one sample's elements.  Arguments and errors as in `hessian_traces`.
    """
    rng = np.random.default_rng(seed)
    tape = Tape(graph, np.float32)
    found: dict[str, list[float]] = {name: [] for name in names}
    sizes: dict[str, int] = {}
    for feeds in batches:
        out = _output(graph)
        y = tape.forward(feeds)[out]
        samples = len(y)
        for _ in range(probes):
            grads = tape.backward({out: _draw(y, loss, rng)}, names)
            for name, g in grads.items():
                value = graph.value(name)
                sizes[name] = g.size if value.is_constant else g.size // samples
                found[name].append(float((np.asarray(g, np.float64) ** 2).sum()) / samples)
    return _summary(found, sizes)


def _output(graph: Graph) -> str:
    outputs = [v for v in graph.outputs if v.dtype.is_float]
    if not outputs:
        raise QuantizationError("has no float output to differentiate", where=f"graph {graph.name!r}")
    return outputs[0].name


def _targets(y: Array, labels: Array | None, loss: str) -> Floats:
    """What the loss compares the output with."""
    if loss not in LOSSES:
        raise QuantizationError(f"no loss {loss!r}", hint=f"one of {', '.join(LOSSES)}")
    if loss == "mse":
        return np.asarray(y, np.float64)
    if labels is None:
        return softmax(y)
    classes, rows = y.shape[-1], y.size // y.shape[-1]
    index = np.asarray(labels)
    if index.size != rows or index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= classes:
        raise DataError(
            f"labels of shape {list(index.shape)} and dtype {index.dtype} do not fit",
            hint=f"{rows} class indices from 0 to {classes - 1} for this batch",
        )
    return np.eye(classes)[index.reshape(-1)].reshape(y.shape)


def _residual(y: Array, targets: Floats, loss: str) -> Floats:
    """Gradient of the mean loss with respect to the output."""
    return ((softmax(y) if loss == "cross_entropy" else y) - targets) / len(y)


def _draw(y: Array, loss: str, rng: np.random.Generator) -> Array:
    """u: mean 0, covariance the second derivative of one sample's loss with respect to its output."""
    if loss == "mse":
        return rng.choice([-1.0, 1.0], y.shape)
    if loss != "cross_entropy":
        raise QuantizationError(f"no loss {loss!r}", hint=f"one of {', '.join(LOSSES)}")
    p = softmax(y)
    edges = p.cumsum(axis=-1)
    drawn = (edges < rng.random((*p.shape[:-1], 1)) * edges[..., -1:]).sum(axis=-1)
    return np.eye(p.shape[-1])[drawn] - p


def _summary(found: Mapping[str, Sequence[float]], sizes: Mapping[str, int]) -> dict[str, Trace]:
    result: dict[str, Trace] = {}
    for name, values in found.items():
        if not values:
            raise DataError("no data to estimate traces from", hint="at least one batch is needed")
        error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("inf")
        result[name] = Trace(float(np.mean(values)), error, sizes[name])
    return result
