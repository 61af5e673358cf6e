"""What can be said about activations without data: moments of each channel, carried through the graph.

Where batch normalization was folded into a layer, its output has mean beta and deviation |gamma| by construction;
elsewhere mean and variance follow from the layer's weights, its inputs taken as independent. Relu and Clip turn a
normal distribution into a clipped one [White Paper eq. 28, with an upper limit too]. From the moments come ranges
[White Paper eq. 18-19], q = beta -+ alpha gamma, and the input means that analytic bias correction needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qir.errors import QirError
from qir.graph import Graph, Node, Value
from qir.ops import op_of
from qir.ops.unary import Unary
from qir.sizes import dim_at

from ..quantization.placement import is_activation, observed
from ..quantization.ranges import Interval, Ranges

Floats = NDArray[np.float64]

ALPHA = 6.0
"""Deviations that a range reaches, so that only large outliers are clipped [White Paper 3.1]."""
BATCH_NORM_TABLE = "batch_norm"
"""graph.tables entry that FoldBatchNorm leaves: value name -> (beta, gamma) of its channels."""

_NODES = np.linspace(-3.0, 3.0, 61)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()


@dataclass(frozen=True)
class ChannelMoments:
    """Of each channel (axis 1) of a tensor, or one for all: mean, standard deviation, and limits never exceeded."""

    mean: Floats
    std: Floats
    lo: Floats
    hi: Floats

    @staticmethod
    def normal(mean: Floats, std: Floats) -> ChannelMoments:
        """Without limits."""
        free = np.full(mean.shape, math.inf)
        return ChannelMoments(mean, std, -free, free)

    def interval(self, alpha: float) -> Interval:
        """[min(mean - alpha std), max(mean + alpha std)] within the limits  [White Paper eq. 18-19]."""
        lo = np.maximum(self.mean - alpha * self.std, self.lo)
        hi = np.minimum(self.mean + alpha * self.std, self.hi)
        return float(np.minimum(lo, hi).min()), float(np.maximum(lo, hi).max())  # a constant's may cross by rounding

    def clipped(self, lo: float, hi: float) -> ChannelMoments:
        """After clamping to [lo, hi], the values being normal before; a tail of 1e-6 deviations counts as none."""
        mean, std = clipped_normal(self.mean, self.std, lo, hi)
        gone = std < 1e-6 * self.std
        mean, std = np.where(gone, np.clip(self.mean, lo, hi), mean), np.where(gone, 0.0, std)
        return ChannelMoments(mean, std, np.clip(self.lo, lo, hi), np.clip(self.hi, lo, hi))


def clipped_normal(mean: Floats, std: Floats, lo: float, hi: float) -> tuple[Floats, Floats]:
    """Mean and deviation of min(max(x, lo), hi), x normal; lo = 0, hi = inf is Relu  [White Paper eq. 28]."""
    s = np.maximum(std, 1e-12)
    a = np.clip((lo - mean) / s, -40, 40)
    b = np.clip((hi - mean) / s, -40, 40)
    pa, pb, ca, cb = _pdf(a), _pdf(b), _cdf(a), _cdf(b)
    low, high = (0.0 if math.isinf(v) else v for v in (lo, hi))
    inside = cb - ca
    first = mean * inside + s * (pa - pb) + low * ca + high * (1 - cb)
    second = (mean**2 + s**2) * inside + s * ((mean + lo_or(lo, mean)) * pa - (mean + lo_or(hi, mean)) * pb)
    second = second + low**2 * ca + high**2 * (1 - cb)
    return first, np.sqrt(np.maximum(second - first**2, 0.0))


def lo_or(limit: float, mean: Floats) -> Floats:
    """The limit, or the mean where there is none (its density is zero there)."""
    return mean if math.isinf(limit) else np.full(mean.shape, limit)


def _pdf(z: Floats) -> Floats:
    return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def _cdf(z: Floats) -> Floats:
    return np.asarray([0.5 * math.erfc(-v / math.sqrt(2)) for v in z.reshape(-1)]).reshape(z.shape)


def analytic_moments(graph: Graph, input_ranges: Mapping[str, Interval] | None = None) -> dict[str, ChannelMoments]:
    """Moments of every activation of a float graph.

    input_ranges: what inputs hold; an input without one is taken as normalized (mean 0, deviation 1).
    """
    found: dict[Value, ChannelMoments] = {}
    table = graph.tables.get(BATCH_NORM_TABLE, {})
    for value in graph.inputs:
        if is_activation(value):
            found[value] = _input(value, (input_ranges or {}).get(value.name))
    for node in graph.nodes:
        for value in node.outputs:
            if not is_activation(value):
                continue
            if value.name in table:
                beta, gamma = table[value.name]
                found[value] = ChannelMoments.normal(
                    np.asarray(beta, np.float64), np.abs(np.asarray(gamma, np.float64))
                )
            else:
                found[value] = _propagate(node, value, found)
    return {value.name: moments for value, moments in found.items()}


def data_free_ranges(
    graph: Graph, *, input_ranges: Mapping[str, Interval] | None = None, alpha: float = ALPHA
) -> Ranges:
    """Ranges of every tensor that a quantizer may ask for, from batch-norm statistics and weights alone."""
    moments = analytic_moments(graph, input_ranges)
    return Ranges.of({name: moments[name].interval(alpha) for name in observed(graph)}, "bn")


def _input(value: Value, given: Interval | None) -> ChannelMoments:
    if given is None:
        return ChannelMoments.normal(np.zeros(1), np.ones(1))
    lo, hi = (np.full(1, float(v)) for v in given)
    return ChannelMoments((lo + hi) / 2, (hi - lo) / math.sqrt(12.0), lo, hi)


# -- one operator -----------------------------------------------------------------------------
def _propagate(node: Node, value: Value, found: Mapping[Value, ChannelMoments]) -> ChannelMoments:
    """Moments of an output from those of the inputs."""
    known = [found[v] for v in node.inputs if v is not None and v in found]
    if not known:
        return ChannelMoments.normal(np.zeros(1), np.ones(1))
    op = op_of(node.op)
    if op.linear and len(known) == 1 and node.input(1).is_constant:
        return _linear(node, found[node.input(0)])
    if node.op == "Relu":
        return known[0].clipped(0.0, math.inf)
    if node.op == "Clip":
        return known[0].clipped(*_limits(node))
    if op.additive:
        return _sum(node, value, found)
    if op.pools and node.op != "ReduceSum":
        return _fit(known[0], _channels(value))
    if node.op == "Mul":
        return _product(node, value, found)
    if len(known) == 1 and len(node.inputs) >= 1 and _is_unary(node):
        return _unary(node, known[0])
    return _moved(node, value, found)


def _limits(node: Node) -> Interval:
    ends = [node.optional(i) for i in (1, 2)]
    lo, hi = (None if v is None or v.data is None or v.data.size != 1 else float(v.data.reshape(())) for v in ends)
    return (-math.inf if lo is None else lo), (math.inf if hi is None else hi)


def _linear(node: Node, x: ChannelMoments) -> ChannelMoments:
    """mean = sum w mean_x + b, variance = sum w^2 variance_x."""
    w = node.input(1).array().astype(np.float64)
    bias = node.optional(2)
    if node.op == "Conv":
        taps = (w.reshape(*w.shape[:2], -1).sum(2), np.square(w).reshape(*w.shape[:2], -1).sum(2))
        group = int(node.attrs.get("group", 1))
        mean, var = (_grouped(t, v, group) for t, v in zip(taps, (x.mean, x.std**2), strict=True))
    elif node.op == "ConvTranspose":
        group, spread = int(node.attrs.get("group", 1)), max(int(np.prod(node.attrs.get("strides") or [1])), 1)
        flat = w.reshape(group, w.shape[0] // group, w.shape[1], -1)
        rows = [np.swapaxes(p.sum(-1), 1, 2).reshape(-1, w.shape[0] // group) / spread for p in (flat, flat**2)]
        mean, var = (_grouped(t, v, group) for t, v in zip(rows, (x.mean, x.std**2), strict=True))
    else:
        m = w if node.op == "Gemm" and node.attrs.get("transB", 0) else np.swapaxes(w.reshape(-1, w.shape[-1]), 0, 1)
        mean, var = (_grouped(t, v, 1) for t, v in ((m, x.mean), (m * m, x.std**2)))
    if bias is not None and bias.data is not None:
        mean = mean + np.broadcast_to(bias.data.astype(np.float64).reshape(-1), mean.shape)
    return ChannelMoments.normal(mean, np.sqrt(var))


def _grouped(w: Floats, x: Floats, group: int) -> Floats:
    """w (M, C/group) times each group's part of x (C,)."""
    full = _fit_vector(x, w.shape[1] * group).reshape(group, w.shape[1])
    return np.einsum("gmc,gc->gm", w.reshape(group, -1, w.shape[1]), full).reshape(-1)


def _operand(v: Value, found: Mapping[Value, ChannelMoments]) -> ChannelMoments | None:
    """Moments of an activation or of a constant's elements."""
    m = found.get(v)
    if m is None and v.data is not None:
        c = v.data.astype(np.float64)
        if not np.isfinite(c).all():  # a mask
            return None
        centre = np.asarray([c.mean()]) if c.size else np.zeros(1)
        m = ChannelMoments(centre, np.asarray([c.std()]), np.asarray([c.min()]), np.asarray([c.max()]))
    return m


def _product(node: Node, value: Value, found: Mapping[Value, ChannelMoments]) -> ChannelMoments:
    """Of independent variables: mean = m1 m2, variance = m1^2 v2 + m2^2 v1 + v1 v2; limits: those of the corners."""
    pair = [_operand(node.input(i), found) for i in (0, 1)]
    a, b = (
        _fit(m, _channels(value)) if m is not None else ChannelMoments.normal(np.zeros(1), np.ones(1)) for m in pair
    )
    var = np.square(a.mean * b.std) + np.square(b.mean * a.std) + np.square(a.std * b.std)
    with np.errstate(invalid="ignore"):  # zero times no limit
        corners = np.stack([np.nan_to_num(p * q, nan=0.0, posinf=np.inf, neginf=-np.inf)
                            for p in (a.lo, a.hi) for q in (b.lo, b.hi)])  # fmt: skip
    return ChannelMoments(a.mean * b.mean, np.sqrt(var), corners.min(0), corners.max(0))


def _sum(node: Node, value: Value, found: Mapping[Value, ChannelMoments]) -> ChannelMoments:
    operands = [None if v is None else _operand(v, found) for v in node.inputs]
    if len({m.mean.size for m in operands if m is not None} - {1}) > 1:  # of other axes: known of all channels alike
        operands = [None if m is None else _fit(m, _channels(value)) for m in operands]
    mean, var, lo, hi = (np.zeros(1) for _ in range(4))
    for i, m in enumerate(operands):
        sign = -1.0 if node.op == "Sub" and i else 1.0
        if m is not None:
            mean, var = mean + sign * m.mean, var + m.std**2
            lo, hi = lo + (m.lo if sign > 0 else -m.hi), hi + (m.hi if sign > 0 else -m.lo)
    shape = np.broadcast_shapes(mean.shape, var.shape)
    return ChannelMoments(*(np.broadcast_to(v, shape).copy() for v in (mean, np.sqrt(var), lo, hi)))


def _is_unary(node: Node) -> bool:
    op = op_of(node.op)
    shapes = node.input(0).shape == node.output.shape and len(node.outputs) == 1
    return shapes and isinstance(op, Unary) and op.everywhere


def _unary(node: Node, x: ChannelMoments) -> ChannelMoments:
    """A function of a normal variable, by quadrature."""
    rest = [None if v is None else v.data for v in node.inputs[1:]]
    points = x.mean[None] + x.std[None] * _NODES[:, None]
    points = np.clip(points, x.lo, x.hi).astype(np.float32)
    y = np.asarray(op_of(node.op).reference(node.attrs, points, *rest)[0], np.float64)
    mean = (y * _WEIGHTS[:, None]).sum(0)
    std = np.sqrt(np.maximum((np.square(y) * _WEIGHTS[:, None]).sum(0) - mean**2, 0.0))
    far = x.mean[None] + ALPHA * x.std[None] * np.linspace(-1, 1, 241)[:, None]
    far = np.clip(far, x.lo, x.hi).astype(np.float32)
    ends = np.asarray(op_of(node.op).reference(node.attrs, far, *rest)[0], np.float64)
    return ChannelMoments(mean, std, ends.min(0), ends.max(0))


def _moved(node: Node, value: Value, found: Mapping[Value, ChannelMoments]) -> ChannelMoments:
    """Any other operator: applied to tensors filled with each channel's moments, which is exact where it only moves."""
    parts = [_apply(node, value, found, which) for which in ("mean", "std", "lo", "hi")]
    if any(p is None for p in parts):
        known = [found[v] for v in node.inputs if v is not None and v in found]
        mean = np.asarray([float(np.mean([m.mean.mean() for m in known]))])
        std = np.asarray([max(float(np.abs(m.mean).max() + m.std.max()) for m in known)])
        return ChannelMoments.normal(mean, std)
    mean, std, lo, hi = (p for p in parts if p is not None)
    return ChannelMoments(mean, np.abs(std), *_ordered(mean, lo, hi))


def _ordered(mean: Floats, lo: Floats, hi: Floats) -> tuple[Floats, Floats]:
    """Limits in order where the operator turned them round; none where it made none of them."""
    low, high = np.minimum(lo, hi), np.maximum(lo, hi)
    return np.where(low <= mean, low, -np.inf), np.where(high >= mean, high, np.inf)


def _apply(node: Node, value: Value, found: Mapping[Value, ChannelMoments], which: str) -> Floats | None:
    """One kind of moment through an operator's reference; None where it cannot be."""
    inputs: list[NDArray[np.float32] | None] = []
    for v in node.inputs:
        if v is not None and v in found:
            shape = [dim_at(d, 1) for d in v.shape]
            moment = _fit_vector(getattr(found[v], which), shape[1] if len(shape) > 1 else 1)
            column = moment.reshape([1, -1, *[1] * (len(shape) - 2)]) if len(shape) > 1 else moment
            inputs.append(np.broadcast_to(column, shape).astype(np.float32))
        else:
            inputs.append(None if v is None else v.data)  # type: ignore[arg-type]
    try:
        with np.errstate(all="ignore"):
            y = op_of(node.op).reference(node.attrs, *inputs)[node.outputs.index(value)].astype(np.float64)
    except (QirError, ValueError, IndexError, TypeError):
        return None
    if not y.size:
        return None
    if y.ndim < 2:
        return None if np.isnan(y).any() else y.reshape(-1)[:1]
    y = np.moveaxis(y, 1, 0).reshape(y.shape[1], -1)
    reduced = {"lo": y.min(1), "hi": y.max(1)}.get(which, y.mean(1))
    return None if np.isnan(reduced).any() else reduced


def _channels(value: Value) -> int:
    size = value.shape[1] if value.type.rank > 1 else 1
    return size if isinstance(size, int) else 1


def _fit(m: ChannelMoments, channels: int) -> ChannelMoments:
    return ChannelMoments(*(_fit_vector(v, channels) for v in (m.mean, m.std, m.lo, m.hi)))


def _fit_vector(v: Floats, channels: int) -> Floats:
    """A vector over `channels`: as it is, each repeated (flattened maps), or its mean."""
    if len(v) == channels:
        return v
    if channels % len(v) == 0:
        return np.repeat(v, channels // len(v))
    return np.full(channels, v.mean())
