"""RoundWeights: choose the integers of every layer's weights so that its output, not its weights, is least changed.

One layer after the other, in the order of execution: the layer's input in the quantized graph, with everything before
it rounded already, against its input in the float graph. The float output W x + b is the target, so errors that come in
are made good where the layer can. Methods: "gptq" (second moments and error feedback, see `rounding`) and "adaround"
(gradient descent on the rounding, see `adaround`).                                          [White Paper eq. 29-35]
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qir.errors import DataError, QuantizationError
from qir.graph import Graph, Node, Stage, Value
from qir.ops import op_of
from qir.ops.requantize import params_of
from qir.types import Array, QuantParams

from ..calibration.correct_bias import CorrectBias
from ..calibration.stepper import Stepper
from ..manager import Pass
from ..quantization.given_grids import KEPT_LAYERS
from ..report import PassReport
from .adaround import AdaRoundOptions, Samples, activation_after, adaround, identity
from .error_feedback import Floats, Grid, Metric, Rounded, damped, round_rows, shifted_target
from .layer_rows import InputMoments, as_rows, columns, from_rows, positions, why_not

METHODS = ("gptq", "adaround")
LEAST_IMPORTANCE = 0.02
"""Weight of a position at which no output passes the activation."""


@dataclass(frozen=True)
class RoundWeights(Pass):
    """QDQ -> QDQ: new integers (and scales, and biases) for Conv, Gemm and MatMul weights.

    reference:  the float graph that the QDQ graph was made from (same node names).
    batches:    mappings from input name to array; iterated once.
    method:     "gptq" or "adaround".
    sweeps:     of coordinate descent after the feedback.   refit: move each row's scale to its best value.
    follow:     how far a layer makes good what its inputs lack: 0 it keeps to its own weights, 1 weights and bias have
                the least squared error (with noisy inputs they then shrink and shift more than is good later on).
    bias:       shift the bias by what rounding changes in the mean output; CorrectBias is not needed then.
    means:      as CorrectBias has them; with `bias`, for the layers that cannot be rounded from data.
    damping:    share of the mean diagonal added to the second moments.
    rows:       input columns looked at for each layer, at least 4 for each weight of a sum.
    memory:     bytes that moments of layers collected at the same time may take.
    max_bits:   layers whose weights are wider stay rounded to nearest (their biases are shifted all the same).
    seed:       picks the columns.   learning: what "adaround" does.
    """

    name: ClassVar[str] = "round_weights"
    requires: ClassVar[Stage] = Stage.QDQ

    reference: Graph
    batches: Iterable[Mapping[str, Array]]
    method: str = "gptq"
    sweeps: int = 2
    refit: bool = True
    follow: float = 0.3
    bias: bool = True
    damping: float = 0.01
    rows: int = 8192
    memory: int = 1 << 30
    max_bits: int = 8
    seed: int = 0
    learning: AdaRoundOptions = field(default_factory=AdaRoundOptions)
    means: Mapping[str, Array] = field(default_factory=dict[str, Array])

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise QuantizationError(f"no rounding method {self.method!r}", hint=f"one of {', '.join(METHODS)}")
        if self.rows < 1 or self.sweeps < 0 or not self.damping > 0:
            raise QuantizationError("rows and damping are positive, sweeps not negative")

    def run(self, graph: Graph) -> PassReport:
        """Raises DataError where there are no batches; layers that cannot be rounded are named in the report."""
        report = self.report()
        floats = {n.name: n for n in self.reference.nodes}
        layers: list[_Layer] = []
        for node in graph.nodes:
            if not op_of(node.op).linear:
                continue
            reason = _unfit(node, floats.get(node.name))
            if node.name in graph.tables.get(KEPT_LAYERS, {}):
                reason = "its weights' integers are given"
            if reason:
                report.missed(self.name, node.name, reason)
            else:
                layers.append(_Layer(node, floats[node.name]))
        if self.bias and self.means:  # before the others, which make good what these leave
            rest = set(floats) - {layer.node.name for layer in layers}
            for name in CorrectBias(self.reference, self.means, rest).run(graph).rewrites.get(CorrectBias.name, ()):
                report.rewrote(CorrectBias.name, name)
        with tempfile.TemporaryDirectory(prefix="qir-") as folder:
            paths = Path(folder, "float"), Path(folder, "quantized")
            for path in paths:
                path.mkdir()
            steppers = [Stepper(g, path) for g, path in zip((self.reference, graph), paths, strict=True)]
            for feeds in self.batches:
                for stepper in steppers:
                    stepper.add(feeds)
            if not steppers[0].count:
                raise DataError("no data to round weights with", hint="the iterable is empty, or was used up before")
            rng = np.random.default_rng(self.seed)
            for wave in _waves(layers, self.memory):
                self._wave(graph, wave, steppers, rng, report)
        return report

    def _wave(
        self, graph: Graph, wave: list[_Layer], steppers: list[Stepper], rng: np.random.Generator, report: PassReport
    ) -> None:
        """Collect the inputs of layers that do not depend on each other, then round them."""
        xs = list(dict.fromkeys(layer.counterpart.input(0).name for layer in wave))
        qs = list(dict.fromkeys(layer.node.input(0).name for layer in wave))
        for layer in wave:
            layer.open(self)
        count = steppers[0].count
        for x, x_q in zip(steppers[0].advance(xs), steppers[1].advance(qs), strict=True):
            for layer in wave:
                layer.see(x[layer.counterpart.input(0).name], x_q[layer.node.input(0).name], rng, count)
        for layer in wave:
            found = layer.solve(self)
            layer.write(graph, found)
            layer.close()
            report.rewrote(self.method, layer.node.name)
            if found.nearest > 0:
                share = found.error / found.nearest
                report.note(f"{layer.node.name}: output error {share:.3f} of rounding to nearest")


class _Layer:
    """One layer of the QDQ graph, its float counterpart, and what is collected for it."""

    def __init__(self, node: Node, counterpart: Node) -> None:
        self.node, self.counterpart = node, counterpart
        back = node.input(1).producer
        assert back is not None
        self.back = back
        self.quant = params_of(back)
        self.w = counterpart.input(1).array()
        self.rows = as_rows(counterpart, self.w.astype(np.float64))
        self.moments: InputMoments | None = None
        self.samples: Samples | None = None

    @property
    def has_bias(self) -> bool:
        """Whether there is a place for one: a MatMul has none."""
        return self.node.op != "MatMul"

    @property
    def size(self) -> int:
        """Bytes of the moments."""
        return 16 * self.rows.shape[0] * self.rows.shape[2] ** 2

    def open(self, options: RoundWeights) -> None:
        """Start collecting."""
        g, _, k = self.rows.shape
        self.moments = InputMoments(g, k)
        self.wanted = max(options.rows, 4 * k)
        if options.method == "adaround" and self.quant.dtype.bits <= options.max_bits:
            self.samples = Samples(options.learning.rows)

    def see(self, x: Array, x_q: Array, rng: np.random.Generator, batches: int) -> None:
        """One batch's inputs, float and quantized."""
        assert self.moments is not None
        total = positions(self.node, x, self.w.shape)
        share = -(-self.wanted // batches)
        pick: NDArray[np.int64] = np.arange(total) if total <= share else np.sort(rng.choice(total, share, False))
        both = [columns(self.node, v, self.w.shape, pick) for v in (x, x_q)]
        self.moments.add(both[0], both[1], self._importance(both[0]))
        if self.samples is not None:
            self.samples.add(both[0], both[1], batches, rng)

    def _importance(self, x: Array) -> Array | None:
        """Weight of each position: the share of outputs that the activation after the layer lets through, and a bit.

        Where a Relu leaves little, errors below zero do not count, and a least-squares fit must not be ruled by them.
        """
        f = activation_after(self.counterpart)
        if f is identity:
            return None
        g, m = self.rows.shape[:2]
        b = _bias(self.counterpart.optional(2), g * m).reshape(g, 1, m)
        y = np.matmul(x, np.swapaxes(self.rows, 1, 2).astype(x.dtype)) + b.astype(x.dtype)
        return f(np, y)[1].mean(axis=(0, 2)) + LEAST_IMPORTANCE

    def solve(self, options: RoundWeights) -> Rounded:
        """The integers; also the bias that goes with them, in `self.shift`."""
        assert self.moments is not None
        centred = options.bias and self.has_bias
        mean, mean_q = self.moments.means()
        h, cross = self.moments.second(centred)
        self.moments = None
        target, metric = self.rows, None
        if self.quant.dtype.bits <= options.max_bits and self.samples is None:
            metric = _metric(h, options.damping)
        if options.follow and metric is not None and np.isfinite(cross).all():
            target = shifted_target(target, np.subtract(cross, h, out=cross), metric, options.follow)
        del cross
        g, m = self.rows.shape[:2]
        scale: Floats = np.broadcast_to(np.asarray(self.quant.scale), (g * m,)).reshape(g, m)
        grid = Grid(scale, self.quant.dtype.hi)
        if self.quant.dtype.bits > options.max_bits:
            q = grid.nearest(self.rows)
            found = Rounded(q, scale, 0.0, 0.0)
        elif self.samples is not None:
            found = self._adaround(options, grid, h)
        elif metric is None:
            found = Rounded(grid.nearest(self.rows), scale, 0.0, 0.0)
        else:
            refit = options.refit and self.quant.per_channel
            found = round_rows(target, h, grid, sweeps=options.sweeps, refit=refit, metric=metric)
        self.shift = np.zeros(g * m)
        if centred:
            made = found.q * found.scale[..., None]
            mean_q = mean + options.follow * (mean_q - mean)
            wanted = np.einsum("gmk,gk->gm", self.rows, mean) - np.einsum("gmk,gk->gm", made, mean_q)
            self.shift = wanted.reshape(-1)
        return found

    def _adaround(self, options: RoundWeights, grid: Grid, h: Floats) -> Rounded:
        assert self.samples is not None
        bias = _bias(self.counterpart.optional(2), grid.scale.size) if self.has_bias else np.zeros(grid.scale.size)
        f = activation_after(self.counterpart)
        found = adaround(self.rows, grid, self.samples, bias.reshape(grid.scale.shape), f, options.learning)
        return Rounded(found.q, grid.scale, found.error, found.nearest)

    def write(self, graph: Graph, found: Rounded) -> None:
        """New constants in place of the old ones."""
        node, back, axis = self.node, self.back, self.quant.axis
        kind = self.quant.dtype
        per_channel = self.quant.per_channel
        scale = found.scale.reshape(-1) if per_channel else found.scale.reshape(-1)[:1]
        quant = QuantParams.make(scale, 0, kind, axis)
        ints = from_rows(node, found.q, self.w.shape).astype(kind.numpy)
        old, old_scale = back.input(0), back.input(1)
        new = graph.add_constant(f"{old.name}.rounded", ints, kind, quant)
        array = np.asarray(quant.scale, old_scale.dtype.numpy).reshape(old_scale.array().shape)
        graph.set_input(back, 0, new)
        graph.set_input(back, 1, graph.add_constant(f"{old_scale.name}.rounded", array))
        if self.shift.any():
            beta = float(node.attrs.get("beta", 1.0)) or 1.0
            shift = self.shift * float(node.attrs.get("alpha", 1.0)) / beta
            before = node.optional(2)
            array = (_bias(before, len(shift)) + shift).astype(node.output.dtype.numpy)
            stem = before.name if before is not None else f"{node.name}.bias"
            graph.set_input(node, 2, graph.add_constant(f"{stem}.rounded", array))

    def close(self) -> None:
        """Let go of what was collected."""
        self.moments = self.samples = None


def _metric(h: Floats, damping: float) -> Metric | None:
    """None where second moments are of no use: not finite, or hopelessly indefinite."""
    try:
        return damped(h, damping)
    except np.linalg.LinAlgError:
        return None


def _bias(value: Value | None, count: int) -> Floats:
    """A layer's bias as reals: absent, a float constant, or integers behind a DequantizeLinear."""
    if value is None:
        return np.zeros(count)
    if value.data is None:
        assert value.producer is not None
        reals = params_of(value.producer).dequantize(value.producer.input(0).array())
    else:
        reals = value.data.astype(np.float64)
    return np.broadcast_to(reals.reshape(-1), (count,)).copy()


def _unfit(node: Node, counterpart: Node | None) -> str | None:
    """A sentence where a layer cannot be rounded."""
    back = node.input(1).producer
    if back is None or back.op != "DequantizeLinear" or not back.input(0).is_constant:
        return "its weights are not quantized constants"
    if back.output.use_count != 1:
        return "its weights are shared"
    if counterpart is None or counterpart.op != node.op or not counterpart.input(1).is_constant:
        return "the float graph has no such layer with constant weights"
    if counterpart.input(1).shape != back.input(0).shape:
        return "its float weights have another shape"
    quant = params_of(back)
    if any(quant.zero_point):
        return "its weights have a zero point"
    bias = node.optional(2)
    if bias is not None and bias.data is None and (bias.producer is None or bias.producer.op != "DequantizeLinear"):
        return "its bias is no constant"
    reason = why_not(node, len(counterpart.input(1).shape))
    if reason is None and quant.per_channel:
        g, m, _ = as_rows(counterpart, counterpart.input(1).array()).shape
        if len(quant.scale) != g * m:
            return "its scales do not follow its output channels"
    return reason


def _waves(layers: list[_Layer], memory: int) -> Iterator[list[_Layer]]:
    """Layers in order, in sets none of whose members depends on another, as large as the memory allows."""
    wave: list[_Layer] = []
    behind: set[Node] = set()
    held = 0
    for layer in layers:
        if wave and (layer.node in behind or held + layer.size > memory):
            yield wave
            wave, behind, held = [], set(), 0
        wave.append(layer)
        held += layer.size
        behind |= _descendants(layer.node)
    if wave:
        yield wave


def _descendants(node: Node) -> set[Node]:
    found: set[Node] = set()
    stack = [node]
    while stack:
        for value in stack.pop().outputs:
            for user, _ in value.uses():
                if user not in found:
                    found.add(user)
                    stack.append(user)
    return found
