"""Why a quantized network is worse than the float one: the debugging flow of the White Paper (fig. 9), with advice.

1. float check: the prepared graph (folded, equalized) must give the float network's outputs.
2. weights or activations: each side quantized alone, as the recipe places its quantizers, rounded to nearest; and the
   whole recipe, with its rounding and bias correction.
3. each quantizer alone: every layer's weights, every activation.
4. the worst tensors: their distributions, and what to do about each.
5. on request, what each remedy brings, by trying it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qir.errors import DataError
from qir.graph import Graph, Node, Stage, Value
from qir.ops import op_of
from qir.ops.requantize import params_of
from qir.types import Array, QuantParams

from .calibration.collect import collect
from .calibration.observers import Statistics
from .manager import PassManager
from .mixed_precision.sensitivity import perturbation, run_all
from .pipeline import run_recipe
from .quantization.insert_qdq import channel_axis, row_axis
from .quantization.placement import weights_side
from .quantization.ranges import Ranges
from .quantization.undo_qdq import UndoQdq
from .recipe_files import as_toml
from .recipes import Recipe
from .simplify.strip_softmax import StripSoftmax

FLOAT_DB = 60.0
"""Below this SQNR the prepared graph is not the float network any more."""

GAIN_DB = 0.1
"""A change helps when it gains at least this much."""

WIDENED = 3
"""So many of the worst layers are tried at 8 bits."""

SHARES = (0.001, 0.25, 0.5, 0.75, 0.999)
"""Quantiles that describe a distribution."""


@dataclass(frozen=True)
class Culprit:
    """One quantizer alone.  layer: whose weights, or which node reads the activation.  side: "weights" or "activation".

    bits: of its grid.  sqnr: of the outputs, dB.  facts, advice: sentences.
    """

    layer: str
    tensor: str
    side: str
    bits: int
    sqnr: float
    facts: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """SQNR of the outputs in dB: prepared float; weights only, activations only and both, rounded to nearest; the
    whole recipe.  culprits: worst first.  remedies: (option, SQNR of the whole recipe with it), best first.
    better: the recipe with the first of them, if it helps.  warnings: what has collapsed (see `collapse`).
    """

    recipe: Recipe
    float_sqnr: float
    weights_sqnr: float
    activations_sqnr: float
    both_sqnr: float
    recipe_sqnr: float
    culprits: tuple[Culprit, ...]
    remedies: tuple[tuple[str, float], ...] = ()
    better: Recipe | None = None
    warnings: tuple[str, ...] = ()

    def text(self, worst: int = 8) -> str:
        """The flow in words."""
        lines = [f"warning: {warning}" for warning in self.warnings]
        lines += [f"1. float check: {_db(self.float_sqnr)} between the network and its prepared form"]
        if self.float_sqnr < FLOAT_DB:
            lines.append("   the preparation itself changes the outputs: leave out steps (equalize, absorb_bias)")
        else:
            lines.append("   fine: what is lost is lost by quantization")
        lines.append(
            f"2. rounded to nearest, weights only: {_db(self.weights_sqnr)}; "
            f"activations only: {_db(self.activations_sqnr)}; both: {_db(self.both_sqnr)}"
        )
        lines.append(f"   the whole recipe, with its rounding and bias correction: {_db(self.recipe_sqnr)}")
        lines.append("   " + self.verdict())
        lines.append("3. each quantizer by itself, worst first:")
        for c in self.culprits[:worst]:
            reader = "of" if c.side == "weights" else "read by"
            lines.append(f"   {_db(c.sqnr)}  {c.side} {reader} {c.layer} ({c.tensor}, {c.bits} bits)")
            lines += [f"      {fact}" for fact in c.facts]
            lines += [f"      -> {advice}" for advice in c.advice]
        if not self.remedies:
            lines.append("4. what may help is said only after a trial: --remedies (remedies=True) makes it")
            return "\n".join(lines)
        helped = [(words, value) for words, value in self.remedies if value > self.recipe_sqnr + GAIN_DB]
        lines.append(f"4. the whole recipe with one change, on these samples (without: {_db(self.recipe_sqnr)}):")
        lines += [f"   {_db(value)}  {words}" for words, value in helped]
        if len(helped) < len(self.remedies):
            lines.append(f"   {len(self.remedies) - len(helped)} of {len(self.remedies)} changes tried do not help")
        if self.better is not None:
            lines.append("   the first as a file for qir quantize --recipe better.toml:")
            lines += [f"      {row}" for row in as_toml(self.better).splitlines()]
        return "\n".join(lines)

    def verdict(self) -> str:
        """Which side to work on, and what of the recipe is left to change for it."""
        gap = self.weights_sqnr - self.activations_sqnr
        if abs(gap) <= 3:
            return "both sides cost about the same: start with the tensors below"
        side = "weights" if gap < 0 else "activations"
        return f"the {side} cost most: start with them"


def _db(value: float) -> str:
    return "exact" if math.isinf(value) else f"{value:5.1f} dB"


def _words(options: Mapping[str, Any]) -> str:
    """Options as a recipe file has them."""
    return ", ".join(f"{k}={str(v).lower() if isinstance(v, bool) else repr(v)}" for k, v in options.items())


def _changed(recipe: Recipe, change: Mapping[str, Any]) -> Recipe:
    """The recipe with other options; layers are added to those that it names."""
    return recipe.but(**{**change, "layers": {**recipe.layers, **change.get("layers", {})}})


def _wider(graph: Graph, c: Culprit, recipe: Recipe) -> dict[str, Any] | None:
    """The change that gives a linear layer 8 bits on the side of a culprit; None where it has them."""
    node = next((n for n in graph.nodes if n.name == c.layer), None)
    if node is None or not op_of(node.op).linear or c.bits >= 8:
        return None
    w_bits, x_bits = recipe.layers.get(c.layer, (recipe.weight_bits, recipe.activation_bits))
    return {"layers": {c.layer: (8, x_bits) if c.side == "weights" else (w_bits, 8)}}


def changes(recipe: Recipe, side: str) -> list[dict[str, Any]]:
    """Options of a recipe that may help its "weights" or its "activations", where they are not chosen already."""
    if side == "weights":
        wanted: list[dict[str, Any]] = [
            {"per_channel": True}, {"equalize": "weights"}, {"weight_range": "mse"}, {"rounding": "gptq"},
            {"correct_bias": "empirical"},
        ]  # fmt: skip
    else:
        wanted = [{"method": "mse"}, {"method": "percentile"}, {"equalize": "activations"}, {"residual": "int16"}]
    if recipe.per_channel:
        wanted = [w for w in wanted if w != {"equalize": "weights"}]  # scales of channels do what it would
    return [w for w in wanted if any(getattr(recipe, k) != v for k, v in w.items())]


def sqnr(reference: Sequence[Array], outputs: Sequence[Array]) -> float:
    """Signal to noise of the outputs in dB; infinite where they are equal."""
    noise = perturbation("sqnr", reference, outputs)
    return math.inf if noise == 0 else -10 * math.log10(noise)


def diagnose(
    graph: Graph,
    batches: Iterable[Mapping[str, Array]],
    recipe: Recipe,
    *,
    worst: int = 8,
    remedies: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Run the flow for a float graph and the recipe that disappoints.  The batches are kept in memory: a few suffice.

    worst: culprits that are explained.  remedies: also run the recipe with each of `changes` (advice is
    given only where such a trial helped).  progress: called with the number of runs done, and how many there will be.
    Raises DataError without batches, and what the recipe's passes raise.
    """
    feeds = list(batches)
    if not feeds:
        raise DataError("no data to diagnose with")
    if graph.stage is Stage.QDQ:
        graph, _ = UndoQdq().apply(graph)
    plain = StripSoftmax().apply(graph)[0] if recipe.strip_softmax else graph
    done = run_recipe(recipe, graph, feeds, check=True)
    prepared, ranges = done.prepared, done.ranges
    reference = run_all(prepared, feeds)
    nearest, _ = PassManager([recipe.insert(ranges)]).run(prepared)

    def score(*kept: str) -> float:
        return sqnr(reference, run_all(only(nearest, prepared, kept), feeds))

    points = [_point(n, prepared) for n in nearest.nodes if n.op == "DequantizeLinear"]
    names = {side: [name for name, c, _ in points if c.side == side] for side in ("weights", "activation")}
    options = changes(recipe, "weights") + changes(recipe, "activations") if remedies else []
    total = len(points) + len(options) + (WIDENED if remedies else 0)
    done_runs = itertools.count(1)

    def step() -> None:
        if progress is not None:
            progress(min(next(done_runs), total), total)

    def alone(name: str, c: Culprit) -> Culprit:
        measured = replace(c, sqnr=score(name))
        step()
        return measured

    found = sorted(((alone(name, c), q) for name, c, q in points), key=lambda pair: pair[0].sqnr)
    seen = collect(prepared, feeds)
    explained = [_explained(prepared, c, q, ranges, seen, recipe) if i < worst else c for i, (c, q) in enumerate(found)]
    whole = sqnr(reference, run_all(done.qdq, feeds))
    tried: list[tuple[str, float, Recipe]] = []
    wider = [w for c in explained if (w := _wider(prepared, c, recipe)) is not None][:WIDENED]
    for change in [*options, *wider] if remedies else []:
        changed = _changed(recipe, change)
        tried.append((_words(change), sqnr(reference, run_all(run_recipe(changed, graph, feeds).qdq, feeds)), changed))
        step()
    tried.sort(key=lambda t: -t[1])
    helped = {words: changed for words, value, changed in tried if value > whole + GAIN_DB}
    explained = [replace(c, advice=tuple(a for a in c.advice if any(w in a for w in helped))) for c in explained]
    return Diagnosis(
        recipe, sqnr(run_all(plain, feeds), reference), score(*names["weights"]), score(*names["activation"]),
        score(*names["weights"], *names["activation"]), whole, tuple(explained),
        tuple((words, value) for words, value, _ in tried), next(iter(helped.values()), None),
        () if done.quality is None else done.quality.warnings,
    )  # fmt: skip


def _source(value: Value) -> Value:
    """The float activation that a quantizer's input stands for, before any other quantizer."""
    while value.producer is not None and value.producer.op == "DequantizeLinear":
        value = value.producer.input(0)
        if value.producer is None or value.producer.op != "QuantizeLinear":
            break
        value = value.producer.input(0)
    return value


def _point(back: Node, prepared: Graph) -> tuple[str, Culprit, QuantParams]:
    """A DequantizeLinear of a QDQ graph: its name, what it quantizes (SQNR not known yet) and the grid."""
    q, producer = params_of(back), back.input(0).producer
    uses = back.output.uses()
    while uses and op_of(uses[0][0].op).border:  # a narrower grid behind a wide one
        uses = uses[0][0].output.uses()
    reader, index = uses[0] if uses else (None, 0)
    if producer is None and reader is not None:
        counterpart = next(n for n in prepared.nodes if n.name == reader.name)
        layer, tensor, side = reader.name, counterpart.input(index).name, "weights"
    else:
        source = _source(back.output)
        owner = reader or source.producer
        layer, tensor, side = owner.name if owner else back.name, source.name, "activation"
    return back.name, Culprit(layer, tensor, side, q.dtype.bits, math.nan), q


def only(qdq: Graph, prepared: Graph, kept: Iterable[str]) -> Graph:
    """A copy of a QDQ graph in which only these DequantizeLinear nodes, and the quantizers before them, have effect.

    prepared: the float graph it was made from; gives the weights back.
    """
    new, names, floats = qdq.clone(), set(kept), {n.name: n for n in prepared.nodes}
    for back in [n for n in new.nodes if n.op == "DequantizeLinear" and n.name not in names]:
        producer = back.input(0).producer
        if producer is not None:
            source = producer.input(0)
        else:
            reader, index = back.output.uses()[0]
            source = new.add_constant(new.fresh(f"{back.name}.float"), floats[reader.name].input(index).array())
        new.replace_uses(back.output, source)
    new.prune()
    return new


def _explained(graph: Graph, c: Culprit, q: QuantParams, ranges: Ranges, seen: Statistics, recipe: Recipe) -> Culprit:
    """With facts about the tensor's distribution, and advice."""
    facts: list[str] = []
    advice: list[str] = []
    node = next((n for n in graph.nodes if n.name == c.layer), None)
    linear = node is not None and op_of(node.op).linear
    side = weights_side(node) if node is not None else None
    if c.side == "weights" and node is not None and side is not None:
        w = node.input(side).array().astype(np.float64)
        axis = channel_axis(node) if side else row_axis(node)
        rows = w.reshape(1, -1) if axis is None else np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
        tops = np.abs(rows).max(axis=1)
        spread = float(tops.max() / max(float(np.median(tops)), 1e-30))
        deviation = float(np.abs(w).max() / max(float(w.std()), 1e-30))
        facts.append(f"max|w| of channels: {spread:.1f} times their median; extremes at {deviation:.1f} deviations")
        facts.append(_distribution([float(np.quantile(w, share)) for share in SHARES]))
        if spread > 8 and not recipe.per_channel:
            advice.append("channels differ much: per_channel=true, or equalize")
        if deviation > 8 and recipe.weight_range == "minmax":
            advice.append("outliers stretch the grid: weight_range='mse'")
        if recipe.rounding == "nearest":
            advice.append("choose the rounding from data: rounding='gptq'")
    elif c.tensor in seen:
        t = seen[c.tensor]
        scale, zero = float(q.scale[0]), int(q.zero_point[0])
        lo, hi = (q.dtype.lo - zero) * scale, (q.dtype.hi - zero) * scale
        facts.append(f"grid [{lo:.4g}, {hi:.4g}] in steps of {scale:.3g}, extremes seen [{t.lo:.4g}, {t.hi:.4g}]")
        facts.append(_distribution([t.histogram.quantile(share) for share in SHARES]))
        clipped = (t.hi - t.lo) / max(min(hi, t.hi) - max(lo, t.lo), 1e-30)
        if t.channel_count:
            reach = np.maximum(np.abs(t.channel_lo), np.abs(t.channel_hi))
            spread = float(reach.max() / max(float(np.median(reach)), 1e-30))
            facts.append(f"largest channel reaches {spread:.1f} times as far as the median channel")
            if spread > 8 and recipe.equalize == "none":
                advice.append("channels differ much: equalize='activations' before quantizing")
        if clipped > 4:
            facts.append(f"the grid leaves out {100 * (1 - 1 / clipped):.0f} % of the span seen")
        if clipped < 1.05 and recipe.method in ("minmax", "ema") and c.bits <= 8:
            advice.append("extremes set the range: method='mse' or 'percentile'")
    if linear and c.bits < 8:
        w_bits, x_bits = recipe.layers.get(c.layer, (recipe.weight_bits, recipe.activation_bits))
        wider = (8, x_bits) if c.side == "weights" else (w_bits, 8)
        advice.append(f"or keep it wider: layers={{{c.layer!r}: {wider}}}, or search")
    return replace(c, facts=tuple(facts), advice=tuple(advice))


def _distribution(values: Sequence[float]) -> str:
    """Quantiles in words."""
    return "quantiles " + ", ".join(f"{100 * p:g} %: {v:.3g}" for p, v in zip(SHARES, values, strict=True))
